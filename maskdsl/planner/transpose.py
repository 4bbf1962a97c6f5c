"""The transpose of a plan's rows: for each key tile, the runs of query tiles that visit it."""

from __future__ import annotations

import numpy as np

from maskdsl.planner.rows import Runs

CHUNK = 2**24  # kinds of (row, key tile) pairs looked at together, one byte each


def transposed(runs: Runs, columns: int, line: int) -> Runs:
    """Rows of key tiles from rows of query tiles: `first` and `count` are then of query tiles.

    columns: number of key tiles. line: length of the last axis of the query grid, past whose end no
    run goes.
    Time grows with rows * columns (a byte each), memory with the runs of both.
    """
    found = [np.zeros((3, 0), dtype=np.int64)]  # key tile, query tile, kind from there on
    height = max(1, CHUNK // max(columns, 1))
    before = np.zeros((1, columns), dtype=np.int8)
    for low in range(0, runs.rows + 1, height):
        high = min(low + height, runs.rows + 1)
        kinds = np.concatenate([before, _kinds(runs, low, high, columns)])
        changes = kinds[1:] != kinds[:-1]
        ends = np.arange(low, high) % line == 0
        changes[ends] |= kinds[1:][ends] != 0
        row, column = np.nonzero(changes)
        found.append(np.array([column, row + low, kinds[1:][row, column]], dtype=np.int64))
        before = kinds[-1:]
    column, row, kind = np.concatenate(found, axis=1)
    order = np.argsort(column, kind="stable")  # rows of a column stay in order
    column, row, kind = column[order], row[order], kind[order]
    starts = np.flatnonzero(kind)  # each ends at the next change of its column
    offsets = np.searchsorted(column[starts], np.arange(columns + 1)).astype(np.int64)
    return Runs(offsets, row[starts], row[starts + 1] - row[starts], kind[starts] == 2)


def _kinds(runs: Runs, low: int, high: int, columns: int) -> np.ndarray:
    """0 for empty, 1 for partial, 2 for full: int8 (high - low, columns), nothing past the last
    row.
    """
    within = slice(*runs.offsets[[low, min(high, runs.rows)]])
    row = np.repeat(
        np.arange(min(high, runs.rows) - low), np.diff(runs.offsets[low : min(high, runs.rows) + 1])
    )
    first, count, kind = runs.first[within], runs.count[within], 1 + runs.full[within]
    steps = np.zeros((high - low, columns + 1), dtype=np.int8)
    steps[row, first] += kind.astype(np.int8)
    steps[row, first + count] -= kind.astype(np.int8)
    kinds: np.ndarray = np.cumsum(steps[:, :-1], axis=1, dtype=np.int8)
    return kinds
