"""Who keeps what inside the partial tiles of a plan, one of each class of equal tiles."""

from __future__ import annotations

from collections import Counter

import numpy as np

from maskdsl.ir.evaluate import evaluate
from maskdsl.ir.nodes import postorder
from maskdsl.planner.plan import HeadClass, Plan

SEEN, OPEN = -1, -2  # instead of a row of the table: every query keeps the key; the call decides
CHUNK = 2**20  # pairs evaluated at a time
EVEN = 16  # so few more keys make a row a whole number of tiles, which is faster to multiply


class Truths:
    """The columns of all partial tiles.

    row, tile, shape: int64 (tiles,) each, the tiles to visit; tiles of one shape (their class, from
    0) hold the same truth at the same lanes.
    """

    def __init__(
        self, plan: Plan, c: HeadClass, row: np.ndarray, tile: np.ndarray, shape: np.ndarray
    ) -> None:
        self._plan = plan
        self._class = c
        self._asked: Counter[int] = Counter()  # tiles of each key segment
        self._every: dict[int, np.ndarray] = {}
        classes = int(shape.max(initial=-1)) + 1
        self._start = np.zeros(classes, dtype=np.int64)  # first column in the table of its segment
        self._tables: list[np.ndarray] = []
        self._any: list[np.ndarray] = []
        self._all: list[np.ndarray] = []
        numbers, first = np.unique(shape, return_index=True)
        known = numbers >= 0
        numbers, first = numbers[known], first[known]
        q_segment = np.searchsorted(c.row_starts, row[first], side="right") - 1
        k_segment = np.searchsorted(c.column_starts, tile[first], side="right") - 1
        self._q_segment = np.zeros(classes, dtype=np.int64)
        self._q_segment[numbers] = q_segment
        for i, q_grid in enumerate(plan.q_grids):
            tables = [np.zeros((0, q_grid.tile.lanes), dtype=bool)]
            used, full = [np.zeros(0, dtype=bool)], [np.zeros(0, dtype=bool)]
            total = 0
            for j, k_grid in enumerate(plan.kv_grids):
                own = np.flatnonzero((q_segment == i) & (k_segment == j))
                lanes = k_grid.tile.lanes
                self._start[numbers[own]] = total + np.arange(len(own)) * lanes
                total += len(own) * lanes
                step = max(1, CHUNK // (lanes * q_grid.tile.lanes))
                for a in range(0, len(own), step):
                    at = first[own[a : a + step]]
                    truth, valid = self._evaluate(i, j, row[at], tile[at])
                    tables.append(truth.reshape(-1, q_grid.tile.lanes))
                    used.append((truth & valid).any(-1).reshape(-1))
                    full.append((truth | ~valid).all(-1).reshape(-1))
            self._tables.append(np.concatenate(tables))
            self._any.append(np.concatenate(used))
            self._all.append(np.concatenate(full))

    def table(self, query_segment: int) -> np.ndarray:
        """bool (columns, query lanes): which query keeps the key of each column."""
        return self._tables[query_segment]

    def columns(self, tiles: np.ndarray, shape: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(tokens int64, columns int32) of the keys of these tiles that some query keeps, or may
        keep, and of all others where those are few; tokens rise.
        """
        found_tokens, found_columns = [], []
        starts = self._class.column_starts
        number = np.searchsorted(starts, tiles, side="right") - 1
        for j in np.unique(number):
            own = number == j
            grid, segment = self._plan.kv_grids[j], self._plan.program.keys[j]
            tokens = self._tokens(j, tiles[own] - starts[j])
            kind = shape[own][:, None]
            column = np.where(kind == -1, SEEN, OPEN) + np.zeros_like(tokens)
            used = tokens >= 0
            whole = used.copy()
            known = np.flatnonzero(kind[:, 0] >= 0)
            if len(known):
                classes = kind[known, 0]
                at = self._start[classes][:, None] + np.arange(grid.tile.lanes)
                side = int(self._q_segment[classes[0]])
                column[known] = np.where(self._all[side][at], SEEN, at)
                used[known] &= self._any[side][at]
            if whole.sum() - used.sum() < EVEN:
                used = whole
            found_tokens.append(tokens[used] + segment.offset)
            found_columns.append(column[used])
        tokens, columns = np.concatenate(found_tokens), np.concatenate(found_columns)
        order = np.argsort(tokens, kind="stable")
        return tokens[order], columns[order].astype(np.int32)

    def _tokens(self, j: int, tiles: np.ndarray) -> np.ndarray:
        """What the grid of key segment j says of tiles, once for all where it is asked often."""
        grid = self._plan.kv_grids[j]
        self._asked[j] += len(tiles)
        if self._asked[j] < grid.count:
            return grid.tokens(tiles)
        if j not in self._every:
            self._every[j] = grid.tokens(np.arange(grid.count))
        found: np.ndarray = self._every[j][tiles]
        return found

    def _evaluate(
        self, i: int, j: int, rows: np.ndarray, tiles: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """(kept bool (tiles, key lanes, query lanes), whether a query is there (tiles, 1, query
        lanes)) of pairs of tiles of two segments.
        """
        block = self._plan.program.blocks[i][j]
        q_grid, k_grid = self._plan.q_grids[i], self._plan.kv_grids[j]
        rows = rows - self._class.row_starts[i]
        q = q_grid.coordinates(rows)
        k = k_grid.coordinates(tiles - self._class.column_starts[j])
        keep = self._class.keeps[i][j]
        if any(n.op == "load" for n in postorder(keep)):  # tables end where the extents do
            q, k = (
                [np.clip(x, 0, n - 1) for x, n in zip(xs, grid.extents, strict=True)]
                for xs, grid in ((q, q_grid), (k, k_grid))
            )
        leaves = {("q", n): x[:, None, :] for (n, _), x in zip(block.queries.axes, q, strict=True)}
        leaves |= {("k", n): x[:, :, None] for (n, _), x in zip(block.keys.axes, k, strict=True)}
        shape = (len(rows), k_grid.tile.lanes, q_grid.tile.lanes)
        truth = np.broadcast_to(evaluate(keep, leaves, {}), shape)
        return truth, (q_grid.tokens(rows) >= 0)[:, None, :]
