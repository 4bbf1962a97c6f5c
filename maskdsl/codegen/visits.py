"""The tiles of one kind that the rows of a walk visit, as tables for a kernel's loop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from maskdsl.planner import Grid
from maskdsl.planner.proofs import INT32

LONG_RUN = 64  # mean tiles of a run, from which filling the pipeline for each run costs little
MANY = 2**24  # tiles, past which they are not listed one by one


@dataclass(frozen=True)
class Packing:
    """First coordinates of a tile on some axes, packed into the bits of one int: per axis (shift,
    bits, what to add).
    """

    fields: tuple[tuple[int, int, int], ...]

    @staticmethod
    def of(grid: Grid, axes: int) -> Packing:
        """For the first `axes` axes."""
        fields, shift = [], 0
        for axis in reversed(range(axes)):
            bits = max(int(places_of(grid, axis).max()), 1).bit_length()
            fields.append((shift, bits, grid.starts[axis]))
            shift += bits
        return Packing(tuple(reversed(fields)))

    @property
    def wide(self) -> bool:
        return sum(bits for _, bits, _ in self.fields) > 31

    def pack(self, grid: Grid, tiles: np.ndarray) -> np.ndarray:
        """One int for each flattened tile number, the axes not packed being of size 1."""
        shape = grid.shape[: len(self.fields)]
        found = np.zeros(len(tiles), dtype=np.int64)
        numbers = np.unravel_index(tiles, shape)
        for axis, (index, (shift, _, _)) in enumerate(zip(numbers, self.fields, strict=True)):
            found |= places_of(grid, axis)[index] << shift
        return found if self.wide else found.astype(np.int32)

    def texts(self, source: str) -> list[str]:
        """The first coordinate on each axis, from the variable with the packed int."""
        found = []
        for i, (shift, bits, start) in enumerate(self.fields):
            text = f"{source} >> {shift}" if shift else source
            text = f"{text} & {(1 << bits) - 1}" if i else text
            text = f"({text}).to(tl.int32)" if self.wide else text
            if start:
                text = f"({text})" if not text.isidentifier() else text
                text = f"{text} + {start}" if start > 0 else f"{text} - {-start}"
            found.append(text)
        return found

    def lines(self, names: Sequence[str], source: str, name: str) -> list[str]:
        """Lines that set the first coordinates from a packed int, the text `source`."""
        fields = self.texts(name)
        if len(fields) == 1 and fields[0].count(name) == 1:
            return [f"{names[0]} = {self.texts(source)[0]}"]
        texts = [f"{n} = {text}" for n, text in zip(names, fields, strict=False)]
        return [f"{name} = {source}", *texts]


@dataclass(frozen=True)
class Visits:
    """Tiles of one kind. mode: "none"; "run", at most one run a row; "runs"; or "list", tile by
    tile.

    starts: int32 (rows + 1,), where a row's entries start, unless mode is "run". entries: of a
    list, packed first coordinates; of runs, (first, end) on the last axis, after the packed first
    coordinates on the others where there are any. tiles: visited.
    """

    mode: str
    starts: np.ndarray | None
    entries: np.ndarray | None
    tiles: int
    packing: Packing

    @property
    def width(self) -> int:
        """Ints of an entry."""
        return 1 if self.mode == "list" else 2 + bool(self.packing.fields)


def visits_in(
    grid: Grid, row: np.ndarray, first: np.ndarray, count: np.ndarray, rows: int
) -> Visits:
    """Runs of tiles of a grid, sorted by row."""
    if not len(row):
        return Visits("none", None, None, 0, Packing(()))
    per_row = np.bincount(row, minlength=rows)
    tiles = int(count.sum())
    one = int(per_row.max()) == 1
    if not one and tiles < min(LONG_RUN * len(row), MANY):
        packing = Packing.of(grid, len(grid.shape))
        copies = np.repeat(np.arange(len(row)), count)
        tile = first[copies] + np.arange(tiles) - np.repeat(np.cumsum(count) - count, count)
        starts = _starts(np.bincount(row[copies], minlength=rows))
        return Visits("list", starts, packing.pack(grid, tile), tiles, packing)
    line, span = grid.shape[-1], grid.tile.span[-1]
    packing = Packing.of(grid, len(grid.shape) - 1)
    low = grid.starts[-1] + places_of(grid, len(grid.shape) - 1)[first % line]
    parts = [low, low + count * span]
    if packing.fields:
        parts = [packing.pack(grid, first // line), *parts]
    entries = np.stack(parts, 1)
    entries = entries if packing.wide or entries.max() >= INT32 else entries.astype(np.int32)
    if not one:
        return Visits("runs", _starts(per_row), entries, tiles, packing)
    of_rows = np.zeros((rows, entries.shape[1]), dtype=entries.dtype)
    of_rows[row] = entries
    return Visits("run", None, of_rows, tiles, packing)


def places_of(grid: Grid, axis: int) -> np.ndarray:
    """Of lane 0 of each tile of an axis, from the first tile's: int64 (tiles of the axis,)."""
    residue, block = np.divmod(np.arange(grid.shape[axis]), grid.blocks[axis])
    places: np.ndarray = residue + block * grid.tile.span[axis]
    return places


def _starts(counts: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
