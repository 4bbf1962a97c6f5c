"""One axis of queries or keys under its tiles, in places rather than coordinates."""

from __future__ import annotations

from dataclasses import dataclass

from maskdsl.ir import integers
from maskdsl.ir.integers import MAX_EXTENT, integer
from maskdsl.ir.nodes import Node
from maskdsl.ir.program import Axes
from maskdsl.planner.monotone import least
from maskdsl.planner.tiles import Tile


@dataclass(frozen=True)
class Line:
    """A coordinate is start + residue + step * place; tile j of a residue class holds the places
    pitch * j .. pitch * (j + 1) - 1, as far as there are any.

    side: "q" or "k". extent: an int, or a symbol where it is open.
    """

    side: str
    name: str
    start: int
    step: int
    pitch: int
    extent: Node

    @property
    def blocks(self) -> Node:
        """Tiles of one residue class."""
        span = self.pitch * self.step
        up = integers.add(self.extent, integer(span - 1 - self.start))
        return integers.floordiv(up, integer(span))

    @property
    def tiles(self) -> Node:
        return integers.mul(integer(self.step), self.blocks)

    def coordinate(self, residue: Node, place: Node) -> Node:
        within = integers.add(residue, integers.mul(integer(self.step), place))
        return integers.add(integer(self.start), within)

    def lowest(self, residue: Node) -> Node:
        """The first place of a residue class that exists."""
        before = integers.add(integer(self.start), residue)
        return integers.neg(integers.floordiv(before, integer(self.step)))

    def highest(self, residue: Node) -> Node:
        """The last place of a residue class that exists."""
        last = integers.sub(self.extent, integers.add(integer(self.start + 1), residue))
        return integers.floordiv(last, integer(self.step))

    def leaf(self, what: str, high: int) -> Node:
        return integers.make("coord", (), 0, high, (what, self.name))

    @property
    def place(self) -> Node:
        """Any place of a tile, whether it exists or not, as a leaf that is never folded."""
        value = (f"{self.side} place", self.name)
        return Node("coord", "int", (), value, 0, self.blocks.high * self.pitch - 1)

    @property
    def all_hold_tokens(self) -> bool:
        """Whether every tile certainly holds a token."""
        residue = self.leaf("residue", self.step - 1)
        lowest, highest = self.lowest(residue), self.highest(residue)
        last = integers.mul(integer(self.pitch), integers.sub(self.blocks, integer(1)))
        some = least(integers.sub(highest, lowest), {}) >= 0
        return some and lowest.high < self.pitch and least(integers.sub(highest, last), {}) >= 0


def lines_of(side: str, axes: Axes, tile: Tile) -> list[Line]:
    """The lines of a side under tiles that do not wrap. Extents that are open are symbols, as in
    the pattern.
    """
    assert not any(tile.wrap)
    return [
        Line(side, name, -(-origin % span), step, pitch, _extent(name, extent))
        for (name, extent), origin, span, step, pitch in zip(
            axes, tile.origin, tile.span, tile.step, tile.pitch, strict=True
        )
    ]


def _extent(name: str, extent: int | None) -> Node:
    if extent is not None:
        return integer(extent)
    return Node("symbol", "int", (), f"{name}.size", 1, MAX_EXTENT)
