"""What the loop over one kind of tile holds."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from maskdsl.codegen.boxes import Axis, all_of
from maskdsl.codegen.expressions import LINE, Printed, Statement
from maskdsl.codegen.sides import Stage
from maskdsl.codegen.text import AND
from maskdsl.codegen.walk import Visits, Walk


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
    which elements of a tile exist. head: what the head adds to its address.
    """

    name: str
    tile: str
    exist: str
    dim: Dim
    head: str


@dataclass(frozen=True)
class Load:
    """A tile's load within a loop. mask: which elements exist ("" for all of them), or the variable
    of an earlier load with the same ones.
    """

    operand: Operand
    mask: str

    @property
    def named(self) -> bool:
        """Whether the mask is a variable made before."""
        return self.mask.isidentifier()


@dataclass(frozen=True)
class Loop:
    """What the loop over one kind of tile holds; see templates/walk.j2.

    inside: the variable that says which lanes hold tokens, or "".
    """

    kind: str
    mode: str
    comment: str
    offsets: str
    runs: str
    run: list[Statement]
    key: list[Statement]
    pair: list[Statement]
    run_axes: list[Axis]
    tile_axes: list[Axis]
    run_inside: str
    tile_inside: str
    inside: str
    loads: list[Load]
    keep: list[str]
    masked: bool
    depth: int  # indentation of the run
    addresses: bool  # whether each lane's address is worked out: where lanes wrap


def loop_of(
    kind: str, walk: Walk, printed: Printed, axes: list[Axis], operands: Sequence[Operand],
    depth: int,
) -> Loop:  # fmt: skip
    """The loop over full or partial tiles, by what its expressions read.

    axes: of the side that is walked. operands: what is loaded of each tile. depth: indentation.
    """
    visits: Visits = getattr(walk, kind)
    partial = kind == "partial"
    roots = [r for r in printed.roots if partial or r != "keep"]
    run, key, pair = (printed.of(s, *roots) for s in (Stage.RUN, Stage.KEY, Stage.PAIR))
    texts = " ".join([*(s.text for s in run + key + pair), *(printed.roots[r].text for r in roots)])
    addresses = partial and any(a.wrap for a in axes)
    used = [
        a for a in axes if addresses or re.search(rf"\b{a.name}\b", texts) or (partial and a.inside)
    ]
    last = axes[-1]
    run_axes = [a for a in used if a is not last]
    run_inside, tile_inside = (all_of(x) if partial else "" for x in (run_axes, [last]))
    if run_inside and tile_inside:
        tile_inside = f"run_inside & ({tile_inside})"
    away = "k" if walk.home == "q" else "q"
    inside = f"{away}_inside" if tile_inside else "run_inside" if run_inside else ""
    depth += 4 if visits.mode == "many" else 0
    return Loop(
        kind=kind,
        mode=visits.mode,
        comment=_LOOPS[kind, visits.mode],
        offsets=walk.table(f"{kind}_offsets"),
        runs=walk.table(f"{kind}_runs"),
        run=run,
        key=key,
        pair=pair,
        run_axes=run_axes,
        tile_axes=[a for a in used if a is last],
        run_inside=run_inside,
        tile_inside=tile_inside,
        inside=inside,
        loads=_loads(operands, inside),
        keep=_keep(printed, inside, depth + 4) if partial else [],
        masked=bool(inside or "keep" in roots),
        depth=depth,
        addresses=addresses,
    )


def _loads(operands: Sequence[Operand], inside: str) -> list[Load]:
    found: list[Load] = []
    for x in operands:
        mask = mask_of(inside, x.dim)
        same = (y.operand.exist for y in found if mask and y.mask == mask)
        found.append(Load(x, next(same, mask)))
    return found


def _keep(printed: Printed, inside: str, indent: int) -> list[str]:
    """`keep = ...`: the pattern, and that the lanes are inside the space."""
    text = printed.roots.get("keep")
    if text is None:
        return [f"keep = {inside}[None, :]"] if inside else []
    if text.text == "keep":
        return [f"keep &= {inside}[None, :]"] if inside else []
    whole = f"{text.within(AND)} & {inside}[None, :]" if inside else text.text
    if indent + len(f"keep = {whole}") <= LINE:
        return [f"keep = {whole}"]
    return [f"keep = {text.text}", *([f"keep &= {inside}[None, :]"] if inside else [])]


_LOOPS = {
    ("full", "one"): "full tiles, one run: nothing to mask",
    ("full", "many"): "full tiles, run by run: nothing to mask",
    ("partial", "one"): "partial tiles, one run",
    ("partial", "many"): "partial tiles, run by run",
}


def mask_of(lanes: str, dim: Dim) -> str:
    """Which elements of a tile exist: by its lanes inside the space, and by its dimensions."""
    parts = [f"{lanes}[:, None]"] if lanes else []
    if dim.padded:
        parts.append(f"{dim.dims}_inside[None, :]")
    return " & ".join(parts)
