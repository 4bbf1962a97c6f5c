"""Plans: for each query tile of each head class, the key tiles to visit and their kind."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from maskdsl.errors import PlanError
from maskdsl.ir.nodes import Node
from maskdsl.ir.program import Program
from maskdsl.planner.boxes import Side
from maskdsl.planner.closed import ClosedForm, closed_form
from maskdsl.planner.explain import explain
from maskdsl.planner.layout import Layout
from maskdsl.planner.proofs import class_proofs_of, proofs_of
from maskdsl.planner.rows import Placed, Runs, most_runs, unfold
from maskdsl.planner.storage import GrowTree, pack, read, save, unpack
from maskdsl.planner.tiles import Grid, Tile
from maskdsl.planner.tree import Tree

FEW_RUNS = 2**22  # and rows, that are unfolded only to prove or explain something


@dataclass(frozen=True)
class TileCounts:
    """Numbers of (query tile, key tile) pairs over all heads."""

    empty: int
    full: int
    partial: int

    @property
    def total(self) -> int:
        return self.empty + self.full + self.partial


@dataclass(frozen=True)
class HeadClass:
    """Heads whose patterns are the same.

    keeps: the pattern of one head, per pair of segments. trees: the kinds of their tiles.
    row_starts, column_starts: number of the first tile of each segment.
    """

    heads: tuple[int, ...]
    keeps: tuple[tuple[Node, ...], ...]
    trees: tuple[tuple[Tree, ...], ...] = field(repr=False, compare=False)
    row_starts: tuple[int, ...]
    column_starts: tuple[int, ...]

    @property
    def placed(self) -> list[Placed]:
        return [
            Placed(tree, row, column)
            for line, row in zip(self.trees, self.row_starts, strict=False)
            for tree, column in zip(line, self.column_starts, strict=False)
        ]

    @property
    def all_trees(self) -> list[Tree]:
        return [tree for line in self.trees for tree in line]

    @cached_property
    def runs(self) -> Runs:
        return unfold(self.placed, self.row_starts[-1])

    @cached_property
    def few_runs(self) -> bool:
        """Whether the rows are unfolded in about a second."""
        return self.row_starts[-1] + sum(map(most_runs, self.all_trees)) <= FEW_RUNS

    @cached_property
    def walks(self) -> tuple[ClosedForm | str, ...]:
        """Per pair of segments the closed form of its rows, or why they have none and are runs."""
        return tuple(closed_form(t.keep, *t.space.sides) for t in self.all_trees)

    @property
    def keep(self) -> Node:
        """Of a pattern with one segment on either side."""
        assert len(self.all_trees) == 1
        return self.keeps[0][0]


@dataclass(frozen=True)
class Plan:
    """For each query tile, the key tiles to visit and their kind.

    q_grids, kv_grids: the grid of tiles of each segment; tiles are numbered segment after segment.
    layouts: what the layout search looked at, per segment, where it chose the tiles.
    """

    program: Program
    source: str = field(compare=False)
    q_grids: tuple[Grid, ...]
    kv_grids: tuple[Grid, ...]
    head_classes: tuple[HeadClass, ...]
    layouts: tuple[Layout, ...] = field(default=(), compare=False, repr=False)

    def __eq__(self, other: object) -> bool:
        """Whether programs, grids and head classes are equal: they decide every kind. The source
        text, with its comments, does not count.
        """
        if not isinstance(other, Plan):
            return False
        return all(
            getattr(self, name) == getattr(other, name)
            for name in ("program", "q_grids", "kv_grids", "head_classes")
        )

    @property
    def name(self) -> str:
        return self.program.name

    @property
    def mask_shape(self) -> tuple[int, int, int]:
        """(heads, queries, keys)"""
        program = self.program
        return program.heads, program.query_tokens, program.key_tokens

    @property
    def q_tile(self) -> Tile | tuple[Tile, ...]:
        """The tile of queries; one per segment where there are several."""
        tiles = tuple(g.tile for g in self.q_grids)
        return tiles if len(tiles) > 1 else tiles[0]

    @property
    def kv_tile(self) -> Tile | tuple[Tile, ...]:
        """The tile of keys; one per segment where there are several."""
        tiles = tuple(g.tile for g in self.kv_grids)
        return tiles if len(tiles) > 1 else tiles[0]

    @property
    def q_grid_(self) -> Grid:
        """Of a pattern with one segment of queries."""
        assert len(self.q_grids) == 1
        return self.q_grids[0]

    @property
    def kv_grid_(self) -> Grid:
        """Of a pattern with one segment of keys."""
        assert len(self.kv_grids) == 1
        return self.kv_grids[0]

    @property
    def q_grid(self) -> tuple[int, ...]:
        """Query tiles per axis; with several segments, in a row."""
        return self.q_grids[0].shape if len(self.q_grids) == 1 else (self.q_tiles,)

    @property
    def kv_grid(self) -> tuple[int, ...]:
        """Key tiles per axis; with several segments, in a row."""
        return self.kv_grids[0].shape if len(self.kv_grids) == 1 else (self.kv_tiles,)

    @property
    def q_tiles(self) -> int:
        return sum(g.count for g in self.q_grids)

    @property
    def kv_tiles(self) -> int:
        return sum(g.count for g in self.kv_grids)

    @property
    def pairs(self) -> int | None:
        """Exact number of allowed pairs over all heads; None where an input decides."""
        counts = [(t.pairs, len(c.heads)) for c in self.head_classes for t in c.all_trees]
        if any(n is None for n, _ in counts):
            return None
        return sum(n * heads for n, heads in counts if n is not None)

    @cached_property
    def tiles(self) -> TileCounts:
        """Counts over all heads: .empty .full .partial .total"""
        trees = [(t, len(c.heads)) for c in self.head_classes for t in c.all_trees]
        full = sum(t.full * heads for t, heads in trees)
        partial = sum(t.partial * heads for t, heads in trees)
        total = self.program.heads * self.q_tiles * self.kv_tiles
        return TileCounts(total - full - partial, full, partial)

    @property
    def density(self) -> float:
        """Share of tile pairs that are visited."""
        return (self.tiles.full + self.tiles.partial) / self.tiles.total

    @cached_property
    def proofs(self) -> dict[str, bool]:
        """What was proved of the plan: `divisible`, `int32`, `no_empty_row`, `contiguous`."""
        return proofs_of(self)

    @cached_property
    def class_proofs(self) -> tuple[dict[str, bool], ...]:
        """What was proved of the rows of each head class: `no_empty_row`, `contiguous`."""
        return tuple(class_proofs_of(self, c) for c in self.head_classes)

    def class_of(self, head: int) -> HeadClass:
        if isinstance(head, (int, np.integer)):
            for c in self.head_classes:
                if head in c.heads:
                    return c
        raise PlanError(f"there is no head {head}: the plan has {self.program.heads}")

    def row_counts(self, head: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """(full, partial) tiles visited per query tile: int64 (q_tiles,) each."""
        return self.class_of(head).runs.counts()

    def kind(
        self, head: int, q_tile_index: int | Sequence[int], kv_tile_index: int | Sequence[int]
    ) -> str:
        """`empty`, `full` or `partial`, of a pair of tiles by flattened number or by number per
        axis.
        """
        runs = self.class_of(head).runs
        row = _tile_number(q_tile_index, self.q_grid, "query")
        column = _tile_number(kv_tile_index, self.kv_grid, "key")
        low, high = runs.offsets[row], runs.offsets[row + 1]
        at = int(low + np.searchsorted(runs.first[low:high], column, side="right")) - 1
        if at < low or column >= runs.first[at] + runs.count[at]:
            return "empty"
        return "full" if runs.full[at] else "partial"

    def rows(self, head: int = 0) -> list[list[tuple[int, str]]]:
        """Per query tile: the key tiles to visit, by flattened number, with their kinds."""
        runs = self.class_of(head).runs
        found: list[list[tuple[int, str]]] = []
        for row in range(self.q_tiles):
            visits: list[tuple[int, str]] = []
            for i in range(runs.offsets[row], runs.offsets[row + 1]):
                kind = "full" if runs.full[i] else "partial"
                first = int(runs.first[i])
                visits += [(first + n, kind) for n in range(int(runs.count[i]))]
            found.append(visits)
        return found

    def permutation(self) -> np.ndarray:
        """Flattened key positions, int64 (keys,), in the order that makes key tiles contiguous."""
        found = []
        for segment, grid in zip(self.program.keys, self.kv_grids, strict=True):
            tokens = grid.tokens(np.arange(grid.count)).reshape(-1)
            found.append(tokens[tokens >= 0] + segment.offset)
        return np.concatenate(found)

    def tokens(self, side: str, tile: int) -> np.ndarray:
        """Flattened positions, int64, of the tokens of one tile of side "q" or "k". Raises
        PlanError.
        """
        if side not in ("q", "k"):
            raise PlanError(f"a side is 'q' or 'k', not {side!r}"[:200])
        tile = _tile_number(tile, (self.q_tiles if side == "q" else self.kv_tiles,), side)
        segments = self.program.queries if side == "q" else self.program.keys
        grids = self.q_grids if side == "q" else self.kv_grids
        for segment, grid in zip(segments, grids, strict=True):
            if tile < grid.count:
                tokens = grid.tokens(np.array([tile]))[0]
                inside: np.ndarray = tokens[tokens >= 0] + segment.offset
                return inside
            tile -= grid.count
        raise PlanError(f"there is no tile {tile} past the last one")

    def to_bytes(self) -> bytes:
        """Everything of the plan, its kinds included. Raises PlanError where it is too large."""
        return pack(self)

    @staticmethod
    def from_bytes(data: bytes) -> Plan:
        """The plan of `to_bytes`. Raises PlanError for bytes that are not a whole, unaltered plan
        of this version.
        """
        return unpack(data, planned)

    def save(self, path: str | Path) -> None:
        """Write `to_bytes` to a file. Raises PlanError."""
        save(self, path)

    @staticmethod
    def load(path: str | Path) -> Plan:
        """The plan of a file. Raises PlanError, as `from_bytes` does."""
        return Plan.from_bytes(read(path))

    def explain(self) -> str:
        """What was proved, how each row is walked, and why."""
        return explain(self)


Patterns = tuple[tuple[Node, ...], ...]


def planned(
    program: Program,
    source: str,
    q_grids: tuple[Grid, ...],
    kv_grids: tuple[Grid, ...],
    patterns: Iterable[tuple[tuple[int, ...], Patterns]],
    grow: GrowTree,
    layouts: tuple[Layout, ...] = (),
) -> Plan:
    """The plan of each head class's (heads, pattern), its trees made by `grow`, in order."""
    starts = [
        tuple(itertools.accumulate((g.count for g in grids), initial=0))
        for grids in (q_grids, kv_grids)
    ]
    sides = [
        [Side(name, tuple(a for a, _ in s.axes), g) for s, g in zip(segments, grids, strict=True)]
        for name, segments, grids in (
            ("q", program.queries, q_grids),
            ("k", program.keys, kv_grids),
        )
    ]
    classes = []
    for heads, keeps in patterns:
        trees = tuple(
            tuple(grow(keep, q, k) for keep, k in zip(row, sides[1], strict=True))
            for row, q in zip(keeps, sides[0], strict=True)
        )
        classes.append(HeadClass(heads, keeps, trees, *starts))
    return Plan(program, source, q_grids, kv_grids, tuple(classes), layouts)


def _tile_number(index: int | Sequence[int], shape: tuple[int, ...], what: str) -> int:
    try:
        parts = (index,) if isinstance(index, (int, np.integer)) else tuple(index)
        limits = (math.prod(shape),) if len(parts) == 1 else shape
        whole = all(isinstance(i, (int, np.integer)) for i in parts)
        inside = (
            whole
            and len(parts) == len(limits)
            and all(0 <= i < n for i, n in zip(parts, limits, strict=True))
        )
    except TypeError:
        inside = False
    if not inside:
        raise PlanError(f"there is no {what} tile {index!r}: the grid is {shape}"[:200])
    return int(parts[0]) if len(parts) == 1 else int(np.ravel_multi_index(parts, shape))
