"""Plans that are written down or worked out by brute force, for the simulator's tests."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np

EMPTY, FULL, PARTIAL = 0, 1, 2


@dataclass(frozen=True)
class FakeTile:
    lanes: int


@dataclass(frozen=True)
class FakeCounts:
    empty: int
    full: int
    partial: int
    total: int


@dataclass(frozen=True)
class FakeClass:
    heads: tuple[int, ...]


class FakePlan:
    """A plan given by the kinds of its tiles, an int array (heads, query tiles, key tiles)."""

    def __init__(self, kinds, q_lanes=128, kv_lanes=128, pairs=None):
        self.kinds = kinds = np.asarray(kinds)
        heads, self.q_tiles, self.kv_tiles = kinds.shape
        self.mask_shape = (heads, self.q_tiles * q_lanes, self.kv_tiles * kv_lanes)
        self.q_tile, self.kv_tile = FakeTile(q_lanes), FakeTile(kv_lanes)
        full, partial = int((kinds == FULL).sum()), int((kinds == PARTIAL).sum())
        self.tiles = FakeCounts(kinds.size - full - partial, full, partial, kinds.size)
        self.head_classes = [FakeClass((head,)) for head in range(heads)]
        self.pairs = (full * q_lanes * kv_lanes + partial) if pairs is None else pairs

    def row_counts(self, head):
        kinds = self.kinds[head]
        return (kinds == FULL).sum(1).astype(np.int64), (kinds == PARTIAL).sum(1).astype(np.int64)

    def column_counts(self, head):
        kinds = self.kinds[head]
        return (kinds == FULL).sum(0).astype(np.int64), (kinds == PARTIAL).sum(0).astype(np.int64)


def random_kinds(rng, shape=(2, 7, 9)):
    return rng.integers(0, 3, size=shape)


def natten_axis(extent, window, stride, q_size, kv_size):
    """Visited key tiles by query tile, full ones, allowed pairs, number of key tiles."""
    i, j = np.arange(extent)[:, None], np.arange(extent)[None, :]
    leader = np.minimum(i // stride * stride + stride // 2, extent - 1)
    start = np.clip(leader - window // 2, 0, extent - window)
    allowed = (start <= j) & (j < start + window)
    q_tiles, kv_tiles = -(-extent // q_size), -(-extent // kv_size)
    visited, full = np.zeros(q_tiles, int), np.zeros(q_tiles, int)
    for a, b in itertools.product(range(q_tiles), range(kv_tiles)):
        block = allowed[a * q_size : (a + 1) * q_size, b * kv_size : (b + 1) * kv_size]
        visited[a] += block.any()
        full[a] += block.all()
    return visited, full, int(allowed.sum()), kv_tiles


class SeparablePlan(FakePlan):
    """A plan of a product of masks, one for each axis: rows multiply, and no tile is stored."""

    def __init__(self, shape, window, stride, q_size, kv_size):
        axes = [
            natten_axis(*axis) for axis in zip(shape, window, stride, q_size, kv_size, strict=True)
        ]
        visited = full = np.ones(1, dtype=np.int64)
        for axis_visited, axis_full, _, _ in axes:
            visited = np.outer(visited, axis_visited).ravel()
            full = np.outer(full, axis_full).ravel()
        self._rows = (full, visited - full)
        self.pairs = math.prod(axis[2] for axis in axes)
        self.q_tiles, self.kv_tiles = len(full), math.prod(axis[3] for axis in axes)
        self.mask_shape = (1, math.prod(shape), math.prod(shape))
        self.q_tile, self.kv_tile = FakeTile(math.prod(q_size)), FakeTile(math.prod(kv_size))
        total = self.q_tiles * self.kv_tiles
        count_full, count = int(full.sum()), int(visited.sum())
        self.tiles = FakeCounts(total - count, count_full, count - count_full, total)
        self.head_classes = [FakeClass((0,))]

    def row_counts(self, head):
        return self._rows


def one_line(error) -> str:
    text = str(error.value)
    assert text and "\n" not in text
    return text
