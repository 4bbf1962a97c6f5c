"""How a kernel walks its plan, as data: the order of the rows, and what each visits.

A row is a tile of the side that a program holds (home): of queries, with the key tiles it visits,
or of keys, with those of queries. Each segment of a side is walked by a kernel of its own.

Full visits hold only tiles with all their lanes inside the space: those that cross an edge are
walked with the partial ones, so that the loop over full tiles needs neither masks nor bounds.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from maskdsl.codegen.visits import Packing, Visits, places_of, visits_in
from maskdsl.planner import Grid, HeadClass, Plan
from maskdsl.planner.rows import Placed, unfold
from maskdsl.planner.transpose import transposed

EVEN = 1.25  # longest row over the mean, up to which rows are walked as they lie
PARTIAL_COST = 1.5  # of a partial tile, in full ones: only the order of the rows depends on it


@dataclass(frozen=True)
class Walk:
    """rows: int32 (classes * tiles,), the home tile of each row of the walk, per head class the
    longest first (as they lie where they are even).

    home: "q" or "k". segment: of that side. head_class: int32 (heads,). visits: per segment of the
    other side and kind ("full", "partial"). even: whether all rows are as long.
    """

    home: str
    segment: int
    prefix: str
    rows: np.ndarray
    head_class: np.ndarray
    classes: int
    names: tuple[str, ...]
    visits: tuple[dict[str, Visits], ...]
    even: bool

    @cached_property
    def order(self) -> str:
        """`given` as tiles lie, `reversed`, or `table`."""
        if self.classes == 1 and bool(np.all(np.diff(self.rows) == 1)):
            return "given"
        if self.classes == 1 and bool(np.all(np.diff(self.rows) == -1)):
            return "reversed"
        return "table"

    def table(self, name: str, away: int | None = None) -> str:
        """The argument's name: tables of the transposed walk stand beside the others."""
        return f"{self.prefix}{self.names[away] if away is not None else ''}{name}"

    def tables(self) -> dict[str, np.ndarray]:
        """The arguments of the kernel, by name, int32 (int64 where 32 bits do not hold them)."""
        found: dict[str, np.ndarray] = {}
        if self.classes > 1:
            found["head_class"] = self.head_class
        if self.order == "table":
            found[self.table("rows")] = self.rows
        for away, kinds in enumerate(self.visits):
            for kind, visits in kinds.items():
                if visits.starts is not None:
                    found[self.table(f"{kind}_starts", away)] = visits.starts
                if visits.entries is not None:
                    what = "tiles" if visits.mode == "list" else "runs"
                    found[self.table(f"{kind}_{what}", away)] = visits.entries.reshape(-1)
        return found

    def as_it_lies(self) -> Walk:
        """The same walk, its rows in the order of their tiles."""
        return replace(self, rows=np.arange(len(self.rows), dtype=np.int32), even=True)

    def without_tables(self, mode: str, always: bool) -> Walk:
        """The same walk where a kernel needs no tables of what it visits, but works it out
        ("closed") or is told at the call ("inputs"). always: kinds that this plan lacks, too.
        """
        found = []
        for kinds in self.visits:
            modes = {k: mode if v.tiles or always else "none" for k, v in kinds.items()}
            found.append(
                {k: Visits(modes[k], None, None, v.tiles, Packing(())) for k, v in kinds.items()}
            )
        return replace(self, visits=tuple(found))


def make_walk(plan: Plan, home: str = "q", segment: int = 0) -> Walk:
    """The rows of all head classes, one after the other.

    home: "q" for rows of query tiles, "k" for rows of key tiles. segment: of that side.
    """
    program = plan.program
    own, other = (plan.q_grids, plan.kv_grids) if home == "q" else (plan.kv_grids, plan.q_grids)
    segments, others = program.queries, program.keys
    if home == "k":
        segments, others = others, segments
    tiles = own[segment].count
    lengths: list[np.ndarray] = []
    found = []
    for alike in plan.head_classes:
        runs = [
            runs_of(alike, home, segment, away, (own[segment], grid))
            for away, grid in enumerate(other)
        ]
        found.append(runs)
        cost = np.zeros(tiles)
        for row, _, count, full in runs:
            cost += np.bincount(row, count * np.where(full, 1.0, PARTIAL_COST), minlength=tiles)
        lengths.append(cost)
    if home == "k" and program.heads > program.kv_heads:
        # a program sums over all query heads of a key head, whose classes may differ
        weights = [len(c.heads) for c in plan.head_classes]
        together = np.sum([n * x for n, x in zip(weights, lengths, strict=True)], axis=0)
        lengths = [together] * len(lengths)
    order = []
    for number, cost in enumerate(lengths):
        even = cost.max() <= EVEN * cost.mean()
        longest = np.arange(tiles) if even else _longest_first(cost)
        rank = np.empty(tiles, dtype=np.int64)
        rank[longest] = np.arange(tiles)
        order.append(longest)
        found[number] = [(number * tiles + rank[r], f, c, x) for r, f, c, x in found[number]]
    head_class = np.zeros(program.heads, dtype=np.int32)
    for number, alike in enumerate(plan.head_classes):
        head_class[list(alike.heads)] = number
    cost = np.concatenate(lengths)
    several = program.segmented
    return Walk(
        home=home,
        segment=segment,
        prefix=("key_" if home == "k" else "") + (f"{segments[segment].name}_" if several else ""),
        rows=np.concatenate(order).astype(np.int32),
        head_class=head_class,
        classes=len(plan.head_classes),
        names=tuple(f"{s.name}_" if several else "" for s in others),
        visits=tuple(
            _kinds(grid, [runs[away] for runs in found], tiles * len(found))
            for away, grid in enumerate(other)
        ),
        even=bool(cost.max() <= EVEN * cost.mean()),
    )


def _longest_first(cost: np.ndarray) -> np.ndarray:
    """Indices by falling cost; simply backwards where that is as good, for it needs no table."""
    backwards = cost[::-1]
    if bool(np.all(np.diff(backwards) <= 0)):
        return np.arange(len(cost))[::-1]
    return np.argsort(-cost, kind="stable")


_Runs = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def _kinds(grid: Grid, found: list[_Runs], rows: int) -> dict[str, Visits]:
    """Visits of each kind from the runs of all head classes."""
    row, first, count, full = (np.concatenate(x) for x in zip(*found, strict=True))
    order = np.lexsort((first, row))
    row, first, count, full = row[order], first[order], count[order], full[order]
    return {
        kind: visits_in(grid, row[own], first[own], count[own], rows)
        for kind, own in (("full", full), ("partial", ~full))
    }


def runs_of(
    alike: HeadClass, home: str, segment: int, away: int, grids: tuple[Grid, Grid]
) -> _Runs:
    """(row, first tile, count, full) of the runs of one head class between two segments, cut for
    the kernel's loops. grids: of the home segment and of the other one.
    """
    queries, keys = (segment, away) if home == "q" else (away, segment)
    own, other = grids
    rows, columns = (own, other) if home == "q" else (other, own)
    runs = unfold([Placed(alike.trees[queries][keys], 0, 0)], rows.count)
    if home == "k":
        runs = transposed(runs, columns.count, rows.shape[-1])
    return cut(other, runs.row_of(), runs.first, runs.count, runs.full)


def cut(
    grid: Grid, row: np.ndarray, first: np.ndarray, count: np.ndarray, full: np.ndarray
) -> _Runs:
    """Runs cut where a residue class of the last axis ends or the axis wraps; full tiles with lanes
    that hold no token, or tokens of both ends of an axis, made partial.
    """
    line = grid.shape[-1]
    edges = [_crossing(grid, axis) for axis in range(len(grid.shape))]
    full = full.copy()
    outer = np.unravel_index(first // line, grid.shape[:-1]) if len(grid.shape) > 1 else ()
    for axis, index in enumerate(outer):
        full &= ~edges[axis][index]
    last = first % line
    before = np.concatenate([[0], np.cumsum(edges[-1])])
    crosses = full & (before[last + count] > before[last])
    turns = _turns(grid)
    turned = np.cumsum(turns)
    todo = crosses | (turned[last + count - 1] > turned[last])
    if not todo.any():
        return row, first, count, full
    run = np.repeat(np.flatnonzero(todo), count[todo])
    ends = np.cumsum(count[todo])
    step = np.arange(len(run)) - np.repeat(ends - count[todo], count[todo])
    tile = first[run] + step
    whole = full[run] & ~edges[-1][tile % line]
    starts = np.ones(len(run), dtype=bool)
    starts[1:] = (run[1:] != run[:-1]) | (whole[1:] != whole[:-1]) | turns[tile[1:] % line]
    heads = np.flatnonzero(starts)
    lengths = np.diff(np.append(heads, len(run)))
    kept = ~todo
    return (
        np.concatenate([row[kept], row[run[heads]]]),
        np.concatenate([first[kept], tile[heads]]),
        np.concatenate([count[kept], lengths]),
        np.concatenate([full[kept], whole[heads]]),
    )


def crossing(grid: Grid) -> np.ndarray:
    """Which tiles have lanes without a token, or tokens of both ends of an axis: bool."""
    found = np.zeros(grid.shape, dtype=bool)
    for axis in range(len(grid.shape)):
        shape = [1] * len(grid.shape)
        shape[axis] = -1
        found |= _crossing(grid, axis).reshape(shape)
    return found.reshape(-1)


def _crossing(grid: Grid, axis: int) -> np.ndarray:
    """Which tiles of an axis have lanes that hold no token, or tokens of both ends: bool (tiles of
    the axis,).
    """
    size, step, extent = (x[axis] for x in (grid.tile.size, grid.tile.step, grid.extents))
    place = places_of(grid, axis)
    low = grid.starts[axis] + place
    if grid.tile.pitch[axis] < size:
        return np.ones(len(place), dtype=bool)
    crossing: np.ndarray = (low < 0) | (low + step * (size - 1) >= extent)
    if grid.tile.wrap[axis]:
        crossing = (low % extent + step * (size - 1) >= extent) | (
            place + step * (size - 1) >= extent
        )
    return crossing


def _turns(grid: Grid) -> np.ndarray:
    """At which tiles of the last axis coordinates do not go on from the tile before: bool."""
    turns: np.ndarray = np.arange(grid.shape[-1]) % grid.blocks[-1] == 0
    if grid.tile.wrap[-1]:
        rounds = (grid.starts[-1] + places_of(grid, -1)) // grid.extents[-1]
        turns[1:] |= rounds[1:] != rounds[:-1]
    return turns
