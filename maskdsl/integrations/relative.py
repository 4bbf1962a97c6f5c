"""Patterns that look at distances alone: the same wherever a sequence starts, so that they can be
asked about a part of it, such as what a bounded cache still holds.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

import numpy as np

from maskdsl.errors import BindError
from maskdsl.integrations.named import Named
from maskdsl.ir.definition import dense
from maskdsl.ir.nodes import Node, postorder
from maskdsl.ir.program import Program


def relative(program: Program) -> bool:
    """Whether keep and score read positions by their difference alone, and never how long the
    sequence is. The program: over one axis, whose extent is still open. Sound, not complete.
    """
    if program.segmented or len(program.query_axes) != 1 or not program.shared:
        return False
    roots = [x for x in (program.keep, program.score) if x is not None]
    shifts: dict[Node, int | None] = {}
    for node in postorder(*roots):
        shifts[node] = _shift(node, shifts)
    return all(shifts[root] == 0 for root in roots)


def _shift(node: Node, known: Mapping[Node, int | None]) -> int | None:
    """By how much the value grows when query and key both move on by one; None: it varies, or is
    not known.
    """
    if node.op == "coord":
        return 1
    if node.op == "symbol":
        return None
    args = [known[a] for a in node.args]
    if None in args:
        return None
    if node.op == "linear":
        return sum(int(c) * (s or 0) for c, s in zip(node.value[1], args, strict=True))
    if node.op in ("lt", "le", "eq"):
        return 0 if args[0] == args[1] else None
    if node.op in ("min", "max", "wide"):
        return args[0] if len(set(args)) == 1 else None
    return 0 if not any(args) else None


@lru_cache
def farthest(named: Named, heads: int, kv_heads: int, tokens: int) -> int:
    """The largest distance back, below `tokens`, of a key that some head of a relative pattern
    sees; -1: none. Raises BindError where inputs decide what is seen.
    """
    program = named.bind(heads, kv_heads).bind(**named.extents(tokens)).closed()
    if any(n.op == "load" and n.value.is_input for n in postorder(program.keep)):
        raise BindError(f"{named.pattern.name}: its inputs decide which keys are seen")
    seen = np.array([dense(program, h, 0, tokens - 1, 1, {})[0] for h in range(heads)]).any(0)
    return tokens - 1 - int(np.argmax(seen)) if seen.any() else -1
