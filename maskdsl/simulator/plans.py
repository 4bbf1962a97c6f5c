"""What the simulator needs to know of a plan, and how it reads rows of tiles out of one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

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


def lanes_of(tile: TileLike | Sequence[TileLike]) -> tuple[int, ...]:
    """Lanes of the tiles of each segment."""
    return tuple(t.lanes for t in tile) if isinstance(tile, Sequence) else (tile.lanes,)
