"""Masks of whole blocks: which blocks of flattened tokens a rule keeps."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from maskdsl.errors import BindError, PlanError
from maskdsl.ir import integers
from maskdsl.ir.integers import integer
from maskdsl.ir.nodes import Node
from maskdsl.ir.program import Block, Program
from maskdsl.ir.rewrite import substitute
from maskdsl.planner.boxes import Side
from maskdsl.planner.build import head_patterns
from maskdsl.planner.rows import Placed, shapes
from maskdsl.planner.tiles import Grid, Tile
from maskdsl.planner.tree import Tree


@dataclass(frozen=True)
class Vote:
    """Keep a block when more than `share` of its non-empty columns are more than `column` full.

    The rule of Radial Attention (github.com/mit-han-lab/radial-attention, `shrinkMaskStrict`) is
    Vote(column=1/3, share=0.6).
    """

    column: float
    share: float

    def __post_init__(self) -> None:
        for name in ("column", "share"):
            value = getattr(self, name)
            if not isinstance(value, (int, float)) or not 0 <= value <= 1:
                raise BindError(f"a vote's {name} lies between 0 and 1, not {value!r}")


def blocks_kept(program: Program, block: int, rule: str | Vote) -> np.ndarray:
    """Which blocks the rule keeps: bool (heads, query blocks, key blocks).

    Raises PlanError for blocks that are no power of two and patterns that inputs decide.
    """
    if program.segmented:
        raise PlanError("coarsen is not supported for several segments yet")
    decide = _RULES.get(rule) if isinstance(rule, str) else None
    if isinstance(rule, Vote):
        decide = _voter(rule)
    if decide is None:
        raise PlanError(f"a rule is 'any', 'all' or a Vote, not {rule!r}")
    only = program.only
    keep = substitute(only.keep, _flattened(only))
    grids = [Grid(Tile((block,)), (s.tokens,)) for s in (only.queries, only.keys)]
    queries, keys = (Side(n, ("index",), g) for n, g in zip("qk", grids, strict=True))
    kept = np.zeros((program.heads, grids[0].count, grids[1].count), dtype=bool)
    for heads, patterns in head_patterns(program, ((keep,),)):
        tree = Tree(patterns[0][0], queries, keys)
        if tree.varies:
            raise PlanError("a pattern that inputs decide cannot be coarsened")
        row, tile, shape = shapes([Placed(tree, 0, 0)])
        chosen = np.append(tree.judge(decide), True)  # a full tile has shape -1
        for h in heads:
            kept[h, row, tile] = chosen[shape]
    return kept


def _flattened(block: Block) -> dict[Node, Node]:
    """Coordinates in terms of the flattened position, an axis called `index`."""
    found = {}
    for side, segment in (("q", block.queries), ("k", block.keys)):
        index = integers.make("coord", (), 0, segment.tokens - 1, (side, "index"))
        for i, (name, extent) in enumerate(segment.axes):
            assert extent is not None
            stride = math.prod(segment.shape[i + 1 :])
            coord = integers.make("coord", (), 0, extent - 1, (side, name))
            at = integers.floordiv(index, integer(stride))
            found[coord] = integers.mod(at, integer(extent))
    return found


Decide = Callable[[np.ndarray, np.ndarray], np.ndarray]


def _voter(vote: Vote) -> Decide:
    def decide(keep: np.ndarray, valid: np.ndarray) -> np.ndarray:
        """(blocks, queries, keys) truths and which pairs lie inside the space, to (blocks,)."""
        kept = (keep & valid).sum(1)
        fill = kept / np.maximum(valid.sum(1), 1)
        good, some = (fill > vote.column).sum(1), (kept > 0).sum(1)
        decided: np.ndarray = good > vote.share * some
        return decided

    return decide


def _any(keep: np.ndarray, valid: np.ndarray) -> np.ndarray:
    return np.asarray((keep & valid).any((1, 2)))


def _all(keep: np.ndarray, valid: np.ndarray) -> np.ndarray:
    return np.asarray((keep | ~valid).all((1, 2)))


_RULES: dict[str, Decide] = {"any": _any, "all": _all}
