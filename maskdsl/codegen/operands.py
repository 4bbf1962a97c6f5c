"""The tensors of tokens that a kernel loads tiles of and stores tiles to."""

from __future__ import annotations

from dataclasses import dataclass

from maskdsl.codegen.descriptors import Boxes


@dataclass(frozen=True)
class Dim:
    """A head dimension and the power of two lanes that hold it."""

    dim: int
    lanes: int
    dims: str

    @property
    def padded(self) -> bool:
        return self.dim != self.lanes


@dataclass(frozen=True)
class Operand:
    """A tensor of tokens that a program loads tiles of, or stores one to.

    name: of its arguments. tile: the variable with a tile of it. exist: the variable that says
    which elements of a tile exist. head: what the head adds to its address. lanes: the constant
    that counts a tile's tokens. boxes: how a descriptor sees it, or None for pointers. at: texts of
    a tile's place in the descriptor. segment, offset: its name, where there are
    several, and its first token.
    """

    name: str
    tile: str
    exist: str
    dim: Dim
    head: str
    lanes: str
    boxes: Boxes | None
    at: str
    segment: str = ""
    offset: int = 0

    @property
    def desc(self) -> str:
        """The argument with its descriptor: of one segment, where there are several."""
        return f"{self.name}_{self.segment}_desc" if self.segment else f"{self.name}_desc"

    @property
    def block(self) -> str:
        """The shape of a box, in text."""
        assert self.boxes is not None
        return ", ".join(map(str, self.boxes.block(self.dim.lanes)))

    @property
    def described(self) -> str:
        """What the launch passes: a descriptor."""
        assert self.boxes is not None
        tensor = f"{self.name}[:, :, {self.offset}:]" if self.offset else self.name
        extents = _tuple(self.boxes.extents)
        box = _tuple((*self.boxes.box, self.dim.lanes))
        return f"boxes({tensor}, {extents}, {box})"


def _tuple(numbers: tuple[int | str, ...]) -> str:
    return f"({', '.join(map(str, numbers))}{',' if len(numbers) == 1 else ''})"


def mask_of(lanes: str, dim: Dim) -> str:
    """Which elements of a tile exist: by its lanes inside the space, and by its dimensions."""
    parts = [f"{lanes}[:, None]"] if lanes else []
    if dim.padded:
        parts.append(f"{dim.dims}_inside[None, :]")
    return " & ".join(parts)
