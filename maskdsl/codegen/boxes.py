"""Text that turns tile numbers and lanes into coordinates and tokens, for one side of a plan."""

from __future__ import annotations

import math
from dataclasses import dataclass

from maskdsl.errors import CompileError
from maskdsl.planner import Grid
from maskdsl.planner.proofs import INT32

# variables of the templates that an axis's coordinate might be called like
RESERVED = frozenset(
    f"{side}_{word}"
    for side in "qk"
    for word in (
        "ptr", "strides", "lane", "token", "inside", "base", "offsets", "tile", "step", "first"
    )
)  # fmt: skip


@dataclass(frozen=True)
class Axis:
    """Texts of one axis.

    name: the variable with the coordinates of a tile's lanes. first_name: with that of lane 0.
    index, index_name: the tile's number on the axis, where a step needs it twice.
    first: coordinate of lane 0, from the tile's number. value: of each lane. lane, lane_name:
    offsets of the lanes.
    inside: that lanes hold a token of the space (nothing where proved).
    wrap, first_wrap: the coordinate, that of lane 0, brought back to the start of an axis that
    wraps; until then it may lie past the end.
    clamp: the coordinate moved inside, where it indexes memory.
    """

    name: str
    first_name: str
    index_name: str
    index: str
    first: str
    value: str
    lane: str
    lane_name: str
    inside: tuple[str, ...]
    wrap: str
    first_wrap: str
    clamp: str


def axes_of(
    side: str, names: tuple[str, ...], grid: Grid, home: bool, indexing: bool, block: str,
    open_size: str = "",
) -> list[Axis]:  # fmt: skip
    """One Axis per axis. home: whether a program holds one tile of this side, and does not walk
    them. indexing: whether coordinates index memory. block: the constant that counts lanes.
    open_size: the variable with the extent of the first axis, where that is open.
    """
    if grid.tile.lanes < 16:
        what = "queries" if side == "q" else "keys"
        raise CompileError(f"a kernel's tile needs at least 16 {what}, not {grid.tile}")
    found = []
    for i, (name, extent) in enumerate(zip(names, grid.extents, strict=True)):
        size, step, start = grid.tile.size[i], grid.tile.step[i], grid.starts[i]
        pitch, span = grid.tile.pitch[i], grid.tile.span[i]
        wraps = grid.tile.wrap[i] and start > 0
        if start + grid.blocks[i] * span + size * step >= INT32:
            raise CompileError(f"a kernel's axes are shorter than 2^31, not {extent}")
        variable = coordinate_name(side, name)
        index = _part("tile", math.prod(grid.shape[i + 1 :]), grid.shape[i], outermost=i == 0)
        index_name = f"{variable}_tile" if step > 1 and grid.blocks[i] > 1 else ""
        if index_name:
            blocks = grid.blocks[i]
            first = f"{index_name} // {blocks} + {index_name} % {blocks} * {span}"
        elif step > 1 or span == 1 or index == "0":
            first = index  # of one block the residue is all
        else:
            first = f"{index} * {span}"
        if start:
            shift = f" + {start}" if start > 0 else f" - {-start}"
            first = f"{first}{shift}" if first != "0" else str(start)
        place = _part(f"{side}_lane", math.prod(grid.tile.size[i + 1 :]), size, outermost=i == 0)
        lane = f"{place} * {step}" if step > 1 else place
        if size == 1:
            lane = f"tl.zeros([{block}], tl.int32)"
        lane_name = lane if lane == f"{side}_lane" else f"{side}_lane_{name}"
        bounds = []
        if pitch < size:
            bounds.append(f"{place} < {pitch}" if home else f"{lane_name} < {pitch * step}")
        if start < 0:
            bounds.append(f"{variable} >= 0")
        told = open_size if i == 0 else ""
        if told or extent % span or start < 0:
            end = told or (start + extent if wraps else extent)
            bounds.append(f"{variable} < {end}")
        last = f"{told} - 1" if told else extent - 1
        clamp = f"tl.minimum({variable}, {last})"
        clamp = f"tl.maximum({clamp}, 0)" if start < 0 else clamp
        found.append(
            Axis(
                name=variable,
                first_name=f"{variable}_first",
                index_name=index_name,
                index=index,
                first=first,
                value=f"{variable}_first + {lane}",
                lane=lane,
                lane_name=lane_name,
                inside=tuple(bounds),
                wrap=f"{variable} % {extent}" if wraps else "",
                first_wrap=f"{variable}_first % {extent}" if wraps else f"{variable}_first",
                clamp=clamp if bounds and indexing and not wraps else "",
            )
        )
    return found


def coordinate_name(side: str, axis: str) -> str:
    name = f"{side}_{axis}"
    return f"{name}_axis" if name in RESERVED or name.startswith((f"{side}_lane_",)) else name


def all_of(axes: list[Axis]) -> str:
    """That lanes hold tokens, on each of several axes; "" where proved."""
    parts = [part for a in axes for part in a.inside]
    return parts[0] if len(parts) == 1 else " & ".join(f"({part})" for part in parts)


def token(parts: list[str], grid: Grid, type_: str = "", offset: int = 0) -> str:
    """The flattened position of coordinates, in 64 bits where 32 do not do, then cast. offset: of
    the segment's first token.
    """
    reach = math.prod(e + n * s for e, n, s in zip(
        grid.extents, grid.tile.size, grid.tile.step, strict=True
    )) + offset  # fmt: skip
    text = parts[0] if reach < INT32 or parts[0] == "0" else f"{parts[0]}.to(tl.int64)"
    for part, extent in zip(parts[1:], grid.extents[1:], strict=True):
        if text == "0":
            text = part if reach < INT32 else f"{part}.to(tl.int64)"
            continue
        text = f"({text})" if " + " in text else text
        text = f"{text} * {extent}" + ("" if part == "0" else f" + {part}")
    if offset:
        text = f"{text} + {offset}"
    if type_:
        text = f"{text}.to({type_})" if text.isidentifier() else f"({text}).to({type_})"
    return text


def first_token(parts: list[str], grid: Grid, offset: int) -> str:
    """The flattened position of first coordinates, some perhaps plain numbers, in 64 bits."""
    return f"tl.cast({token(parts, grid, offset=offset)}, tl.int64)"


def lane_token(axes: list[Axis], grid: Grid, by_boxes: bool) -> str:
    """Flattened positions of a tile's lanes from its first one."""
    sizes = zip(axes, grid.tile.size, strict=True)
    names = [a.lane_name if n > 1 else "0" for a, n in sizes]
    return token(names, grid, "" if by_boxes else "OFFSETS")


def lane_span(grid: Grid) -> int:
    """Tokens from the first to the last lane of a tile. Raises CompileError past 32 bits."""
    span = 0
    for n, s, extent in zip(grid.tile.size, grid.tile.step, grid.extents, strict=True):
        span = span * extent + (n - 1) * s
    if span >= INT32:
        raise CompileError(
            f"a kernel's tile spans fewer than 2^31 tokens: {grid.tile} spans {span}"
        )
    return span


def _part(whole: str, inner: int, size: int, outermost: bool) -> str:
    """One digit of a mixed-radix number."""
    if size == 1:
        return "0"
    text = whole if inner == 1 else f"{whole} // {inner}"
    return text if outermost else f"{text} % {size}"
