"""What the loop over one kind of tile holds."""

from __future__ import annotations

import re
from dataclasses import dataclass

from maskdsl.codegen.boxes import Axis, all_of
from maskdsl.codegen.expressions import LINE, Printed, Statement
from maskdsl.codegen.sides import Stage
from maskdsl.codegen.text import AND
from maskdsl.codegen.walk import Visits


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
class Loop:
    """What the loop over one kind of tile holds; see templates/walk.j2."""

    kind: str
    mode: str
    comment: str
    run: list[Statement]
    key: list[Statement]
    pair: list[Statement]
    run_axes: list[Axis]
    tile_axes: list[Axis]
    run_inside: str
    k_inside: str
    k_mask: str
    v_mask: str
    keep: list[str]
    masked: bool
    depth: int  # indentation of the run
    addresses: bool  # whether each lane's address is worked out: where lanes wrap


def loop_of(
    kind: str, visits: Visits, printed: Printed, k_axes: list[Axis], head: Dim, value: Dim
) -> Loop:
    """The loop over full or partial tiles, by what its expressions read."""
    partial = kind == "partial"
    roots = [r for r in printed.roots if partial or r != "keep"]
    run, key, pair = (printed.of(s, *roots) for s in (Stage.RUN, Stage.KEY, Stage.PAIR))
    texts = " ".join([*(s.text for s in run + key + pair), *(printed.roots[r].text for r in roots)])
    addresses = partial and any(a.wrap for a in k_axes)
    used = [
        a
        for a in k_axes
        if addresses or re.search(rf"\b{a.name}\b", texts) or (partial and a.inside)
    ]
    last = k_axes[-1]
    run_axes = [a for a in used if a is not last]
    run_inside, k_inside = (all_of(x) if partial else "" for x in (run_axes, [last]))
    if run_inside and k_inside:
        k_inside = f"run_inside & ({k_inside})"
    inside = "k_inside" if k_inside else "run_inside" if run_inside else ""
    depth = 8 if visits.mode == "many" else 4
    return Loop(
        kind=kind,
        mode=visits.mode,
        comment=_LOOPS[kind, visits.mode],
        run=run,
        key=key,
        pair=pair,
        run_axes=run_axes,
        tile_axes=[a for a in used if a is last],
        run_inside=run_inside,
        k_inside=k_inside,
        k_mask=mask_of(inside, head),
        v_mask=mask_of(inside, value),
        keep=_keep(printed, inside, depth + 4) if partial else [],
        masked=bool(inside or "keep" in roots),
        depth=depth,
        addresses=addresses,
    )


def _keep(printed: Printed, inside: str, indent: int) -> list[str]:
    """`keep = ...`: the pattern, and that the keys are inside the space."""
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
