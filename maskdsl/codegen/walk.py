"""How a kernel walks its plan, as data: the order of the rows and the runs of tiles of each.

A row is a tile of the side that a program holds (home): of queries, with the runs of key tiles it
visits, or of keys, with those of query tiles.

Full runs hold only tiles with all their lanes inside the space: those that cross an edge are walked
with the partial ones, so that the loop over full tiles needs neither masks nor bounds.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from maskdsl.planner import Grid, HeadClass, Plan
from maskdsl.planner.transpose import transposed

EVEN = 1.25  # longest row over the mean, up to which rows are walked as they lie
PARTIAL_COST = 1.5  # of a partial tile, in full ones: only the order of the rows depends on it


@dataclass(frozen=True)
class Visits:
    """Runs of one kind. mode: "none"; "one", at most one run a row; or "many".

    offsets: int32 (rows + 1,), where mode is "many". runs: int32 (runs, 2) of first tile and
    count, row after row (for "one": of each row, with count 0 where it has none). tiles: visited.
    """

    mode: str
    offsets: np.ndarray | None
    runs: np.ndarray | None
    tiles: int


@dataclass(frozen=True)
class Walk:
    """rows: int32 (classes * tiles,), the home tile of each row of the walk, per head class the
    longest first (as they lie where they are even).

    home: "q" or "k". head_class: int32 (heads,). even: whether all rows are as long.
    """

    home: str
    rows: np.ndarray
    in_order: bool
    head_class: np.ndarray
    classes: int
    full: Visits
    partial: Visits
    even: bool

    def table(self, name: str) -> str:
        """The argument's name: tables of the transposed walk stand beside the others."""
        return name if self.home == "q" else f"key_{name}"

    def tables(self) -> dict[str, np.ndarray]:
        """The arguments of the kernel, by name, int32."""
        found: dict[str, np.ndarray] = {}
        if self.classes > 1:
            found["head_class"] = self.head_class
        if not self.in_order:
            found[self.table("rows")] = self.rows
        for kind, visits in (("full", self.full), ("partial", self.partial)):
            if visits.offsets is not None:
                found[self.table(f"{kind}_offsets")] = visits.offsets
            if visits.runs is not None:
                found[self.table(f"{kind}_runs")] = visits.runs.reshape(-1)
        return found


def walk_tables(plan: Plan) -> dict[str, np.ndarray]:
    """The walk of a plan as int32 tables, by the name of the kernel's argument."""
    return make_walk(plan).tables()


def make_walk(plan: Plan, home: str = "q") -> Walk:
    """The rows of all head classes, one after the other.

    home: "q" for rows of query tiles, "k" for rows of key tiles.
    """
    tiles = plan.q_tiles if home == "q" else plan.kv_tiles
    found, lengths = [], []
    for alike in plan.head_classes:
        row, first, count, full = visits_of(plan, alike, home)
        found.append((row, first, count, full))
        lengths.append(np.bincount(row, count * np.where(full, 1.0, PARTIAL_COST), minlength=tiles))
    if home == "k" and plan.program.heads > plan.program.kv_heads:
        # a program sums over all query heads of a key head, whose classes may differ
        weights = [len(c.heads) for c in plan.head_classes]
        together = np.sum([n * x for n, x in zip(weights, lengths, strict=True)], axis=0)
        lengths = [together] * len(lengths)
    order, parts = [], []
    for number, (cost, (row, first, count, full)) in enumerate(zip(lengths, found, strict=True)):
        even = cost.max() <= EVEN * cost.mean()
        longest = np.arange(tiles) if even else np.argsort(-cost, kind="stable")
        rank = np.empty(tiles, dtype=np.int64)
        rank[longest] = np.arange(tiles)
        order.append(longest)
        parts.append((number * tiles + rank[row], first, count, full))
    rows = np.concatenate(order)
    row, first, count, full = (np.concatenate(x) for x in zip(*parts, strict=True))
    sorted_ = np.lexsort((first, row))
    row, first, count, full = row[sorted_], first[sorted_], count[sorted_], full[sorted_]
    head_class = np.zeros(plan.program.heads, dtype=np.int32)
    for number, alike in enumerate(plan.head_classes):
        head_class[list(alike.heads)] = number
    cost = np.concatenate(lengths)
    return Walk(
        home=home,
        rows=rows.astype(np.int32),
        in_order=len(plan.head_classes) == 1 and bool(np.all(np.diff(rows) == 1)),
        head_class=head_class,
        classes=len(plan.head_classes),
        full=_visits(row[full], first[full], count[full], len(rows)),
        partial=_visits(row[~full], first[~full], count[~full], len(rows)),
        even=bool(cost.max() <= EVEN * cost.mean()),
    )


def visits_of(
    plan: Plan, alike: HeadClass, home: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(row, first tile, count, full) of the runs of one head class, cut for the kernel's loops."""
    runs, away = alike.runs, plan.kv_grid_
    if home == "k":
        away = plan.q_grid_
        runs = transposed(runs, plan.kv_tiles, away.shape[-1])
    return cut(away, runs.row_of(), runs.first, runs.count, runs.full)


def _visits(row: np.ndarray, first: np.ndarray, count: np.ndarray, rows: int) -> Visits:
    per_row = np.bincount(row, minlength=rows)
    tiles = int(count.sum())
    if not len(row):
        return Visits("none", None, None, 0)
    if per_row.max() == 1:
        runs = np.zeros((rows, 2), dtype=np.int32)
        runs[row] = np.stack([first, count], 1)
        return Visits("one", None, runs, tiles)
    offsets = np.concatenate([[0], np.cumsum(per_row)]).astype(np.int32)
    return Visits("many", offsets, np.stack([first, count], 1).astype(np.int32), tiles)


def cut(
    grid: Grid, row: np.ndarray, first: np.ndarray, count: np.ndarray, full: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
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


def _first_places(grid: Grid, axis: int) -> np.ndarray:
    """Of lane 0 of each tile of an axis, from the first tile's: int64 (tiles of the axis,)."""
    residue, block = np.divmod(np.arange(grid.shape[axis]), grid.blocks[axis])
    places: np.ndarray = residue + block * grid.tile.span[axis]
    return places


def _crossing(grid: Grid, axis: int) -> np.ndarray:
    """Which tiles of an axis have lanes that hold no token, or tokens of both ends: bool (tiles of
    the axis,).
    """
    size, step, extent = (x[axis] for x in (grid.tile.size, grid.tile.step, grid.extents))
    place = _first_places(grid, axis)
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
        rounds = (grid.starts[-1] + _first_places(grid, -1)) // grid.extents[-1]
        turns[1:] |= rounds[1:] != rounds[:-1]
    return turns
