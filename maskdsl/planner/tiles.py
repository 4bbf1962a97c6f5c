"""Tiles: boxes of coordinates, and the grid of them over a space."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from maskdsl.errors import PlanError

MAX_LANES = 4096


@dataclass(frozen=True)
class Tile:
    """A box of coordinates of one segment, per axis.

    size: lanes, a power of two. step: every step-th coordinate (a residue class). origin: where the
    grid of tiles starts. pitch: how many of the lanes hold tokens, where tiles lie closer than
    their size (7 of 8 lanes for windows of 7); the whole size where not given. wrap: whether the
    axis is cyclic, so that the tile which crosses its end goes on at its start (one truth value for
    all axes, or one each).
    """

    size: tuple[int, ...]
    step: tuple[int, ...] = ()
    origin: tuple[int, ...] = ()
    pitch: tuple[int, ...] = ()
    wrap: tuple[bool, ...] = ()

    def __post_init__(self) -> None:
        for name, default in (("size", ()), ("step", 1), ("origin", 0)):
            object.__setattr__(self, name, self._ints(name, getattr(self, name), default))
        pitch = () if self.pitch is None else self.pitch
        object.__setattr__(self, "pitch", self._ints("pitch", pitch, self.size))
        object.__setattr__(self, "wrap", self._flags(self.wrap))
        rank = len(self.size)
        if not rank:
            raise PlanError("a tile has one axis at least")
        if any(len(x) != rank for x in (self.step, self.origin, self.pitch, self.wrap)):
            raise PlanError("a tile's size, step, origin, pitch and wrap have one entry per axis")
        if any(n < 1 or n & (n - 1) for n in self.size):
            raise PlanError(f"a tile's sizes must be powers of two, not {self.size}")
        if any(n < 1 for n in self.step):
            raise PlanError(f"a tile's steps must be at least 1, not {self.step}")
        if any(not 1 <= p <= n for p, n in zip(self.pitch, self.size, strict=True)):
            raise PlanError(f"a tile's pitch lies between 1 and its size {self.size}: {self.pitch}")
        if self.lanes > MAX_LANES:
            raise PlanError(f"a tile of {self.lanes} lanes is larger than {MAX_LANES}")

    def _ints(self, name: str, value: Any, default: int | tuple[int, ...]) -> tuple[int, ...]:
        if isinstance(value, (int, np.integer)) and not isinstance(value, bool):
            value = (value,)
        try:
            exact = isinstance(value, (tuple, list, np.ndarray))
            exact = exact and not any(isinstance(v, (bool, np.bool_)) for v in value)
            ints = tuple(int(v) for v in value) if exact else ()
            exact = exact and all(i == v for i, v in zip(ints, value, strict=True))
        except (TypeError, ValueError, OverflowError):
            exact = False
        if not exact:
            raise PlanError(f"a tile's {name} must be ints, one per axis, not {value!r}"[:200])
        if not ints and name != "size":
            return default if isinstance(default, tuple) else (default,) * len(self.size)
        return ints

    def _flags(self, value: Any) -> tuple[bool, ...]:
        flags = (value,) * len(self.size) if isinstance(value, (bool, np.bool_)) else value
        try:
            flags = tuple(flags) or (False,) * len(self.size)
        except TypeError:
            flags = (value,)
        if not all(isinstance(f, (bool, np.bool_)) for f in flags):
            raise PlanError(f"a tile's wrap must be true or false, not {value!r}"[:200])
        return tuple(bool(f) for f in flags)

    @property
    def lanes(self) -> int:
        return math.prod(self.size)

    @property
    def span(self) -> tuple[int, ...]:
        """Per axis, from a tile of a residue class to the next one."""
        return tuple(p * s for p, s in zip(self.pitch, self.step, strict=True))

    def __str__(self) -> str:
        text = "x".join(map(str, self.size))
        if self.pitch != self.size:
            text = f"{'x'.join(map(str, self.pitch))} in {text} lanes"
        text += f" step {'x'.join(map(str, self.step))}" if any(s > 1 for s in self.step) else ""
        text += f" origin {','.join(map(str, self.origin))}" if any(self.origin) else ""
        axes = ",".join(str(i) for i, w in enumerate(self.wrap) if w)
        return text + (f" wrapping on axis {axes}" if axes else "")

    @staticmethod
    def of(value: Any, rank: int) -> Tile:
        """A Tile from a Tile, an int or a tuple of sizes. Raises PlanError."""
        tile = value if isinstance(value, Tile) else Tile(value)
        if len(tile.size) != rank:
            raise PlanError(f"a tile here has {rank} axes, not {len(tile.size)}: {tile.size}")
        return tile


def default_tile(extents: tuple[int, ...], lanes: int = 64) -> Tile:
    """A tile of about `lanes` lanes, as near to a cube as the extents allow, longer along the
    fastest axes.
    """
    size = [1] * len(extents)
    while math.prod(size) < lanes:
        room = [a for a, n in enumerate(extents) if size[a] < n]
        if not room:
            break
        axis = min(reversed(room), key=lambda a: size[a])
        size[axis] *= 2
    while math.prod(size) < 16:  # a matrix product needs 16 rows
        size[-1] *= 2
    return Tile(tuple(size))


@dataclass(frozen=True)
class Grid:
    """All tiles over a space. Tiles are numbered row-major, the last axis fastest; on an axis with
    a step, residue after residue.
    """

    tile: Tile
    extents: tuple[int, ...]

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """Coordinate of lane 0 of each axis's first tile: at most 0, but where the axis wraps."""
        return tuple(
            o % extent if wrap else -(-o % span)
            for o, span, wrap, extent in zip(
                self.tile.origin, self.tile.span, self.tile.wrap, self.extents, strict=True
            )
        )

    @cached_property
    def unrolled(self) -> Grid:
        """The grid over places instead of coordinates: a place is how far a coordinate lies from
        the origin, on axes that wrap; there tiles then start at 0 and do not wrap.
        """
        tile = self.tile
        if not any(tile.wrap):
            return self
        origin = tuple(0 if w else o for o, w in zip(tile.origin, tile.wrap, strict=True))
        return Grid(Tile(tile.size, tile.step, origin, tile.pitch), self.extents)

    @cached_property
    def blocks(self) -> tuple[int, ...]:
        """Tiles of one residue class per axis."""
        return tuple(
            -(-(extent - (0 if wrap else start)) // span)
            for extent, start, span, wrap in zip(
                self.extents, self.starts, self.tile.span, self.tile.wrap, strict=True
            )
        )

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """Tiles per axis."""
        return tuple(b * s for b, s in zip(self.blocks, self.tile.step, strict=True))

    @property
    def count(self) -> int:
        return math.prod(self.shape)

    @property
    def divisible(self) -> bool:
        """Whether every lane of every tile holds a token."""
        return self.tile.pitch == self.tile.size and all(
            extent % span == 0 and (wrap or start == 0)
            for extent, span, start, wrap in zip(
                self.extents, self.tile.span, self.starts, self.tile.wrap, strict=True
            )
        )

    def coordinates(self, tiles: np.ndarray) -> list[np.ndarray]:
        """Per axis, the coordinates (tiles, lanes) of flattened tile numbers; outside the extents
        where a lane holds no token.
        """
        lanes = np.unravel_index(np.arange(self.tile.lanes), self.tile.size)
        found = []
        for axis, index in enumerate(np.unravel_index(tiles, self.shape)):
            residue, block = np.divmod(index, self.blocks[axis])
            lane = lanes[axis][None, :]
            step, extent, start = self.tile.step[axis], self.extents[axis], self.starts[axis]
            place = residue[:, None] + step * (block[:, None] * self.tile.pitch[axis] + lane)
            outside = lane >= self.tile.pitch[axis]
            if self.tile.wrap[axis]:
                outside = outside | (place >= extent)
                place = (place + start) % extent - start
            found.append(np.where(outside, -1, start + place))
        return found

    def tokens(self, tiles: np.ndarray) -> np.ndarray:
        """Flattened positions (tiles, lanes) of flattened tile numbers; -1 where a lane holds no
        token.
        """
        flat = np.zeros((len(tiles), self.tile.lanes), dtype=np.int64)
        inside = np.ones_like(flat, dtype=bool)
        for c, extent in zip(self.coordinates(tiles), self.extents, strict=True):
            inside &= (c >= 0) & (c < extent)
            flat = flat * extent + c
        return np.where(inside, flat, -1)
