"""Which tile pairs inputs may leave to visit, and what to ask of them at a call: worked out once
for a plan.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from maskdsl.errors import PlanError
from maskdsl.ir.definition import positions
from maskdsl.ir.evaluate import evaluate
from maskdsl.ir.nodes import Node, postorder
from maskdsl.ir.program import Block, Segment
from maskdsl.planner.boxes import EMPTY, FULL, PARTIAL, Side
from maskdsl.planner.conditions import Conditions, Conjunction, Reads
from maskdsl.planner.plan import HeadClass, Plan
from maskdsl.planner.rows import Placed, Runs, unfold
from maskdsl.planner.tiles import Grid
from maskdsl.planner.tree import Tree

MAX_CANDIDATES = 2**24  # tile pairs of a head class that are looked at in each call


@dataclass(frozen=True)
class Pairs:
    """Tile pairs, by tile number, sorted by row: int64 (pairs,) each. kinds: int8 (pairs,)."""

    rows: np.ndarray
    columns: np.ndarray
    kinds: np.ndarray


@dataclass(frozen=True)
class BlockQuestion:
    """What inputs decide between the queries of one segment and the keys of one segment.

    pairs: tiles numbered within their segment; the kinds are those that hold whatever the inputs
    do. root: the keep expression. fixed: int8 (pairs,), kinds of the `fixed` conditions of the
    conjunctions in `root`. roots: by side, the expressions to evaluate for each token. lanes: by
    side, the tokens of every tile (see `lanes_of`). spreads: of indices that no input decides, the
    most elements that one tile reads along them.
    """

    block: Block
    pairs: Pairs
    root: Conjunction
    fixed: dict[Node, np.ndarray]
    roots: dict[str, tuple[Node, ...]]
    lanes: dict[str, np.ndarray]
    spreads: dict[Node, int]


@dataclass(frozen=True)
class ClassQuestion:
    """What inputs decide for the heads of one class.

    pairs: of all blocks, tiles numbered over all segments. order: int64 (pairs,), where they stand
    among those of the blocks laid end to end.
    """

    pairs: Pairs
    order: np.ndarray
    blocks: tuple[BlockQuestion, ...]


def questions(plan: Plan, reads: Reads) -> tuple[ClassQuestion, ...]:
    """One for each head class. Raises PlanError where too many tile pairs are possible."""
    return tuple(_of_class(plan, c, reads) for c in plan.head_classes)


def _of_class(plan: Plan, c: HeadClass, reads: Reads) -> ClassQuestion:
    possible = int(c.runs.count.sum())
    if possible > MAX_CANDIDATES:
        raise PlanError(
            f"inputs decide {possible:,} pairs of tiles, more than {MAX_CANDIDATES:,}; take larger "
            "tiles"
        )
    found, parts = [], []
    for line, keeps, trees, row in zip(
        plan.program.blocks, c.keeps, c.trees, c.row_starts, strict=False
    ):
        for block, keep, tree, column in zip(line, keeps, trees, c.column_starts, strict=False):
            sides = (_side("q", block.queries, plan), _side("k", block.keys, plan))
            pairs = _pairs(unfold([Placed(tree, 0, 0)], sides[0].grid.count))
            found.append(_of_block(block, keep, sides, pairs, reads))
            parts.append([pairs.rows + row, pairs.columns + column, pairs.kinds])
    rows, columns, kinds = (np.concatenate(x) for x in zip(*parts, strict=True))
    order = np.lexsort((columns, rows))
    everything = Pairs(rows[order], columns[order], kinds[order])
    return ClassQuestion(everything, order, tuple(found))


def _side(name: str, segment: Segment, plan: Plan) -> Side:
    segments = plan.program.queries if name == "q" else plan.program.keys
    grids = plan.q_grids if name == "q" else plan.kv_grids
    grid = grids[segments.index(segment)]
    return Side(name, tuple(a for a, _ in segment.axes), grid)


def _pairs(runs: Runs) -> Pairs:
    run = np.repeat(np.arange(len(runs.count)), runs.count)
    within = np.arange(len(run)) - np.repeat(np.cumsum(runs.count) - runs.count, runs.count)
    kinds = np.where(runs.full[run], FULL, PARTIAL).astype(np.int8)
    return Pairs(runs.row_of()[run], runs.first[run] + within, kinds)


def _of_block(
    block: Block, keep: Node, sides: tuple[Side, Side], pairs: Pairs, reads: Reads
) -> BlockQuestion:
    root = Conditions(reads).apart(keep)
    fixed = {}
    for c in root.inner():
        if c.fixed is not None and c.fixed not in fixed:
            fixed[c.fixed] = _kinds(c.fixed, sides, pairs)
    asked = [p for c in root.inner() for p in (c.queries, c.keys) if p is not None]
    roots = reads.one_sided(asked + root.all_parts())
    lanes = {side.name: lanes_of(side.grid) for side in sides}
    spreads = {
        index: _spread(index, block, reads.sides(index), lanes)
        for node in postorder(*root.all_parts())
        if node.op == "load" and reads.sides(node) == "qk"
        for index in node.args
        if reads.sides(index) in ("q", "k") and not reads.varies(index)
    }
    return BlockQuestion(block, pairs, root, fixed, roots, lanes, spreads)


def _spread(index: Node, block: Block, side: str, lanes: dict[str, np.ndarray]) -> int:
    segment = block.queries if side == "q" else block.keys
    leaves = positions(segment, side, np.arange(segment.tokens))
    value = np.broadcast_to(evaluate(index, leaves, {}), (segment.tokens,))[lanes[side]]
    return int((value.max(1) - value.min(1)).max()) + 1


def _kinds(condition: Node, sides: tuple[Side, Side], pairs: Pairs) -> np.ndarray:
    """The kinds of tile pairs under a condition that reads no input; possible where it is too
    irregular to tell.
    """
    try:
        runs = unfold([Placed(Tree(condition, *sides), 0, 0)], sides[0].grid.count)
    except PlanError:
        return np.full(len(pairs.rows), PARTIAL, dtype=np.int8)
    columns = sides[1].grid.count
    wanted = pairs.rows * columns + pairs.columns
    starts = runs.row_of() * columns + runs.first
    if not len(starts):
        return np.full(len(wanted), EMPTY, dtype=np.int8)
    at = np.searchsorted(starts, wanted, side="right") - 1
    inside = (at >= 0) & (wanted < starts[at] + runs.count[at])
    return np.where(inside, np.where(runs.full[at], FULL, PARTIAL), EMPTY).astype(np.int8)


def lanes_of(grid: Grid) -> np.ndarray:
    """The tokens of every tile, int64 (tiles, lanes), counted from the segment's first: a lane
    without a token repeats one of its tile, so that minima and maxima do not notice it.
    """
    tokens = grid.tokens(np.arange(grid.count))
    some = tokens.max(1, keepdims=True, initial=0)
    return np.where(tokens >= 0, tokens, np.maximum(some, 0))
