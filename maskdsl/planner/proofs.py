"""What is proved of a plan, for kernels to rely on.

divisible: every lane of every tile holds a token. int32: 32 bits hold every int that a kernel works
out, flattened tokens times head_dim excepted. no_empty_row: every query keeps a key, whatever the
inputs hold. contiguous: the key tiles that a row visits are one run of neighbours, by flattened
number. What is not proved may still hold: of `no_empty_row` only where inputs decide, or past
MAX_PLACES and MAX_PAIRS; of `contiguous` where there are too many runs to unfold them for it.
"""

from __future__ import annotations

from functools import reduce
from typing import TYPE_CHECKING

import numpy as np

from maskdsl.ir.evaluate import evaluate
from maskdsl.ir.logic import FALSE, TRUE
from maskdsl.ir.nodes import Node, postorder
from maskdsl.ir.program import Segment
from maskdsl.ir.rewrite import certainly, substitute
from maskdsl.planner.boxes import FULL, MIXED, PARTIAL
from maskdsl.planner.rows import Runs
from maskdsl.planner.tiles import Grid
from maskdsl.planner.tree import Tree

if TYPE_CHECKING:
    from maskdsl.planner.plan import HeadClass, Plan

INT32 = 2**31
MAX_PLACES = 2**27  # of queries, in all undecided boxes of one level
MAX_PAIRS = 2**27  # of undecided tiles


def proofs_of(plan: Plan) -> dict[str, bool]:
    """What holds of the whole plan, by name."""
    classes = plan.class_proofs
    return {
        "divisible": all(g.divisible for g in (*plan.q_grids, *plan.kv_grids)),
        "int32": _int32(plan),
        **{name: all(c[name] for c in classes) for name in ("no_empty_row", "contiguous")},
    }


def class_proofs_of(plan: Plan, heads: HeadClass) -> dict[str, bool]:
    """What holds of the rows of one head class, by name."""
    runs = heads.runs if heads.few_runs else None
    return {
        "no_empty_row": _no_empty_row(plan, heads, runs),
        "contiguous": _one_band(heads) if runs is None else _contiguous(runs),
    }


def _one_band(heads: HeadClass) -> bool:
    """Whether the closed form of the rows is one run of tiles on one axis."""
    walk = heads.walks[0]
    alone = len(heads.walks) == 1 and not isinstance(walk, str) and len(walk.axes) == 1
    return alone and len(walk.axes[0].bands) == 1  # type: ignore[union-attr]


def reach(node: Node) -> int:
    """The largest absolute value of an int node and of all sums on the way to it."""
    largest: int = max(-node.low, node.high)
    if node.op == "linear":
        constant, coefficients = node.value
        terms = zip(coefficients, node.args, strict=True)
        largest = abs(constant) + sum(abs(c) * max(-a.low, a.high) for c, a in terms)
    return largest


def _int32(plan: Plan) -> bool:
    program = plan.program
    roots = [b.keep for b in program.all_blocks]
    roots += [r for r in (program.sink, *(b.score for b in program.all_blocks)) if r is not None]
    rows = plan.q_tiles * len(plan.head_classes)
    return (
        max(rows, plan.kv_tiles) < INT32
        and all(_lanes_reach(g) < INT32 for g in (*plan.q_grids, *plan.kv_grids))
        and all(_narrow(n) for n in postorder(*roots))
    )


def _lanes_reach(grid: Grid) -> int:
    """The largest coordinate of a lane, outside of the space too."""
    tile = grid.tile
    axes = zip(grid.starts, grid.blocks, tile.span, tile.size, tile.step, strict=True)
    return max(start + blocks * span + size * step for start, blocks, span, size, step in axes)


def _narrow(n: Node) -> bool:
    if n.op == "load" and n.value.data is not None and n.value.data.size >= INT32:
        return False
    if n.op in ("le", "lt", "eq") and n.args[0].type == "int":
        return sum(map(reach, n.args)) < INT32  # terms may change sides
    return n.type != "int" or n.op == "batch" or reach(n) < INT32


def _contiguous(runs: Runs) -> bool:
    """Rows without tiles are."""
    gaps = runs.first[1:] != (runs.first + runs.count)[:-1]
    rows = runs.row_of()
    return not np.any(gaps & (rows[1:] == rows[:-1]))


def _no_empty_row(plan: Plan, heads: HeadClass, runs: Runs | None) -> bool:
    """Three ways, the quick ones first: a query keeps itself; its tile visits a full tile; some
    pair of its tile is kept.
    """
    starts = heads.row_starts
    for i, segment in enumerate(plan.program.queries):
        if plan.program.shared and _keeps_itself(heads.keeps[i][i], segment):
            continue
        if runs is None and any(
            not isinstance(w, str) and w.no_empty_row
            for w in heads.walks[i * len(heads.trees[i]) : (i + 1) * len(heads.trees[i])]
        ):
            continue
        if runs is not None and np.all(runs.counts()[0][starts[i] : starts[i + 1]] > 0):
            continue
        if not _served(heads.trees[i]):
            return False
    return True


def _keeps_itself(keep: Node, segment: Segment) -> bool:
    """Whether each query certainly keeps the key at its own position."""
    to_query = {
        n: Node("coord", "int", (), ("q", n.value[1]), n.low, n.high)
        for n in postorder(keep)
        if n.op == "coord" and n.value[0] == "k"
    }
    own = certainly(substitute(keep, to_query))
    if own in (TRUE, FALSE) or segment.tokens > MAX_PLACES:
        return own == TRUE
    places = np.ix_(*(np.arange(extent) for extent in segment.shape))
    leaves = {("q", name): x for (name, _), x in zip(segment.axes, places, strict=True)}
    return bool(np.all(evaluate(own, leaves, {})))


def _served(trees: tuple[Tree, ...]) -> bool:
    """Whether each query of a segment certainly keeps a key of some segment."""
    found = False
    for tree in trees:
        served = _served_by(tree)
        if served is None:
            return False
        found = found | served  # type: ignore[assignment]
    return bool(np.all(found | ~_tokens(trees[0])))


def _served_by(tree: Tree) -> np.ndarray | None:
    """Which places certainly keep a key, bool with two dimensions an axis (residue, place); None
    past the limits.

    Bottom up: a box's queries are served by any of its key halves, equal boxes alike.
    """
    if not tree.summaries:
        return np.full(_shape(tree, tree.space.widths), tree.root_kind == FULL)
    below = _served_in_tiles(tree)
    for level in reversed(tree.levels):
        shape = _shape(tree, level.widths)
        if below is None or len(level.kind) * int(np.prod(shape)) > MAX_PLACES:
            return None
        half = _shape(tree, level.child_widths)
        above = np.zeros((len(level.kind), *shape), dtype=bool)
        for child, offset in enumerate(level.children):
            first = _shape(tree, offset)
            inner = (slice(f, f + h) for f, h in zip(first, half, strict=True))
            part = above[(slice(None), *inner)]
            part[level.kind[:, child] == FULL] = True
            open_ = np.flatnonzero(level.kind[:, child] == MIXED)
            part[open_] |= below[level.node[open_, child]]
        below = above
    return None if below is None else below[0]


def _served_in_tiles(tree: Tree) -> np.ndarray | None:
    """Of undecided tile pairs: bool (classes, per axis 1, places)."""
    kind = tree.summaries[-1].kind
    q, k = (side.grid.tile for side in tree.space.sides)
    found = np.repeat(kind == FULL, q.lanes)
    if (kind == PARTIAL).any():
        if len(kind) * q.lanes * k.lanes > MAX_PAIRS:
            return None
        found |= tree.judge(lambda keep, valid: (keep & valid).any(2).reshape(-1))
    lanes = found.reshape(len(kind), *(n for size in q.size for n in (1, size)))
    return lanes[(slice(None), *(slice(n) for pitch in q.pitch for n in (1, pitch)))]


def _shape(tree: Tree, digits: np.ndarray) -> tuple[int, ...]:
    """The numbers of the query's residues and places among all digits."""
    of = tree.space.digits
    chosen = (i for i, d in enumerate(of) if d.side == "q" and d.part in "rj")
    return tuple(int(digits[i]) for i in chosen)


def _tokens(tree: Tree) -> np.ndarray:
    """Which places hold a token: bool with two dimensions an axis."""
    grid = tree.space.sides[0].grid
    shape = _shape(tree, tree.space.widths)
    parts = []
    for axis, (extent, start) in enumerate(zip(grid.extents, grid.starts, strict=True)):
        residues, places = shape[2 * axis : 2 * axis + 2]
        r, j = np.arange(residues)[:, None], np.arange(places)[None, :]
        at = start + r + grid.tile.step[axis] * j
        inside = (r < grid.tile.step[axis]) & (at >= 0) & (at < extent)
        wide = [1] * len(shape)
        wide[2 * axis : 2 * axis + 2] = residues, places
        parts.append(inside.reshape(wide))
    return reduce(np.logical_and, parts)
