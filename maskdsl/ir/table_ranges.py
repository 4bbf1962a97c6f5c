"""Least and greatest elements of a table within ranges of indices, for many ranges at once."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from maskdsl.ir.nodes import Array

Range = tuple[Any, Any]  # first and last index, int64 arrays


def extremes(array: Array, ranges: Sequence[Range]) -> tuple[Any, Any, Any]:
    """(least, greatest, whether known) of an int or float table within ranges of indices, which
    reads 0 outside. Known where at most one dimension varies.

    Both are exact for a power of two of elements that starts at a multiple of it; else elements
    within a quarter of the range's length on either side may count too.
    """
    ends = np.broadcast_arrays(*(x for r in ranges for x in r))
    lows, highs, shape = ends[::2], ends[1::2], array.data.shape
    places = list(zip(lows, highs, shape, strict=True))
    partly = np.logical_or.reduce([(low < 0) | (high >= n) for low, high, n in places])
    wholly = np.logical_or.reduce([(high < 0) | (low >= n) for low, high, n in places])
    least = np.zeros(wholly.shape, np.int64 if array.type == "int" else np.float64)
    greatest, known = least.copy(), np.asarray(wholly)
    fixed = [low == high for low, high in zip(lows, highs, strict=True)]
    for dimension in range(array.rank):
        rest = [i for i in range(array.rank) if i != dimension]
        here = np.logical_and.reduce([~known, *(fixed[i] for i in rest)])
        if here.any():
            low, high = (np.clip(x[here], 0, shape[dimension] - 1) for x in places[dimension][:2])
            at = [lows[i][here] for i in rest]
            least[here], greatest[here] = _pyramid(array, dimension).extremes(at, low, high)
            known = known | here
    zero = partly & ~wholly
    least = np.where(zero, np.minimum(least, 0), least)
    greatest = np.where(zero, np.maximum(greatest, 0), greatest)
    return least, greatest, known


class Pyramid:
    """Least and greatest elements of blocks of 1, 2, 4, ... along one dimension of a table."""

    def __init__(self, data: np.ndarray, dimension: int) -> None:
        level = np.moveaxis(data, dimension, -1)
        dtype = np.float64 if data.dtype.kind == "f" else np.int64
        lows, highs = [level.astype(dtype)], [level.astype(dtype)]
        if dtype == np.float64:
            lows[0][np.isnan(lows[0])] = -np.inf
            highs[0][np.isnan(highs[0])] = np.inf
        while lows[-1].shape[-1] > 1:
            starts = np.arange(0, lows[-1].shape[-1], 2)
            lows.append(np.minimum.reduceat(lows[-1], starts, axis=-1))
            highs.append(np.maximum.reduceat(highs[-1], starts, axis=-1))
        widths = [x.shape[-1] for x in lows]
        self.starts = np.cumsum([0, *widths[:-1]])
        self.lows, self.highs = np.concatenate(lows, axis=-1), np.concatenate(highs, axis=-1)

    def extremes(self, at: list[Any], low: Any, high: Any) -> tuple[Any, Any]:
        """Over the elements low .. high of the lines `at` of the other dimensions."""
        # blocks of a quarter of the range: five of them cover it
        level = np.maximum(np.frexp((high - low).astype(np.float64))[1] - 2, 0)
        first, last, start = low >> level, high >> level, self.starts[level]
        least = greatest = None
        for step in range(5):
            place = (*at, start + np.minimum(first + step, last))
            a, b = self.lows[place], self.highs[place]
            least = a if least is None else np.minimum(least, a)
            greatest = b if greatest is None else np.maximum(greatest, b)
        return least, greatest


@lru_cache(maxsize=8)  # of the tables in use: they serve all boxes of a plan
def _pyramid(table: Array, dimension: int) -> Pyramid:
    return Pyramid(table.data, dimension)
