"""What the loop over one kind of tile holds."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from maskdsl.codegen.boxes import Axis, all_of
from maskdsl.codegen.expressions import LINE, Printed, Statement
from maskdsl.codegen.operands import Operand, mask_of
from maskdsl.codegen.sides import Stage
from maskdsl.codegen.text import AND
from maskdsl.codegen.visits import Visits
from maskdsl.planner import Grid


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

    opening: lines that lead to a tile's first coordinates; depth: indentation of what follows,
    inner: from the loop's.
    inside: the variable that says which lanes hold tokens, or "".
    """

    kind: str
    comment: str
    opening: list[str]
    key: list[Statement]
    pair: list[Statement]
    coordinates: list[str]
    inside: str
    loads: list[Load]
    keep: list[str]
    masked: bool
    score: str
    slope: str
    depth: int
    inner: int
    addresses: bool  # whether each lane's address is worked out: where lanes wrap


@dataclass(frozen=True)
class Walked:
    """One segment that a kernel walks: axes and grid, what it reads of it, how expressions look
    there. by_boxes: whether descriptors load its tiles. implied: whether the pattern itself leaves
    out lanes past the edge. by_token: whether something else is loaded for each token. scored:
    whether scores are taken of lanes past the edge, which then may be anything.
    """

    side: str
    axes: list[Axis]
    grid: Grid
    operands: Sequence[Operand]
    printed: Printed
    by_boxes: bool
    implied: bool
    by_token: bool
    scored: bool


@dataclass(frozen=True)
class Table:
    """Names of the tables of one kind's visits, and of the row in them."""

    starts: str
    entries: str
    row: str


def loop_of(
    kind: str, w: Walked, opening: tuple[str, list[str], bool], score: str, slope: str, depth: int
) -> Loop:
    """The loop over full or partial tiles, by what its expressions read.

    opening: (comment, lines, whether outer coordinates are known before the innermost loop).
    depth: indentation of the loop.
    """
    partial = kind == "partial"
    printed = w.printed
    roots = [r for r in printed.roots if partial or r != "keep"]
    run, key, pair = (printed.of(s, *roots) for s in (Stage.RUN, Stage.KEY, Stage.PAIR))
    texts = " ".join([*(s.text for s in run + key + pair), *(printed.roots[r].text for r in roots)])
    addresses = partial and any(a.wrap for a in w.axes)
    bounded = partial and (w.by_token or w.scored or not w.by_boxes or not w.implied)
    used = [
        a
        for a in w.axes
        if addresses or re.search(rf"\b{a.name}\b", texts) or (bounded and a.inside)
    ]
    comment, lines, outer_first = opening
    last = w.axes[-1]
    early = [a for a in used if a is not last] if outer_first else []
    before = _coordinates(early, all_of(early) if bounded else "", "run_inside")
    before += [line for s in (run if outer_first else []) for line in s.lines(depth + 4)]
    late = [a for a in used if a not in early]
    tile_inside = all_of(late) if bounded else ""
    run_inside = bool(bounded and all_of(early))
    if run_inside and tile_inside:
        tile_inside = f"run_inside & ({tile_inside})"
    inside = f"{w.side}_inside" if tile_inside else "run_inside" if run_inside else ""
    nested = outer_first and lines[0].startswith("for ")
    inner = "    " if nested else ""
    opening_lines = [*lines[:-1], *(inner + x for x in before), lines[-1]]
    inner_depth = 8 if nested else 4
    depth += inner_depth
    kept_inside = "" if w.implied and not w.scored else inside
    keep = _keep(printed, kept_inside, depth) if partial else []
    return Loop(
        kind=kind,
        comment=comment,
        opening=opening_lines,
        key=[*(run if not outer_first else []), *key],
        pair=pair,
        coordinates=_coordinates(late, tile_inside, f"{w.side}_inside"),
        inside=inside,
        loads=_loads(w.operands, "" if w.by_boxes else inside),
        keep=keep,
        masked=bool(keep) or (partial and "keep" in roots),
        score=score,
        slope=slope,
        depth=depth,
        inner=inner_depth,
        addresses=addresses,
    )


def opening_of(
    kind: str, visits: Visits, table: Table, axes: list[Axis], grid: Grid
) -> tuple[str, list[str], bool]:
    """(comment, lines up to and with the innermost `for`, whether outer coordinates are known
    before it) of a loop over a table.
    """
    comment = f"{kind} tiles{_HOW[visits.mode]}" + (": nothing to mask" if kind == "full" else "")
    names = [a.first_name for a in axes]
    starts, entries, row = table.starts, table.entries, table.row
    spread = f"tl.load({starts} + {row}), tl.load({starts} + {row} + 1)"
    if visits.mode == "list":
        inner = visits.packing.lines(names, f"tl.load({entries} + at)", f"{axes[0].name[0]}_first")
        return comment, [f"for at in range({spread}):", *(f"    {x}" for x in inner)], False
    width = visits.width
    at = row if visits.mode == "run" else "run"
    place = [f"{entries} + {width} * {at}" + (f" + {i}" if i else "") for i in range(width)]
    lines = []
    if width == 3:
        lines = visits.packing.lines(names, f"tl.load({place[0]})", "run_first")
    low, high = (f"tl.load({x})" for x in place[-2:])
    if len(low) + len(high) > 56:
        lines += [f"run_low = {low}", f"run_high = {high}"]
        low, high = "run_low", "run_high"
    lines.append(f"for {names[-1]} in range({low}, {high}, {grid.tile.span[-1]}):")
    if visits.mode == "run":
        return comment, lines, True
    return comment, [f"for run in range({spread}):", *(f"    {x}" for x in lines)], True


_HOW = {"run": ", one run", "runs": ", run by run", "list": " in order"}


def _coordinates(axes: Sequence[Axis], inside: str, name: str) -> list[str]:
    """Lines with the coordinates of a tile's lanes on some axes."""
    lines = [f"{a.name} = {a.first_name} + {a.lane_name}" for a in axes]
    lines += [f"{name} = {inside}"] if inside else []
    lines += [f"{a.name} = {a.wrap}" for a in axes if a.wrap]
    return lines + [f"{a.name} = {a.clamp}" for a in axes if a.clamp]


def _loads(operands: Sequence[Operand], inside: str) -> list[Load]:
    found: list[Load] = []
    for x in operands:
        mask = "" if x.boxes else mask_of(inside, x.dim)
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
