"""What the simulator needs to know of a plan, and how it reads rows of tiles out of one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class TileLike(Protocol):
    @property
    def lanes(self) -> int: ...


class CountsLike(Protocol):
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

    `pairs` is None where an input decides.
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
    def tiles(self) -> CountsLike: ...
    @property
    def q_tiles(self) -> int: ...
    @property
    def kv_tiles(self) -> int: ...
    @property
    def head_classes(self) -> Sequence[HeadClassLike]: ...
    def row_counts(self, head: int, /) -> tuple[NDArray[np.int64], NDArray[np.int64]]: ...


def lanes_of(tile: TileLike | Sequence[TileLike]) -> int:
    """Lanes of a tile; of the largest one where every segment has its own."""
    return max(t.lanes for t in tile) if isinstance(tile, Sequence) else tile.lanes


@dataclass(frozen=True)
class Rows:
    """Rows of tiles grouped by what they visit: three int64 arrays of one length.

    `count[i]` rows visit `full[i]` full and `partial[i]` partial tiles each. One row is one query
    tile of one head of one batch entry, the work of one program of the kernel.
    """

    full: NDArray[np.int64]
    partial: NDArray[np.int64]
    count: NDArray[np.int64]

    @property
    def visited(self) -> int:
        """Tiles visited by all rows together."""
        return int(((self.full + self.partial) * self.count).sum())


def plan_rows(plan: PlanLike, copies: int) -> Rows:
    """The rows of all heads of `plan`, each repeated `copies` times (batch, equal heads)."""
    full, partial, count = [], [], []
    stride = plan.kv_tiles + 1
    for head_class in plan.head_classes:
        row_full, row_partial = plan.row_counts(head_class.heads[0])
        kinds, rows = np.unique(row_full * stride + row_partial, return_counts=True)
        full.append(kinds // stride)
        partial.append(kinds % stride)
        count.append(rows * len(head_class.heads) * copies)
    return Rows(np.concatenate(full), np.concatenate(partial), np.concatenate(count))


def dense_rows(plan: PlanLike, copies: int) -> Rows:
    """Attention without a mask: every tile full, of as many lanes, all of which hold tokens (but at
    the ends), however the plan lays out its own.
    """
    heads, queries, keys = plan.mask_shape
    one = np.ones(1, dtype=np.int64)
    rows = heads * copies * -(-queries // lanes_of(plan.q_tile))
    return Rows(one * -(-keys // lanes_of(plan.kv_tile)), one * 0, one * rows)
