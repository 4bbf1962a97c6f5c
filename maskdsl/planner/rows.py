"""Rows of a plan: for each query tile, the runs of key tiles to visit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from maskdsl.errors import PlanError
from maskdsl.planner.boxes import EMPTY, FULL, MIXED, PARTIAL
from maskdsl.planner.tree import Tree

MAX_RUNS = 50_000_000


@dataclass(frozen=True)
class Runs:
    """Runs of neighbouring key tiles of one kind, row after row.

    offsets: int64 (query tiles + 1,), runs of row r are offsets[r]:offsets[r + 1], sorted by first.
    first, count: int64 (runs,), flattened key tile and number of tiles. full: bool (runs,).
    With several key axes a run stays within one line of the last axis of the key grid.
    """

    offsets: np.ndarray
    first: np.ndarray
    count: np.ndarray
    full: np.ndarray

    @property
    def rows(self) -> int:
        return len(self.offsets) - 1

    def row_of(self) -> np.ndarray:
        """The row of every run: int64 (runs,)."""
        return np.repeat(np.arange(self.rows), np.diff(self.offsets))

    def counts(self) -> tuple[np.ndarray, np.ndarray]:
        """(full, partial) tiles per row: int64 (rows,) each."""
        rows = self.row_of()
        return tuple(  # type: ignore[return-value]
            np.bincount(rows[kind], weights=self.count[kind], minlength=self.rows).astype(np.int64)
            for kind in (self.full, ~self.full)
        )


@dataclass(frozen=True)
class Placed:
    """The tree of one block, and where its tiles stand among all tiles of queries and keys."""

    tree: Tree
    row: int
    column: int


def most_runs(tree: Tree) -> int:
    """Not less than the runs that the tree's tiles unfold to, without unfolding them."""
    last = len(tree.space.digits) - 1
    if not tree.levels or tree.summaries[0].kind[0] in (EMPTY, FULL, PARTIAL):
        return _lines(tree, tree.space.widths, last) if tree.root_kind != EMPTY else 0
    runs = np.ones(len(tree.leaves))
    for depth in range(len(tree.levels) - 1, -1, -1):
        level = tree.levels[depth]
        kind, node = level.kind.copy(), level.node
        open_ = kind == MIXED
        own = np.zeros(kind.shape)
        kind[open_] = tree.summaries[depth + 1].kind[node[open_]]
        own[(kind == FULL) | (kind == PARTIAL)] = _lines(tree, level.child_widths, last)
        deeper = kind == MIXED
        own[deeper] = runs[node[deeper]]
        runs = own.sum(1)
    return int(runs[0])


def _lines(tree: Tree, widths: np.ndarray, last: int) -> int:
    """Runs of a box of tiles: one for all tiles along the last key axis."""
    return math.prod(
        -(-int(widths[i]) // d.unit) for i, d in enumerate(tree.space.digits) if i != last
    )


def unfold(blocks: Sequence[Placed], rows: int) -> Runs:
    """All rows of the blocks of a pattern, boxes of one kind as runs, neighbours merged."""
    found = [np.zeros((5, 0), dtype=np.int64)]  # row, first, count, full, whether a line starts
    for block in blocks:
        line = block.tree.space.sides[1].grid.shape[-1]
        for kind, starts, widths, _ in _boxes(block.tree):
            row, first, count = _product(block.tree, starts, widths)
            full = np.full(len(row), kind == FULL)
            runs = [row + block.row, first + block.column, count, full, first % line == 0]
            found.append(np.array(runs, dtype=np.int64))
            if sum(x.shape[1] for x in found) > MAX_RUNS:
                raise PlanError(f"this plan has more than {MAX_RUNS} runs; take larger tiles")
    return merge(np.concatenate(found, axis=1), rows)


def shapes(blocks: Sequence[Placed]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(row, key tile, shape) of every tile to visit, int64, sorted by row and key tile.

    shape: -1 for a full tile; else partial tiles of one number hold the same truth at the same
    lanes (where no input decides).
    """
    found = [np.zeros((3, 0), dtype=np.int64)]
    classes = 0
    for block in blocks:
        for _, starts, widths, leaf in _boxes(block.tree, apart=True):
            row, first, count = _product(block.tree, starts, widths)
            copies = np.repeat(np.arange(len(row)), count)
            if len(copies) > MAX_RUNS:
                raise PlanError(f"this plan visits more than {MAX_RUNS} tiles; take larger tiles")
            steps = np.arange(len(copies)) - np.repeat(np.cumsum(count) - count, count)
            number = np.full(len(copies), -1) if leaf is None else leaf + classes
            tile = first[copies] + steps
            found.append(np.array([row[copies] + block.row, tile + block.column, number]))
        classes += max((int(x[2].max()) + 1 for x in found if x.shape[1]), default=0)
    row, tile, number = np.concatenate(found, axis=1).astype(np.int64)
    order = _order(row, tile)
    return row[order], tile[order], number[order]


Boxes = tuple[int, np.ndarray, np.ndarray, np.ndarray | None]


def _boxes(tree: Tree, apart: bool = False) -> list[Boxes]:
    """(kind, starts, widths, leaf) of disjoint boxes of one kind that make up all tiles to visit.

    apart: partial tiles one by one, with the number of their class as `leaf`.
    """
    found: list[Boxes] = []
    starts = np.zeros((1, len(tree.space.digits)), dtype=np.int64)
    together = (FULL,) if apart else (FULL, PARTIAL)
    if not tree.levels and tree.root_kind in (EMPTY, FULL):
        return [(FULL, starts, tree.space.widths, None)] if tree.root_kind == FULL else []
    if tree.summaries[0].kind[0] in together:
        return [(int(tree.summaries[0].kind[0]), starts, tree.space.widths, None)]
    nodes = np.zeros(1, dtype=np.int64)
    for depth, level in enumerate(tree.levels):
        kind = level.kind[nodes]
        node = level.node[nodes]
        open_ = kind == MIXED
        kind[open_] = tree.summaries[depth + 1].kind[node[open_]]
        at = starts[:, None, :] + level.children[None, :, :]
        for visited in together:
            box, child = np.nonzero(kind == visited)
            if len(box):
                found.append((visited, at[box, child], level.child_widths, None))
        box, child = np.nonzero((kind == MIXED) | ((kind == PARTIAL) & apart))
        starts, nodes = at[box, child], node[box, child]
        if len(starts) > MAX_RUNS:
            raise PlanError(
                f"the rows of this plan are more than {MAX_RUNS} runs; take larger tiles"
            )
    if len(starts):
        found.append((PARTIAL, starts, tree.space.tile_widths, nodes))
    return found


def _product(
    tree: Tree, starts: np.ndarray, widths: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(row, first key tile, tiles) of the runs of boxes: ranges multiplied out but for the last key
    digit.
    """
    flat = {"q": np.zeros(len(starts), dtype=np.int64), "k": np.zeros(len(starts), dtype=np.int64)}
    ranges = tree.space.tile_ranges(starts, widths)
    for i, d in enumerate(tree.space.digits):
        grid = tree.space.side(d).grid
        low, high = ranges[i]
        radix = {"r": grid.tile.step, "l": (1,) * (d.axis + 1), "j": grid.blocks}[d.part][d.axis]
        flat[d.side] = flat[d.side] * radix + low
        width = high - low
        if i == len(tree.space.digits) - 1:
            return flat["q"], flat["k"], width
        if np.all(width == 1):
            continue
        copies = np.repeat(np.arange(len(width)), width)
        steps = np.arange(len(copies)) - np.repeat(np.cumsum(width) - width, width)
        flat = {s: x[copies] for s, x in flat.items()}
        flat[d.side] += steps
        ranges = [(low[copies], high[copies]) for low, high in ranges]
    raise AssertionError("a space has at least one axis")


def _order(row: np.ndarray, tile: np.ndarray) -> np.ndarray:
    """What sorts by row and tile: both lie below 2 ** 31, and long stretches are sorted."""
    return np.argsort((row << 32) + tile, kind="stable")


def merge(runs: np.ndarray, q_tiles: int) -> Runs:
    """Sort runs by row and key tile; join neighbours of one kind within a line of key tiles."""
    rows, first, count, full, starts = runs[:, _order(runs[0], runs[1])]
    joins = np.zeros(len(rows), dtype=bool)
    joins[1:] = (
        (rows[1:] == rows[:-1])
        & (first[1:] == first[:-1] + count[:-1])
        & (full[1:] == full[:-1])
        & (starts[1:] == 0)
    )
    heads = np.flatnonzero(~joins)
    total = np.add.reduceat(count, heads) if len(heads) else count
    offsets = np.searchsorted(rows[heads], np.arange(q_tiles + 1)).astype(np.int64)
    return Runs(offsets, first[heads], total, full[heads].astype(bool))
