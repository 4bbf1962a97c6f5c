"""Walks that a kernel works out itself from the number of its tile, without tables."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from maskdsl.codegen.expressions import Statement, print_roots
from maskdsl.codegen.walk import runs_of
from maskdsl.ir import integers
from maskdsl.ir.evaluate import evaluate_all
from maskdsl.ir.integers import integer
from maskdsl.ir.nodes import Node, postorder
from maskdsl.ir.rewrite import substitute
from maskdsl.planner import Grid, Plan
from maskdsl.planner.boxes import Side
from maskdsl.planner.closed import ClosedForm, closed_form

_ENDS = ("first", "full_first", "full_last", "last")


@dataclass(frozen=True)
class Closed:
    """Tiles first .. last - 1 of the only axis, of which full_first .. full_last - 1 are full.

    statements: what works them out. ends: their texts, by name. left, full, right: whether any row
    has partial tiles before the full ones, full ones, partial ones after them.
    """

    statements: tuple[Statement, ...]
    ends: dict[str, str]
    left: bool
    full: bool
    right: bool

    def openings(self, name: str, span: int) -> list[tuple[str, tuple[str, list[str], bool]]]:
        """Per kind (comment, the loop's head, False); `name` is the first coordinate of a tile."""
        first, full_first, full_last, last = (self.ends[n] for n in _ENDS)

        def count(low: str, high: str) -> str:
            low, high = (x if x == "0" else f"{x} * {span}" for x in (low, high))
            return f"for {name} in range({low}, {high}, {span}):"

        found = []
        if self.full:
            lines = [count(full_first, full_last)]
            found.append(("full", ("full tiles: nothing to mask", lines, False)))
        if self.left and self.right and self.full:
            many = f"{full_last} - {full_first}"
            lines = [
                f"for at in range({first}, {last} - ({many})):",
                f"    {name} = (at + tl.where(at < {full_first}, 0, {many})) * {span}",
            ]
            comment = "partial tiles, before and after the full ones"
            found.append(("partial", (comment, lines, False)))
        elif self.left or self.right:
            ends = (first, last)
            if self.full:
                ends = (first, full_first) if self.left else (full_last, last)
            found.append(("partial", ("partial tiles", [count(*ends)], False)))
        return found


def closed_walk(plan: Plan, home: str) -> Closed | None:
    """The closed form of a walk along one axis, or None where it has none or several bands."""
    if plan.program.segmented or len(plan.head_classes) > 1:
        return None
    queries, keys = plan.q_grid_, plan.kv_grid_
    own, other = (queries, keys) if home == "q" else (keys, queries)
    if not (_plain(queries) and _plain(keys)):
        return None
    form = _form(plan, home)
    if form is None or len(form.axes) > 1 or len(form.axes[0].bands) > 1:
        return None
    axis, band = form.axes[0], form.axes[0].bands[0]
    row, first, count, full = runs_of(plan.head_classes[0], home, 0, 0, (own, other))
    tiles = np.arange(own.count)
    leaves = {("tile", axis.query): tiles} if axis.query else {}
    for whole in (other.count, other.extents[0] // other.tile.size[0]):
        # tiles that cross the edge are never full to a kernel
        ends = dict(
            zip(_ENDS, (band.first, band.full_first, band.full_last, band.last), strict=True)
        )
        if whole < other.count:
            ends["full_last"] = _least(ends["full_last"], whole)
            ends["full_first"] = _least(ends["full_first"], whole)
        values = evaluate_all(tuple(ends.values()), leaves, {})
        spread = [np.broadcast_to(np.asarray(v), tiles.shape) for v in values]
        if _same(spread, row, first, count, full):
            return _printed(ends, axis.query, spread)
    return None


def _plain(grid: Grid) -> bool:
    tile = grid.tile
    return len(tile.size) == 1 and not any(tile.wrap) and grid.starts == (0,) and (
        tile.step == (1,) and tile.pitch == tile.size
    )  # fmt: skip


def _form(plan: Plan, home: str) -> ClosedForm | None:
    alike = plan.head_classes[0]
    if home == "q":
        form = alike.walks[0]
    else:
        program = plan.program
        queries, keys = program.query_axes[0][0], program.key_axes[0][0]
        swapped = {("q", queries): ("k", queries), ("k", keys): ("q", keys)}
        leaves = {
            n: integers.make("coord", (), n.low, n.high, swapped[n.value])
            for n in postorder(alike.keep)
            if n.op == "coord"
        }
        sides = (Side("q", (keys,), plan.kv_grid_), Side("k", (queries,), plan.q_grid_))
        form = closed_form(substitute(alike.keep, leaves), *sides)
    return form if isinstance(form, ClosedForm) else None


def _least(end: Node, most: int) -> Node:
    return integers.extreme("min", end, integer(most))


def _same(
    ends: list[np.ndarray], row: np.ndarray, first: np.ndarray, count: np.ndarray, full: np.ndarray
) -> bool:
    """Whether the ends give the runs."""
    low, full_low, full_high, high = ends
    rows = len(low)
    lowest, highest = np.full(rows, np.iinfo(np.int64).max), np.full(rows, -1)
    np.minimum.at(lowest, row, first)
    np.maximum.at(highest, row, first + count)
    some = highest >= 0
    visited = np.bincount(row, count, rows)
    whole = np.bincount(row[full], count[full], rows)
    starts = np.full(rows, np.iinfo(np.int64).max)
    np.minimum.at(starts, row[full], first[full])
    inside = (low <= full_low) & (full_low <= full_high) & (full_high <= high)
    return bool(
        np.all(inside | ~some)
        and np.all(visited == np.maximum(high - low, 0))
        and np.all((low == lowest)[some])
        and np.all(whole == np.maximum(full_high - full_low, 0))
        and np.all((full_low == starts)[whole > 0])
        and np.all((full_low == full_high)[whole == 0])
    )


def _printed(ends: dict[str, Node], axis: str | None, values: list[np.ndarray]) -> Closed:
    printed = print_roots(
        {name: (node, False) for name, node in ends.items()}, {("tile", axis or ""): "tile"}, ""
    )
    texts = {name: printed.plain[name].text for name in ends}
    names: dict[str, str] = {}
    for name, text in texts.items():
        if text.isidentifier():
            names.setdefault(text, name)

    def renamed(text: str) -> str:
        return re.sub(r"\bonce\d+\b", lambda m: names.get(m[0], f"end_{m[0]}"), text)

    low, full_low, full_high, high = values
    return Closed(
        tuple(
            Statement(s.stage, renamed(s.name), renamed(s.text), s.parts)
            for s in printed.statements
        ),
        {name: renamed(text) for name, text in texts.items()},
        left=bool((low < full_low).any()),
        full=bool((full_low < full_high).any()),
        right=bool((full_high < high).any()),
    )
