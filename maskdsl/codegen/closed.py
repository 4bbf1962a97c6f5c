"""Walks that a kernel works out itself from the number of its tile, without tables."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from maskdsl.codegen.bounded import LONGEST, bounded
from maskdsl.codegen.expressions import Statement, print_roots
from maskdsl.codegen.walk import runs_of
from maskdsl.ir import integers
from maskdsl.ir.evaluate import evaluate_all
from maskdsl.ir.integers import MAX_EXTENT, integer, make
from maskdsl.ir.nodes import Node, postorder
from maskdsl.ir.program import Block
from maskdsl.ir.rewrite import substitute
from maskdsl.planner import Grid, Plan
from maskdsl.planner.axis_walk import AxisWalk, Band
from maskdsl.planner.boxes import Side
from maskdsl.planner.closed import ClosedForm, closed_form, open_form

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
    helpers: frozenset[str] = frozenset()

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
    own, other = _grids(plan, home)
    if not (_plain(own) and _plain(other)):
        return None
    form = _form(plan, home)
    if form is None or len(form.axes) > 1 or len(form.axes[0].bands) > 1:
        return None
    axis, band = form.axes[0], form.axes[0].bands[0]
    row, first, count, full = runs_of(plan.head_classes[0], home, 0, 0, (own, other))
    tiles = np.arange(own.count)
    leaves = {("tile", axis.query): tiles} if axis.query else {}
    for whole in (other.count, other.extents[0] // other.tile.size[0]):
        ends = _ends(band, None if whole == other.count else integer(whole))
        values = evaluate_all(tuple(ends.values()), leaves, {})
        spread = [np.broadcast_to(np.asarray(v), tiles.shape) for v in values]
        if _same(spread, row, first, count, full):
            low, full_low, full_high, high = spread
            return _printed(
                ends, {("tile", axis.query or ""): "tile"}, bool((low < full_low).any()),
                bool((full_low < full_high).any()), bool((full_high < high).any()),
            )  # fmt: skip
    return None


def open_walk(block: Block, plan: Plan, home: str) -> Closed | str:
    """The closed form of a walk for all extents that are open in `block`, under the tiles of a plan
    of bound ones; or why there is none.
    """
    found = _open_ends(block, plan, home)
    if isinstance(found, str):
        return found
    axis, band, ends = found
    tiles = LONGEST // _grids(plan, home)[0].tile.size[0] + 1
    both = (*block.axes("q"), *block.axes("k"))
    names = {("size", n): f"{n}_size" for n, _ in both}
    return _printed(
        {name: bounded(end, tiles) for name, end in ends.items()},
        names | {("tile", axis.query or ""): "tile"},
        left=band.first != band.full_first,
        full=band.full_first != band.full_last,
        right=True,  # the last tile may cross the edge
    )


def never_empty(block: Block, plan: Plan) -> bool:
    """Whether each query keeps a key, whatever the extents that are open."""
    form = _open_form(block, plan, "q")
    return isinstance(form, ClosedForm) and form.no_empty_row


def serves(block: Block, plan: Plan, home: str) -> bool:
    """Whether the closed form for all extents gives the walk of a plan of bound ones."""
    found = _open_ends(block, plan, home)
    if isinstance(found, str) or len(plan.head_classes) > 1:
        return False
    axis, _, ends = found
    own, other = _grids(plan, home)
    extents = {n: extent for g, (n, _) in zip(
        (plan.q_grid_, plan.kv_grid_), (block.axes("q")[0], block.axes("k")[0]), strict=True
    ) for extent in g.extents}  # fmt: skip
    sizes = {
        n: integer(extents[n.value.removesuffix(".size")])
        for n in postorder(*ends.values())
        if n.op == "symbol"
    }
    tiles = np.arange(own.count)
    leaves = {("tile", axis.query): tiles} if axis.query else {}
    values = evaluate_all(tuple(substitute(n, sizes) for n in ends.values()), leaves, {})
    spread = [np.broadcast_to(np.asarray(v), tiles.shape) for v in values]
    return _same(spread, *runs_of(plan.head_classes[0], home, 0, 0, (own, other)))


def _open_ends(block: Block, plan: Plan, home: str) -> tuple[AxisWalk, Band, dict[str, Node]] | str:
    own, other = _grids(plan, home)
    if not (_plain(own) and _plain(other)):
        return "tiles have steps, pitches or origins"
    form = _open_form(block, plan, home)
    if isinstance(form, str):
        return form
    if len(form.axes[0].bands) > 1:
        return "it has several bands"
    axis, band = form.axes[0], form.axes[0].bands[0]
    ((name, extent),) = block.axes("k" if home == "q" else "q")
    size = integer(extent) if extent else make("symbol", (), 1, MAX_EXTENT, f"{name}.size")
    return axis, band, _ends(band, integers.floordiv(size, integer(other.tile.size[0])))


def _open_form(block: Block, plan: Plan, home: str) -> ClosedForm | str:
    queries, keys = block.axes("q"), block.axes("k")
    if home == "q":
        return open_form(block.keep, queries, keys, plan.q_grid_.tile, plan.kv_grid_.tile)
    keep = _swapped(block.keep, queries[0][0], keys[0][0])
    return open_form(keep, keys, queries, plan.kv_grid_.tile, plan.q_grid_.tile)


def _ends(band: Band, whole: Node | None) -> dict[str, Node]:
    """By name. whole: tiles that do not cross the edge: to a kernel no others are full."""
    full_first, full_last = band.full_first, band.full_last
    if whole is not None:
        full_first, full_last = (
            integers.extreme("min", end, whole) for end in (full_first, full_last)
        )
    return dict(zip(_ENDS, (band.first, full_first, full_last, band.last), strict=True))


def _grids(plan: Plan, home: str) -> tuple[Grid, Grid]:
    """Of the side that a program holds, and of the other one."""
    grids = plan.q_grid_, plan.kv_grid_
    return grids if home == "q" else (grids[1], grids[0])


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
        sides = (Side("q", (keys,), plan.kv_grid_), Side("k", (queries,), plan.q_grid_))
        form = closed_form(_swapped(alike.keep, queries, keys), *sides)
    return form if isinstance(form, ClosedForm) else None


def _swapped(keep: Node, queries: str, keys: str) -> Node:
    """The expression with queries for keys, and keys for queries."""
    sides = {("q", queries): ("k", queries), ("k", keys): ("q", keys)}
    leaves = {
        n: make("coord", (), n.low, n.high, sides[n.value])
        for n in postorder(keep)
        if n.op == "coord"
    }
    return substitute(keep, leaves)


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


def _printed(
    ends: dict[str, Node], coordinates: Mapping[tuple[str, str], str], left: bool, full: bool,
    right: bool,
) -> Closed:  # fmt: skip
    printed = print_roots({name: (node, False) for name, node in ends.items()}, coordinates, "")
    texts = {name: printed.plain[name].text for name in ends}
    names: dict[str, str] = {}
    for name, text in texts.items():
        if text.isidentifier():
            names.setdefault(text, name)

    def renamed(text: str) -> str:
        return re.sub(r"\bonce\d+\b", lambda m: names.get(m[0], f"end_{m[0]}"), text)

    statements = tuple(
        Statement(s.stage, renamed(s.name), renamed(s.text), s.parts) for s in printed.statements
    )
    found = {name: renamed(text) for name, text in texts.items()}
    return Closed(statements, found, left, full, right, frozenset(printed.helpers))
