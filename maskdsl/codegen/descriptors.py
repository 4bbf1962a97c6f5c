"""Which tiles are boxes of a tensor that a descriptor loads and stores whole, and how.

A tensor (batch, heads, tokens, dim) is seen with its tokens along the segment's axes, so that a
tile of several axes is one box of it: no pass over memory to bring its tokens together. An axis
with a step is seen as two, place and residue.
"""

from __future__ import annotations

from dataclasses import dataclass

from maskdsl.codegen.boxes import Axis
from maskdsl.planner import Grid
from maskdsl.planner.proofs import INT32

MAX_RANK = 5
MAX_SIDE = 256


@dataclass(frozen=True)
class Boxes:
    """Tiles of one side as boxes.

    extents: of the tensor's axes between heads and dim, row-major over the tokens, or the variable
    that holds one. box: sides of a
    tile along them. at: texts of its first coordinates. merged: whether batch and heads are one
    axis, because a descriptor has five at most.
    """

    extents: tuple[int | str, ...]
    box: tuple[int, ...]
    at: tuple[str, ...]
    merged: bool

    def block(self, lanes: int) -> tuple[int, ...]:
        """The shape of a loaded box, with so many lanes of dim."""
        return (*((1,) if self.merged else (1, 1)), *self.box, lanes)


def boxes_of(axes: list[Axis], grid: Grid) -> Boxes | None:
    """The boxes of a grid, or None where its tiles are not boxes of whole lanes."""
    tile = grid.tile
    if any(tile.wrap) or tile.pitch != tile.size or max(tile.size) > MAX_SIDE:
        return None
    extents: list[int | str] = []
    box: list[int] = []
    at: list[str] = []
    for axis, size, step, extent, start in zip(
        axes, tile.size, tile.step, grid.extents, grid.starts, strict=True
    ):
        if extent >= INT32:
            return None
        if step == 1:
            extents.append(extent)
            box.append(size)
            at.append(axis.first_name)
            continue
        if extent % step or start:
            return None
        extents += [extent // step, step]
        box += [size, 1]
        at += [f"{axis.first_name} // {step}", f"{axis.first_name} % {step}"]
    merged = len(extents) + 3 > MAX_RANK
    if len(extents) + 3 - merged > MAX_RANK:
        return None
    return Boxes(tuple(extents), tuple(box), tuple(at), merged)
