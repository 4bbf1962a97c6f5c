"""Closed forms of walks: the key tiles that a query tile visits as expressions of its number.

Where the keys of a query are an interval per axis whose ends move forward with the query, without
gaps, the keys of a tile of queries are one interval too, from the first query's lower end to the
last query's upper end; and the keys that all of its queries see lie between the last query's lower
end and the first query's upper end. All of it is derived from the pattern and proved.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from maskdsl.ir import logic
from maskdsl.ir.evaluate import evaluate_all
from maskdsl.ir.integers import integer
from maskdsl.ir.nodes import Node, postorder
from maskdsl.ir.program import Axes
from maskdsl.ir.readable import readable
from maskdsl.ir.rewrite import VARYING
from maskdsl.planner.axis_pair import NotClosedError, refuse
from maskdsl.planner.axis_walk import AxisWalk, Band, axis_walk
from maskdsl.planner.boxes import Side, Space
from maskdsl.planner.lines import Line, lines_of
from maskdsl.planner.rows import Runs, merge
from maskdsl.planner.solve import conjuncts
from maskdsl.planner.tiles import Grid, Tile


@dataclass(frozen=True)
class ClosedForm:
    """The walk of every query tile, axis by axis of the keys: what is visited is the product of the
    axes' tiles, and full where it is full on each of them.

    queries: axes of the queries. no_empty_row: whether it is proved that each query keeps a key.
    """

    queries: tuple[str, ...]
    axes: tuple[AxisWalk, ...]
    no_empty_row: bool

    def runs(self, q_grid: Grid, kv_grid: Grid) -> Runs:
        """The walk written out for all query tiles of grids like those it was derived for."""
        row = np.arange(q_grid.count, dtype=np.int64)
        numbers = np.unravel_index(row, q_grid.shape)
        leaves = {("tile", a): n for a, n in zip(self.queries, numbers, strict=True)}
        flat, full = np.zeros_like(row), np.ones(len(row), dtype=bool)
        *outer, line = zip(self.axes, kv_grid.shape, strict=True)
        for axis, tiles in outer:
            found = []
            for first, last, full_first, full_last in _ends(axis, leaves, q_grid.count):
                copies, steps = _spread((last - first)[row])
                at = first[row][copies] + steps
                inside = (at >= full_first[row][copies]) & (at < full_last[row][copies])
                found.append((row[copies], flat[copies] * tiles + at, full[copies] & inside))
            row, flat, full = (np.concatenate(x) for x in zip(*found, strict=True))
        axis, tiles = line
        runs = []
        for first, last, full_first, full_last in _ends(axis, leaves, q_grid.count):
            for low, high, kind in (
                (first, full_first, False), (full_first, full_last, True), (full_last, last, False)
            ):  # fmt: skip
                begin = flat * tiles + low[row]
                parts = np.array([row, begin, (high - low)[row], kind & full, low[row] == 0])
                runs.append(parts[:, parts[2] > 0])
        return merge(np.concatenate(runs, axis=1).astype(np.int64), q_grid.count)

    def at(self, **extents: int) -> ClosedForm:
        """The form with extents that were open."""
        axes = tuple(replace(a, bands=tuple(b.at(extents) for b in a.bands)) for a in self.axes)
        return replace(self, axes=axes)

    def text(self) -> str:
        """`n tiles [max(i - 32, 0), i + 1), full [i - 31, i)`, where i is the query tile's number
        (on the axis named after it, where there are several).
        """
        several = len(self.queries) > 1
        names = {("tile", a): f"i.{a}" if several else "i" for a in self.queries}
        parts = []
        for axis in self.axes:
            bands = []
            for b in axis.bands:
                first, last, full_first, full_last = (readable(n, names) for n in b.ends)
                kinds = "all full"
                if (b.first, b.last) != (b.full_first, b.full_last):
                    kinds = f"full [{full_first}, {full_last})"
                    kinds = "none full" if b.full_first == b.full_last else kinds
                bands.append(f"[{first}, {last}), {kinds}")
            parts.append(f"{axis.axis} tiles " + "; then ".join(bands))
        return "; ".join(parts)


def closed_form(keep: Node, queries: Side, keys: Side) -> ClosedForm | str:
    """The closed form of the walk of one head, or why there is none."""
    space = Space(keep, queries, keys)
    lines = [
        lines_of(s.name, tuple(zip(s.axes, s.grid.extents, strict=True)), s.grid.tile)
        for s in space.sides
    ]
    try:
        return _derived(space.keep, *lines)
    except NotClosedError as why:
        return str(why)


def open_form(
    keep: Node, queries: Axes, keys: Axes, q_tile: Tile, kv_tile: Tile
) -> ClosedForm | str:
    """One closed form for all extents that are open, or why there is none. `keep` is of one head,
    with the symbols `<axis>.size`, and so are the expressions found.
    """
    if any((*q_tile.wrap, *kv_tile.wrap)):
        return "tiles that wrap depend on the extent"
    try:
        return _derived(keep, lines_of("q", queries, q_tile), lines_of("k", keys, kv_tile))
    except NotClosedError as why:
        return str(why)


def _derived(keep: Node, queries: Sequence[Line], keys: Sequence[Line]) -> ClosedForm:
    names = tuple(line.name for line in queries)
    if keep == logic.FALSE:
        none = Band(*(integer(0),) * 4)
        return ClosedForm(names, tuple(AxisWalk(k.name, None, (none,)) for k in keys), False)
    by_key: dict[str, list[Node]] = {line.name: [] for line in keys}
    pairs: dict[str, str] = {}
    for condition in conjuncts(keep):
        query, key = _axes(condition)
        by_key[key].append(condition)
        if query is not None and pairs.setdefault(key, query) != query:
            raise refuse(f"{key} is bound by several axes of the queries", condition)
    if len(set(pairs.values())) < len(pairs):
        raise NotClosedError("one axis of the queries bounds several axes of the keys")
    free = [line for line in queries if line.name not in pairs.values()]
    for line in free:
        if not line.all_hold_tokens:
            raise NotClosedError(f"some query tiles hold no token on axis {line.name}")
    by_name = {line.name: line for line in queries}
    found = [
        axis_walk(line, by_name.get(pairs.get(line.name, "")), by_key[line.name]) for line in keys
    ]
    return ClosedForm(names, tuple(walk for walk, _ in found), all(sure for _, sure in found))


def _axes(condition: Node) -> tuple[str | None, str]:
    """The axis of the queries, if any, and the axis of the keys that a condition reads."""
    read: dict[str, dict[str, None]] = {"q": {}, "k": {}}
    for node in postorder(condition):
        if node.op in (*VARYING, "head") or (node.op == "load" and node.value.is_input):
            raise refuse("inputs decide", condition)
        if node.op == "coord":
            side, name = node.value
            read[side][name] = None
    if not read["k"]:
        raise refuse("only some queries see keys", condition)
    if len(read["k"]) > 1 or len(read["q"]) > 1:
        raise refuse("several axes in one condition", condition)
    return next(iter(read["q"]), None), next(iter(read["k"]))


def _ends(axis: AxisWalk, leaves: dict[tuple[str, str], np.ndarray], rows: int) -> list[np.ndarray]:
    """(bands) of int64 (4, rows): the ends of each band."""
    found = []
    for band in axis.bands:
        values = evaluate_all(band.ends, leaves, {})
        found.append(np.array([np.broadcast_to(v, (rows,)) for v in values], dtype=np.int64))
    return found


def _spread(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each index as often as its count says, and how often it came before."""
    copies = np.repeat(np.arange(len(counts)), counts)
    return copies, np.arange(len(copies)) - np.repeat(np.cumsum(counts) - counts, counts)
