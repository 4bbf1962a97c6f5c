"""Masks of which the inputs are known: they become tables, and decide tiles as tables do."""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from dataclasses import replace
from typing import Any

import numpy as np

from maskdsl.ir import logic
from maskdsl.ir.definition import arrays_of, match_inputs
from maskdsl.ir.integers import integer, truth
from maskdsl.ir.nodes import Array, Node, postorder
from maskdsl.ir.rewrite import substitute
from maskdsl.ir.storage import content_of
from maskdsl.pattern import Mask

TYPES = {"int": np.int64, "float": np.float64, "bool": np.bool_}


def with_inputs(mask: Mask, inputs: Mapping[str, Any]) -> Mask:
    """The mask that the first batch entry sees; inputs that decide no pair may be left out. Raises
    `BindError` for names and arrays that do not fit.
    """
    program = mask.closed()
    keeps = [b.keep for b in program.all_blocks]
    read = {n.value.name for n in postorder(*keeps) if n.op == "load"}
    needed = tuple(a for a in program.inputs if a.name in read or a.name in inputs)
    list(match_inputs(needed, inputs))  # nothing else is given
    tables = {a.name: _table(a, arrays_of((a,), {a.name: inputs[a.name]}, 0)) for a in needed}
    blocks = tuple(
        tuple(replace(b, keep=_known(b.keep, tables), error=truth(False)) for b in row)
        for row in program.blocks
    )
    known = copy(mask)
    known.program = replace(program, blocks=blocks)
    return known


def _table(array: Array, given: Mapping[str, np.ndarray]) -> Array:
    data: np.ndarray = np.ascontiguousarray(given[array.name], dtype=TYPES[array.type])
    return Array(array.name, array.type, data.shape, False, data, content_of(data))


def _known(keep: Node, tables: Mapping[str, Array]) -> Node:
    leaves: dict[Node, Node] = {}
    for node in postorder(keep):
        if node.op == "batch":
            leaves[node] = integer(0)
        elif node.op == "load" and node.value.is_input:
            indices = tuple(substitute(i, leaves) for i in node.args)
            leaves[node] = logic.load(tables[node.value.name], indices)
    return substitute(keep, leaves)
