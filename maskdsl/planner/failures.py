"""Pairs at which a pattern has no value, found when it is bound: proved absent, or reported with
one such pair.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from maskdsl.ir.definition import raise_where
from maskdsl.ir.evaluate import evaluate
from maskdsl.ir.logic import FALSE
from maskdsl.ir.nodes import Node
from maskdsl.ir.program import Block, Program
from maskdsl.ir.rewrite import certainly
from maskdsl.planner.boxes import Side
from maskdsl.planner.build import head_patterns
from maskdsl.planner.rows import Placed, unfold
from maskdsl.planner.tiles import Grid, default_tile
from maskdsl.planner.tree import Tree


def raise_failures(program: Program) -> None:
    """EvalError where the pattern fails at some pair, whatever its inputs hold; what inputs decide
    is left to the call.
    """
    for block in program.all_blocks:
        for condition in map(certainly, (block.error, block.score_error)):
            if condition != FALSE:
                for heads, patterns in head_patterns(program, ((condition,),)):
                    _raise_one(program, block, patterns[0][0], heads[0])
    sink = certainly(program.sink_error)
    for head in range(program.heads) if sink != FALSE else ():
        leaves = {"head": np.int64(head)}
        raise_where(program, sink, evaluate(sink, leaves, {}), leaves, {})


def _raise_one(program: Program, block: Block, condition: Node, head: int) -> None:
    q, k = sides = [
        Side(name, tuple(a for a, _ in s.axes), Grid(default_tile(s.shape), s.shape))
        for name, s in (("q", block.queries), ("k", block.keys))
    ]
    tree = Tree(condition, q, k)
    if not tree.certain:
        return
    runs = unfold([Placed(tree, 0, 0)], sides[0].grid.count)
    rows = runs.row_of()
    for i in range(len(rows)):  # in most patterns the first tile holds a pair that fails
        leaves: dict[Any, Any] = {"head": np.int64(head), "batch": np.int64(0)}
        for side, tile in zip(sides, (rows[i], runs.first[i]), strict=True):
            lanes = side.grid.coordinates(np.array([tile]))
            inside = np.all(
                [(c[0] >= 0) & (c[0] < e) for c, e in zip(lanes, side.grid.extents, strict=True)], 0
            )
            shape = (-1, 1) if side.name == "q" else (1, -1)
            for name, c in zip(side.axes, lanes, strict=True):
                leaves[side.name, name] = c[0][inside].reshape(shape)
        raise_where(program, condition, evaluate(condition, leaves, {}), leaves, {})
