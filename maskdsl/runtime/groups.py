"""Rows of a plan that can run together: equal up to a translation of their tokens.

For the torch backend a row (a query tile) is a list of query tokens, a list of key tokens and the
truth between them. Keys that no query of the row keeps are left out, whatever the key tiles.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from maskdsl.ir.box import combine_keys
from maskdsl.ir.program import Segment
from maskdsl.planner.plan import HeadClass, Plan
from maskdsl.planner.rows import shapes
from maskdsl.planner.tiles import Grid
from maskdsl.runtime.tile_truths import OPEN, SEEN, Truths

NEAR = 256  # columns without a mask that are masked along with those beside them
OPEN_SHAPE = -2  # of a partial tile that a call decides


@dataclass(frozen=True)
class Group:
    """Rows that differ by a translation.

    query_segment: of all rows. queries: int64 (rows,), position of each row's tile; query_offsets:
    int64 (tile queries,), what to add. segments: the key segments the rows see; keys: int64
    (rows, segments), a position in each; key_offsets: int64 (row keys,), what to add to the
    position of key_segment: int64 (row keys,), an index into `segments`. The keys of a row rise.
    columns: int32 (row keys,), the row of `truths` that says who keeps the key, or SEEN where every
    query keeps it, or OPEN where the call decides. lanes: int64 (tile queries,), theirs there.
    partial: ranges of row keys that hold all which not every query keeps.
    """

    query_segment: int
    queries: np.ndarray
    query_offsets: np.ndarray
    segments: tuple[int, ...]
    keys: np.ndarray
    key_offsets: np.ndarray
    key_segment: np.ndarray
    columns: np.ndarray = field(repr=False)
    lanes: np.ndarray = field(repr=False)
    truths: np.ndarray = field(repr=False)
    partial: tuple[slice, ...]

    @cached_property
    def decided(self) -> bool:
        """Whether the call decides any key."""
        return self.open(slice(None))

    def tokens(self, row: int) -> np.ndarray:
        """The keys of a row, int64 (row keys,)."""
        found: np.ndarray = self.keys[row, self.key_segment] + self.key_offsets
        return found

    def kept(self, part: slice) -> np.ndarray:
        """Which query keeps which of some keys, bool (tile queries, keys); true where the call
        decides.
        """
        columns = self.columns[part]
        kept = np.ones((len(columns), len(self.lanes)), dtype=bool)
        known = np.flatnonzero(columns >= 0)
        kept[known] = self.truths[columns[known]][:, self.lanes]
        return kept.T

    def open(self, part: slice) -> bool:
        """Whether the call decides any of some keys."""
        return bool((self.columns[part] == OPEN).any())


@dataclass(frozen=True)
class Tiles:
    """Per tile of one side, by number: its position (that of lane 0, as if the space went on
    outside), how it is clipped, its segment.
    """

    corner: np.ndarray
    edge: np.ndarray
    segment: np.ndarray

    @staticmethod
    def of(segments: tuple[Segment, ...], grids: tuple[Grid, ...]) -> Tiles:
        corners, edges, numbers = [], [], []
        for number, (segment, grid) in enumerate(zip(segments, grids, strict=True)):
            corner, edge = _corners(grid)
            corners.append(corner + segment.offset)
            edges.append(edge)
            numbers.append(np.full(grid.count, number))
        return Tiles(*(np.concatenate(x) for x in (corners, edges, numbers)))


class Grouping:
    """Groups of the rows of one head class."""

    def __init__(self, plan: Plan, c: HeadClass) -> None:
        self.plan = plan
        self.head_class = c
        self.q = Tiles.of(plan.program.queries, plan.q_grids)
        self.k = Tiles.of(plan.program.keys, plan.kv_grids)
        self.varies = any(t.varies for t in c.all_trees)

    def planned(self) -> list[Group]:
        """All rows that visit anything, as planned."""
        row, tile, shape = shapes(self.head_class.placed)
        if self.varies:
            trees = np.array([[t.varies for t in line] for line in self.head_class.trees])
            open_ = trees[self.q.segment[row], self.k.segment[tile]] & (shape >= 0)
            shape = np.where(open_, OPEN_SHAPE, shape)
        return self.groups(row, tile, shape)

    def groups(self, row: np.ndarray, tile: np.ndarray, shape: np.ndarray) -> list[Group]:
        """Groups of the tiles to visit, int64 (tiles,) each, sorted by row and tile.

        shape: -1 for a full tile, OPEN_SHAPE for one that the call decides, else its class.
        """
        if not len(row):
            return []
        q, k = self.q, self.k
        truths = Truths(self.plan, self.head_class, row, tile, shape)
        starts = np.flatnonzero(np.diff(row, prepend=-1))
        ends = np.append(starts[1:], len(row))
        # Positions count from the first tile that a row visits in each segment.
        visits = row * len(self.plan.program.keys) + k.segment[tile]
        lines = np.flatnonzero(np.diff(visits, prepend=-1))
        first = np.repeat(k.corner[tile[lines]], np.diff(lines, append=len(row)))
        entry = combine_keys(
            np.uint64(1), [k.corner[tile] - first, shape, k.edge[tile], k.segment[tile]]
        )
        own = row[starts]
        with np.errstate(over="ignore"):
            signature = np.add.reduceat(entry, starts)
        signature = combine_keys(signature, [q.edge[own], q.segment[own], ends - starts])
        _, representative, member = np.unique(signature, return_index=True, return_inverse=True)
        order = np.argsort(member, kind="stable")
        bounds = np.searchsorted(member[order], np.arange(len(representative) + 1))
        ends_of = np.cumsum([s.tokens for s in self.plan.program.keys])
        lanes_of = self._queries(own[representative])
        found = []
        for g, (r, lanes) in enumerate(zip(representative, lanes_of, strict=True)):
            rows = order[bounds[g] : bounds[g + 1]]
            entries = slice(starts[r], ends[r])
            segments, at = np.unique(k.segment[tile[entries]], return_index=True)
            tokens, columns = truths.columns(tile[entries], shape[entries])
            segment_of = np.searchsorted(segments, np.searchsorted(ends_of, tokens, side="right"))
            number = int(q.segment[own[r]])
            inside = np.flatnonzero(lanes >= 0)
            offset = self.plan.program.queries[number].offset
            found.append(
                Group(
                    query_segment=number,
                    queries=q.corner[own[rows]],
                    query_offsets=lanes[inside] + offset - q.corner[own[r]],
                    segments=tuple(segments.tolist()),
                    keys=first[starts[rows][:, None] + at[None, :]],
                    key_offsets=tokens - first[starts[r] + at][segment_of],
                    key_segment=segment_of,
                    columns=columns,
                    lanes=inside,
                    truths=truths.table(number),
                    partial=_ranges(columns != SEEN),
                )
            )
        return found

    def _queries(self, rows: np.ndarray) -> list[np.ndarray]:
        """The tokens of some rows, int64 (lanes,) each, as `Grid.tokens` gives them."""
        found: list[np.ndarray] = [np.zeros(0)] * len(rows)
        for number, grid in enumerate(self.plan.q_grids):
            own = np.flatnonzero(self.q.segment[rows] == number)
            tokens = grid.tokens(rows[own] - self.head_class.row_starts[number])
            for i, lanes in zip(own, tokens, strict=True):
                found[i] = lanes
        return found


def _ranges(marked: np.ndarray) -> tuple[slice, ...]:
    """Ranges that hold all marked places, few of them."""
    at = np.flatnonzero(marked)
    if not len(at):
        return ()
    breaks = np.flatnonzero(np.diff(at) > NEAR)
    firsts, lasts = at[np.append(0, breaks + 1)], at[np.append(breaks, len(at) - 1)]
    return tuple(slice(int(a), int(b) + 1) for a, b in zip(firsts, lasts, strict=True))


def _corners(grid: Grid) -> tuple[np.ndarray, np.ndarray]:
    """Per tile: the flattened position of lane 0 (as if the space went on outside), and a number
    for how it is clipped.
    """
    tiles = np.arange(grid.count)
    flat = np.zeros(grid.count, dtype=np.int64)
    edges = []
    for axis, index in enumerate(np.unravel_index(tiles, grid.shape)):
        residue, block = np.divmod(index, grid.blocks[axis])
        pitch, step, extent = (x[axis] for x in (grid.tile.pitch, grid.tile.step, grid.extents))
        place = residue + step * pitch * block
        first = grid.starts[axis] + place
        if grid.tile.wrap[axis]:
            edges.append(np.minimum(pitch, -(-(extent - place) // step)))
            first = first % extent
        flat = flat * extent + first
        edges.append(np.maximum(0, -(first // step)))
        edges.append(np.minimum(pitch, -(-(extent - first) // step)))
    return flat, combine_keys(np.uint64(3), edges).view(np.int64)
