"""Rows of tiles: what each program of a kernel has to do."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from maskdsl.errors import BindError
from maskdsl.simulator.plans import PlanLike

Numbers = NDArray[np.int64]


@dataclass(frozen=True)
class Rows:
    """Rows of one segment, grouped by what they visit.

    `count[i]` rows visit `full[i, j]` full and `partial[i, j]` partial tiles of segment `j` of the
    other side each: int64 (kinds,) and (kinds, segments). One row is one query tile (of a pass by
    key tiles: one key tile) of one head of one batch entry, the work of one program of the kernel.
    """

    full: Numbers
    partial: Numbers
    count: Numbers

    @property
    def number(self) -> int:
        return int(self.count.sum())

    @property
    def visits(self) -> Numbers:
        """Tiles that one row of each kind visits: int64 (kinds,)."""
        found: Numbers = (self.full + self.partial).sum(1)
        return found

    @property
    def tiles(self) -> Numbers:
        """Tiles of each segment that all rows visit together: int64 (segments,)."""
        found: Numbers = ((self.full + self.partial) * self.count[:, None]).sum(0)
        return found

    @property
    def visited(self) -> int:
        """Tiles visited by all rows together."""
        return int(self.tiles.sum())

    @property
    def full_tiles(self) -> int:
        """Full ones among them."""
        return int((self.full * self.count[:, None]).sum())

    @property
    def heaviest(self) -> int:
        """Tiles visited by the row that visits most."""
        return int(self.visits.max(initial=0))

    def split(self, pieces: int) -> Rows:
        """Every row cut into so many, as even as they come."""
        if pieces == 1:
            return self
        turn = np.arange(pieces)[:, None, None]
        parts = ((self.full + turn) // pieces, (self.partial + turn[::-1]) // pieces)
        full, partial = (x.reshape(-1, x.shape[-1]) for x in parts)
        return Rows(full, partial, np.tile(self.count, pieces))


def plan_rows(
    plan: PlanLike,
    copies: int,
    side: str = "q",
    group: int = 1,
    only: Sequence[Numbers] | None = None,
) -> tuple[Rows, ...]:
    """The rows of all heads of `plan` by segment, each repeated `copies` times (batch, equal
    heads).

    side: "q" for rows of query tiles, "k" for rows of key tiles. group: heads of queries that share
    a row of key tiles, which visits the tiles of all of them. only: by segment the numbers of the
    query tiles wanted, all where None.
    """
    by_class = [_visits(plan, c, side) for c in plan.head_classes]
    shared = group if side == "k" else 1
    found = []
    for segment in range(len(by_class[0])):
        parts = []
        for members, count in _together(plan, shared, copies):
            both = [sum(x) for x in zip(*(by_class[i][segment] for i in members), strict=True)]
            if only is not None:
                both = [x[only[segment]] for x in both]
            parts.append((*both, np.full(len(both[0]), count)))
        found.append(_grouped(*(np.concatenate(x) for x in zip(*parts, strict=True))))
    return tuple(found)


def _together(plan: PlanLike, group: int, copies: int) -> list[tuple[tuple[int, ...], int]]:
    """(head classes of the heads that share a row, rows that are so): one class each for groups
    of 1.
    """
    classes = plan.head_classes
    if group == 1:
        return [((i,), len(c.heads) * copies) for i, c in enumerate(classes)]
    if len(classes) == 1:
        return [((0,) * group, len(classes[0].heads) * copies // group)]
    class_of = np.empty(plan.mask_shape[0], dtype=np.int64)
    for number, alike in enumerate(classes):
        class_of[list(alike.heads)] = number
    members, count = np.unique(class_of.reshape(-1, group), axis=0, return_counts=True)
    return [(tuple(m), int(n) * copies) for m, n in zip(members.tolist(), count, strict=True)]


def _visits(plan: Any, head_class: Any, side: str) -> list[tuple[Numbers, Numbers]]:
    """(full, partial) tiles per row of one head, by segment: int64 (rows, other segments) each."""
    if not hasattr(head_class, "trees"):
        counts = plan.row_counts if side == "q" else plan.column_counts
        full, partial = counts(head_class.heads[0])
        return [(full[:, None], partial[:, None])]
    rows, columns = head_class.row_starts, head_class.column_starts
    runs = head_class.runs
    row, kinds = runs.row_of(), (runs.full, ~runs.full)
    if side == "q":
        starts, shape = rows, (rows[-1], len(columns) - 1)
        at = row * shape[1] + np.searchsorted(columns, runs.first, side="right") - 1
        both = [
            np.bincount(at[kind], weights=runs.count[kind], minlength=shape[0] * shape[1])
            for kind in kinds
        ]
        full, partial = (x.astype(np.int64).reshape(shape) for x in both)
    else:
        starts, shape = columns, (columns[-1], len(rows) - 1)
        segment = np.searchsorted(rows, row, side="right") - 1
        both = []
        for kind in kinds:
            steps = np.zeros((shape[0] + 1, shape[1]), dtype=np.int64)
            first, count = runs.first[kind], runs.count[kind]
            np.add.at(steps, (first, segment[kind]), 1)
            np.add.at(steps, (first + count, segment[kind]), -1)
            both.append(np.cumsum(steps, axis=0)[:-1])
        full, partial = both
    return [(full[a:b], partial[a:b]) for a, b in itertools.pairwise(starts)]


def _grouped(full: Numbers, partial: Numbers, count: Numbers) -> Rows:
    """Rows that visit the same numbers of tiles as one kind."""
    kind = np.zeros(len(count), dtype=np.int64)
    for column in (*full.T, *partial.T):
        stride = int(column.max(initial=0)) + 1
        kind = np.unique(kind * stride + column, return_inverse=True)[1].ravel()
    _, first = np.unique(kind, return_index=True)
    number = np.bincount(kind, weights=count, minlength=len(first)).astype(np.int64)
    return Rows(full[first], partial[first], number)


def dense_rows(tokens: int, lanes: int, walked_tokens: int, walked_lanes: int, heads: int) -> Rows:
    """Attention without a mask: every tile full, of as many lanes, all of which hold tokens (but at
    the ends), however a plan lays out its own. heads: over the whole batch.
    """
    visited = np.full((1, 1), -(-walked_tokens // walked_lanes))
    return Rows(visited, visited * 0, np.array([heads * -(-tokens // lanes)]))


def last_tiles(plan: Any, queries: int) -> list[Numbers]:
    """By segment the numbers of the query tiles that hold the last `queries` positions. Raises
    BindError.
    """
    total = plan.mask_shape[1]
    if queries > total:
        raise BindError(f"queries={queries}, but the mask has {total}")
    if queries < total and not plan.program.shared:
        raise BindError("only a space that queries and keys share can have fewer queries")
    found = []
    for segment, grid in zip(plan.program.queries, plan.q_grids, strict=True):
        first = max(0, total - queries - segment.offset)
        # Tiles are numbered line after line of the first axis: those of earlier lines are left out.
        inner = math.prod(grid.shape[1:])
        residue, block = np.divmod(np.arange(grid.shape[0]), grid.blocks[0])
        span = grid.tile.pitch[0] * block + grid.tile.size[0]
        ends = grid.starts[0] + residue + grid.tile.step[0] * span
        line = first // (segment.tokens // segment.shape[0])
        late = np.flatnonzero((ends > line) | grid.tile.wrap[0])
        numbers = (late[:, None] * inner + np.arange(inner)).ravel()
        tokens = grid.tokens(numbers)
        inside = (tokens >= 0) & (tokens + segment.offset >= total - queries)
        found.append(numbers[inside.any(1)])
    return found
