"""What the simulator needs to know of a plan, and how it reads rows of tiles out of one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from maskdsl.errors import BindError

Counts = tuple[NDArray[np.int64], NDArray[np.int64]]


class TileLike(Protocol):
    @property
    def lanes(self) -> int: ...


class TileCountsLike(Protocol):
    @property
    def empty(self) -> int: ...
    @property
    def full(self) -> int: ...
    @property
    def partial(self) -> int: ...
    @property
    def total(self) -> int: ...


class HeadClassLike(Protocol):
    @property
    def heads(self) -> Sequence[int]: ...


class PlanLike(Protocol):
    """The part of `maskdsl.planner.Plan` that costs depend on.

    `pairs` is None where an input decides. A plan's `program` and the trees of its head classes are
    read too where it has them, for the cost of its mask.
    """

    @property
    def mask_shape(self) -> tuple[int, int, int]: ...
    @property
    def q_tile(self) -> TileLike | Sequence[TileLike]: ...
    @property
    def kv_tile(self) -> TileLike | Sequence[TileLike]: ...
    @property
    def pairs(self) -> int | None: ...
    @property
    def tiles(self) -> TileCountsLike: ...
    @property
    def q_tiles(self) -> int: ...
    @property
    def kv_tiles(self) -> int: ...
    @property
    def head_classes(self) -> Sequence[HeadClassLike]: ...
    def row_counts(self, head: int, /) -> Counts: ...


def lanes_of(tile: TileLike | Sequence[TileLike]) -> int:
    """Lanes of a tile; of the largest one where every segment has its own."""
    return max(t.lanes for t in tile) if isinstance(tile, Sequence) else tile.lanes


@dataclass(frozen=True)
class Rows:
    """Rows of tiles grouped by what they visit: three int64 arrays of one length.

    `count[i]` rows visit `full[i]` full and `partial[i]` partial tiles each. One row is one query
    tile (of a pass by key tiles: one key tile) of one head of one batch entry, the work of one
    program of the kernel.
    """

    full: NDArray[np.int64]
    partial: NDArray[np.int64]
    count: NDArray[np.int64]

    @property
    def number(self) -> int:
        return int(self.count.sum())

    @property
    def visited(self) -> int:
        """Tiles visited by all rows together."""
        return int(((self.full + self.partial) * self.count).sum())

    @property
    def heaviest(self) -> int:
        """Tiles visited by the row that visits most."""
        return int((self.full + self.partial).max(initial=0))

    def split(self, pieces: int) -> Rows:
        """Every row cut into so many, as even as they come."""
        if pieces == 1:
            return self
        turn = np.arange(pieces)[:, None]
        full = (self.full + turn) // pieces
        partial = (self.partial + turn[::-1]) // pieces
        return Rows(full.ravel(), partial.ravel(), np.tile(self.count, pieces))


def plan_rows(
    plan: PlanLike, copies: int, side: str = "q", only: NDArray[np.int64] | None = None
) -> Rows:
    """The rows of all heads of `plan`, each repeated `copies` times (batch, equal heads).

    side: "q" for rows of query tiles, "k" for rows of key tiles. only: the numbers of the query
    tiles wanted, all where None.
    """
    found = []
    for head_class in plan.head_classes:
        head = head_class.heads[0]
        full, partial = plan.row_counts(head) if side == "q" else _columns(plan, head)
        if only is not None:
            full, partial = full[only], partial[only]
        found.append([full, partial, np.full(len(full), len(head_class.heads) * copies)])
    full, partial, count = np.concatenate(found, axis=1)
    stride = int(partial.max(initial=0)) + 1
    kinds, place = np.unique(full * stride + partial, return_inverse=True)
    number = np.bincount(place.ravel(), weights=count, minlength=len(kinds)).astype(np.int64)
    return Rows(kinds // stride, kinds % stride, number)


def _columns(plan: Any, head: int) -> Counts:
    """(full, partial) tiles per key tile of one head: int64 (kv_tiles,) each."""
    if hasattr(plan, "column_counts"):
        counts: Counts = plan.column_counts(head)
        return counts
    runs = plan.class_of(head).runs
    found = []
    for kind in (runs.full, ~runs.full):
        steps = np.zeros(plan.kv_tiles + 1, dtype=np.int64)
        np.add.at(steps, runs.first[kind], 1)
        np.add.at(steps, (runs.first + runs.count)[kind], -1)
        found.append(np.cumsum(steps)[:-1])
    return found[0], found[1]


def dense_rows(tokens: int, lanes: int, walked_tokens: int, walked_lanes: int, heads: int) -> Rows:
    """Attention without a mask: every tile full, of as many lanes, all of which hold tokens (but at
    the ends), however a plan lays out its own. heads: over the whole batch.
    """
    one = np.ones(1, dtype=np.int64)
    rows = heads * -(-tokens // lanes)
    return Rows(one * -(-walked_tokens // walked_lanes), one * 0, one * rows)


def last_tiles(plan: Any, queries: int) -> NDArray[np.int64]:
    """The numbers of the query tiles that hold the last `queries` positions. Raises BindError."""
    total = plan.mask_shape[1]
    if queries > total:
        raise BindError(f"queries={queries}, but the mask has {total}")
    if queries < total and not plan.program.shared:
        raise BindError("only a space that queries and keys share can have fewer queries")
    found, before = [np.zeros(0, dtype=np.int64)], 0
    for segment, grid in zip(plan.program.queries, plan.q_grids, strict=True):
        numbers = np.arange(grid.count)
        if segment.offset + segment.tokens > total - queries:
            if len(segment.axes) == 1 and max(grid.tile.step) == 1 and not any(grid.tile.wrap):
                numbers = numbers[-(-(-queries // min(grid.tile.pitch)) + 1) :]
            tokens = grid.tokens(numbers)
            inside = (tokens >= 0) & (tokens + segment.offset >= total - queries)
            found.append(numbers[inside.any(1)] + before)
        before += grid.count
    return np.concatenate(found)
