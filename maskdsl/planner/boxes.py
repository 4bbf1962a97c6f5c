"""Boxes of (query range x key range): where they lie, and what bounds say of them."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from maskdsl.ir import bounds, integers
from maskdsl.ir.box import Bound, combine_keys
from maskdsl.ir.integers import integer
from maskdsl.ir.nodes import Node, postorder
from maskdsl.ir.rewrite import substitute
from maskdsl.planner.tiles import Grid

CHUNK = 2**15  # boxes classified at a time: what stays in the caches
EMPTY, FULL, PARTIAL, MIXED, OUTSIDE = 0, 1, 2, 3, 4


@dataclass(frozen=True)
class Digit:
    """One part of a coordinate: which residue ("r"), which place in its class ("j"), and, where a
    tile's pitch is not its size, which lane of the tile ("l"): then "j" goes from tile to tile.
    """

    side: str
    axis: int
    part: str
    unit: int  # of one tile
    width: int  # of the root: a power of two of units


@dataclass(frozen=True)
class Side:
    """Queries or keys: axis names and the grid of tiles."""

    name: str  # "q" or "k"
    axes: tuple[str, ...]
    grid: Grid


class Space:
    """All pairs of a pattern under two grids of tiles, in places rather than coordinates where
    tiles wrap.

    A box is a row of `starts`, one place per digit, all boxes of a level having the same `widths`.
    """

    def __init__(self, keep: Node, queries: Side, keys: Side) -> None:
        self.keep = _unrolled(keep, queries, keys)
        self.sides = tuple(replace(s, grid=s.grid.unrolled) for s in (queries, keys))
        self.digits = tuple(d for side in self.sides for d in _digits(side))
        self._numbers = {(d.side, d.axis, d.part): i for i, d in enumerate(self.digits)}

    @cached_property
    def widths(self) -> np.ndarray:
        """Of the box that holds everything: int64 (digits,)."""
        return np.array([d.width for d in self.digits], dtype=np.int64)

    @cached_property
    def tile_widths(self) -> np.ndarray:
        """Of a pair of tiles: int64 (digits,)."""
        return np.array([d.unit for d in self.digits], dtype=np.int64)

    @cached_property
    def pair_widths(self) -> np.ndarray:
        """Of a single pair: int64 (digits,)."""
        laned = {(d.side, d.axis) for d in self.digits if d.part == "l"}
        places = [(d.side, d.axis) in laned and d.part == "j" for d in self.digits]
        return np.where(places, self.tile_widths, 1)

    def side(self, digit: Digit) -> Side:
        return self.sides[0 if digit.side == "q" else 1]

    def _clip(
        self, starts: np.ndarray, widths: np.ndarray
    ) -> tuple[dict[tuple[str, str], Bound], np.ndarray, np.ndarray, list[np.ndarray]]:
        """(coordinates, whether anything is inside, pairs inside (residues apart), what tells equal
        boxes apart)
        """
        size = len(starts)
        inside = np.ones(size, dtype=bool)
        pairs = np.ones(size, dtype=np.int64)
        coordinates, columns = {}, []
        for side in self.sides:
            for axis, name in enumerate(side.axes):
                r = self._digit(side.name, axis, "r")
                grid = side.grid
                step, start, extent = grid.tile.step[axis], grid.starts[axis], grid.extents[axis]
                first, end = self._places(starts, widths, side, axis)
                r_low = starts[:, r]
                r_high = np.minimum(r_low + widths[r], step) - 1
                j_low = np.maximum(first, -((start + r_high) // step))
                j_high = np.minimum(end, (extent - 1 - start - r_low) // step + 1)
                inside &= (r_high >= r_low) & (j_high > j_low)
                width, residues = np.maximum(j_high - j_low, 1), np.maximum(r_high - r_low + 1, 1)
                varying = {
                    (side.name, axis, "r"): (1, residues),
                    (side.name, axis, "j"): (step, width),
                }
                at = start + r_low + step * j_low
                coordinates[side.name, name] = bounds.lanes(at, varying, size)
                columns += [j_low - first, width]
                if widths[r] > 1:
                    columns.append(residues)
                    if extent % step or start % step:  # some residues are shorter than others
                        columns.append(r_low)
                pairs *= width
        return coordinates, inside, pairs, columns

    def _places(
        self, starts: np.ndarray, widths: np.ndarray, side: Side, axis: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """The half-open range of places of boxes on an axis, within their residue classes."""
        j = self._digit(side.name, axis, "j")
        pitch, size = side.grid.tile.pitch[axis], side.grid.tile.size[axis]
        if pitch == size:
            return starts[:, j], starts[:, j] + widths[j]
        lane = self._digit(side.name, axis, "l")
        if widths[lane] == size:
            return starts[:, j], starts[:, j] + widths[j]
        ends = np.minimum(starts[:, lane] + widths[lane], pitch)
        return starts[:, j] + starts[:, lane], starts[:, j] + ends

    def _digit(self, side: str, axis: int, part: str) -> int:
        return self._numbers[side, axis, part]

    def classify(
        self, starts: np.ndarray, widths: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """(kind, key of equal boxes, pairs where full, tiles) of boxes."""
        parts = range(0, max(len(starts), 1), CHUNK)
        found = [self._classify(starts[i : i + CHUNK], widths) for i in parts]
        if len(found) == 1:
            return found[0]
        kind, key, pairs, tiles = (np.concatenate(x) for x in zip(*found, strict=True))
        return kind, key, pairs, tiles

    def _classify(
        self, starts: np.ndarray, widths: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        coordinates, inside, area, columns = self._clip(starts, widths)
        always, possibly, term = bounds.truth_on(self.keep, coordinates, len(starts))
        certain = FULL if self.residues_apart(widths) else MIXED
        kind = np.where(always, certain, np.where(possibly, MIXED, EMPTY)).astype(np.int8)
        kind[~inside] = OUTSIDE
        tiles = np.ones(len(starts), dtype=np.int64)
        for low, high in self.tile_ranges(starts, widths):
            tiles *= np.maximum(high - low, 0)
        return kind, combine_keys(term, columns), np.where(kind == FULL, area, 0), tiles

    def residues_apart(self, widths: np.ndarray) -> bool:
        """Whether each box holds one residue per axis: only then are its tiles a plain product of
        ranges.
        """
        return all(w == 1 for d, w in zip(self.digits, widths, strict=True) if d.part == "r")

    def tile_ranges(
        self, starts: np.ndarray, widths: np.ndarray
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """Per digit, the half-open range of residues or blocks of tiles, clipped to the grid; of
        boxes of whole tiles.
        """
        ranges = []
        for i, d in enumerate(self.digits):
            grid = self.side(d).grid
            step, start, extent = (x[d.axis] for x in (grid.tile.step, grid.starts, grid.extents))
            low, high = starts[:, i], starts[:, i] + widths[i]
            if d.part == "r":
                ranges.append((low, np.minimum(high, step)))
                continue
            if d.part == "l":  # a tile's lanes stay together
                ranges.append((np.zeros_like(low), np.ones_like(low)))
                continue
            residue = self._digit(d.side, d.axis, "r")
            r = starts[:, residue] if widths[residue] == 1 else 0
            low = np.maximum(low, -((start + r) // step)) // d.unit
            high = np.minimum(high, (extent - 1 - start - r) // step + 1)
            ranges.append((low, -(-high // d.unit)))
        return ranges

    def lanes_of(
        self, side: Side, boxes: np.ndarray, single: bool
    ) -> tuple[list[np.ndarray], np.ndarray]:
        """Per axis the coordinates (boxes, lanes) of tiles (or of single places), and which lie
        inside.
        """
        grid = side.grid
        size = (1,) * len(side.axes) if single else grid.tile.size
        lanes = np.unravel_index(np.arange(math.prod(size)), size)
        inside = np.ones((len(boxes), math.prod(size)), dtype=bool)
        found = []
        for axis in range(len(side.axes)):
            r = boxes[:, self._digit(side.name, axis, "r")][:, None]
            lane = lanes[axis][None, :]
            if grid.tile.pitch[axis] != grid.tile.size[axis]:
                lane = lane + boxes[:, self._digit(side.name, axis, "l")][:, None]
                inside &= lane < grid.tile.pitch[axis]
            j = boxes[:, self._digit(side.name, axis, "j")][:, None] + lane
            c = grid.starts[axis] + r + grid.tile.step[axis] * j
            clipped = np.clip(c, 0, grid.extents[axis] - 1)  # bounds of nodes hold inside only
            inside &= c == clipped
            found.append(clipped)
        return found, inside


def _digits(side: Side) -> list[Digit]:
    found = []
    tile = side.grid.tile
    for axis in range(len(side.axes)):
        size, step, pitch = tile.size[axis], tile.step[axis], tile.pitch[axis]
        found.append(Digit(side.name, axis, "r", 1, 1 << (step - 1).bit_length()))
        if pitch != size:
            found.append(Digit(side.name, axis, "l", size, size))
        width = pitch << (side.grid.blocks[axis] - 1).bit_length()
        found.append(Digit(side.name, axis, "j", pitch, width))
    return found


def _unrolled(keep: Node, *sides: Side) -> Node:
    """In terms of places: a coordinate on an axis that wraps is (place + start) % extent."""
    rolled = {
        (side.name, name): (start, extent)
        for side in sides
        for name, start, extent, wrap in zip(
            side.axes, side.grid.starts, side.grid.extents, side.grid.tile.wrap, strict=True
        )
        if wrap and start
    }
    leaves = {}
    for node in postorder(keep) if rolled else ():
        if node.op == "coord" and node.value in rolled:
            start, extent = rolled[node.value]
            leaves[node] = integers.mod(integers.add(node, integer(start)), integer(extent))
    return substitute(keep, leaves) if leaves else keep
