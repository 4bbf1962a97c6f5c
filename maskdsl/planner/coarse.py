"""Masks of whole blocks: which blocks of flattened tokens a rule keeps."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from maskdsl.errors import BindError, PlanError
from maskdsl.ir.program import Program
from maskdsl.planner.boxes import FULL, MIXED, PARTIAL, Side
from maskdsl.planner.build import head_patterns
from maskdsl.planner.flattened import AXIS, flattened
from maskdsl.planner.rows import Placed, shapes
from maskdsl.planner.tiles import Grid, Tile
from maskdsl.planner.tree import CHUNK, MAX_BOXES, Tree

MAX_BLOCKS = 2**28  # pairs of them, over all heads that differ


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
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if not number or not 0 <= value <= 1:
                raise BindError(f"a vote's {name} lies between 0 and 1, not {value!r}")


def blocks_kept(program: Program, block: int, rule: str | Vote) -> np.ndarray:
    """Which blocks the rule keeps: bool (heads, query blocks, key blocks), heads being 1 where all
    are alike.

    Raises PlanError for too many blocks, blocks that are no power of two and patterns that inputs
    decide.
    """
    if not isinstance(rule, Vote) and not (isinstance(rule, str) and rule in ("any", "all")):
        raise PlanError(f"a rule is 'any', 'all' or a Vote, not {rule!r}"[:200])
    only = flattened(program).only
    grids = [Grid(Tile((block,)), (s.tokens,)) for s in (only.queries, only.keys)]
    queries, keys = (Side(n, (AXIS,), g) for n, g in zip("qk", grids, strict=True))
    classes = head_patterns(program, ((only.keep,),))
    shape = (program.heads if len(classes) > 1 else 1, grids[0].count, grids[1].count)
    if math.prod(shape) > MAX_BLOCKS:
        raise PlanError(f"coarsen holds at most {MAX_BLOCKS} pairs of blocks; take larger blocks")
    kept = np.zeros(shape, dtype=bool)
    for heads, patterns in classes:
        tree = Tree(patterns[0][0], queries, keys)
        if tree.varies:
            raise PlanError("a pattern that inputs decide cannot be coarsened")
        row, tile, kinds = shapes([Placed(tree, 0, 0)])
        if isinstance(rule, Vote):
            partial = _elected(tree, rule)
        else:
            partial = np.full(len(tree.leaves), rule == "any")
        chosen = np.append(partial, True)  # a full tile has shape -1
        for h in heads if len(classes) > 1 else (0,):
            kept[h, row, tile] = chosen[kinds]
    return kept


def _elected(tree: Tree, vote: Vote) -> np.ndarray:
    """Which classes of undecided tiles the vote keeps: bool (classes,)."""
    elected = np.zeros(len(tree.leaves), dtype=bool)
    if tree.summaries:
        partial = np.flatnonzero(tree.summaries[-1].kind == PARTIAL)
        kept, queries = _kept_of_keys(tree, tree.leaves[partial])
        good, some = (kept / queries > vote.column).sum(1), (kept > 0).sum(1)
        elected[partial] = good > vote.share * some
    return elected


def _kept_of_keys(tree: Tree, tiles: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(how many queries keep each key, int (tiles, key lanes); queries inside, (tiles, 1))."""
    space = tree.space
    queries, keys = (space.lanes_of(side, tiles, False)[1] for side in space.sides)
    kept = np.zeros(keys.shape, dtype=np.int32)
    by_boxes = np.logical_and(queries.all(1), keys.all(1))
    try:
        kept[by_boxes] = _count_boxes(tree, tiles[by_boxes])
    except PlanError:  # too irregular: pair by pair then
        by_boxes[:] = False
    rest = np.flatnonzero(~by_boxes)
    step = max(1, CHUNK // (queries.shape[1] * keys.shape[1]))
    for part in (rest[i : i + step] for i in range(0, len(rest), step)):
        keep, valid, _ = tree.truth(tiles[part], single=False)
        kept[part] = (keep & valid).sum(1)
    return kept, queries.sum(1)[:, None]


def _count_boxes(tree: Tree, tiles: np.ndarray) -> np.ndarray:
    """How many queries keep each key of tiles that lie inside the space: int (tiles, key lanes).

    Bottom up through the boxes that tiles are split into: equal boxes are counted once.
    """
    space = tree.space
    q, k = (i for i, d in enumerate(space.digits) if d.part == "j")
    pairs, levels = tree.grow(tiles, space.tile_widths, space.pair_widths, MAX_BOXES)
    parts = [tree.truth(pairs[i : i + CHUNK], True)[0] for i in range(0, len(pairs), CHUNK)]
    below = np.concatenate([np.zeros(0, dtype=np.int32), *(x.reshape(-1) for x in parts)])[:, None]
    for level in reversed(levels):
        above = np.zeros((len(level.kind), level.widths[k]), dtype=np.int32)
        for child, offset in enumerate(level.children):
            part = above[:, offset[k] : offset[k] + level.child_widths[k]]
            part[level.kind[:, child] == FULL] += np.int32(level.child_widths[q])
            open_ = np.flatnonzero(level.kind[:, child] == MIXED)
            part[open_] += below[level.node[open_, child]]
        below = above
    return below
