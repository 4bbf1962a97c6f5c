"""Bounds of tables over ranges of indices, and the plans that need them."""

from __future__ import annotations

import time

import numpy as np
import pytest
from test_planner import assert_exact

import maskdsl
from maskdsl import Tile
from maskdsl.ir.nodes import Array
from maskdsl.ir.table_ranges import extremes


def table(rng: np.random.Generator, shape: tuple[int, ...], type_: str, name: str) -> Array:
    data = rng.integers(-50, 50, shape) if type_ == "int" else rng.normal(size=shape)
    return Array(name, type_, shape, False, data, name)


def elements(data: np.ndarray, box: list[tuple[int, int]]) -> np.ndarray:
    """Of a box of indices, both ends included: 0 outside the table."""
    wide = np.pad(data, 40)
    return wide[tuple(slice(a + 40, b + 41) for a, b in box)]


@pytest.mark.parametrize("type_", ["int", "float"])
@pytest.mark.parametrize("shape", [(1,), (7,), (64,), (37, 5), (3, 16, 6)])
def test_ranges_hold_their_elements(shape: tuple[int, ...], type_: str) -> None:
    rng = np.random.default_rng(len(shape) + shape[0])
    array = table(rng, shape, type_, f"{shape} {type_}")
    size = 400
    varying = rng.integers(0, len(shape), size)
    ranges = []
    for d, extent in enumerate(shape):
        low = rng.integers(-6, extent + 6, size)
        width = rng.integers(0, extent + 8, size) * (varying == d)
        ranges.append((low, low + np.minimum(width, 30)))
    least, greatest, known = extremes(array, ranges)
    assert known.all()
    exact = 0
    for i in range(size):
        found = elements(array.data, [(int(a[i]), int(b[i])) for a, b in ranges])
        assert least[i] <= found.min()
        assert greatest[i] >= found.max()
        exact += bool(least[i] == found.min() and greatest[i] == found.max())
        if found.size == 1 or all(
            b[i] < 0 or a[i] >= n for (a, b), n in zip(ranges, shape, strict=True)
        ):
            assert least[i] == greatest[i] == found.flat[0]
    assert exact > 0.6 * size


def test_aligned_ranges_are_exact() -> None:
    array = table(np.random.default_rng(0), (256,), "int", "aligned")
    for width in (1, 2, 4, 8, 64, 256):
        low = np.arange(0, 256, width)
        least, greatest, _ = extremes(array, [(low, low + width - 1)])
        rows = array.data.reshape(-1, width)
        np.testing.assert_array_equal(least, rows.min(1))
        np.testing.assert_array_equal(greatest, rows.max(1))


def test_ranges_in_several_dimensions_are_left_open() -> None:
    array = table(np.random.default_rng(0), (8, 8), "int", "square")
    low, high = np.zeros(2, dtype=np.int64), np.array([3, 0])
    assert extremes(array, [(low, high), (low, low + 3)])[2].tolist() == [False, True]


def test_not_a_number_is_anything() -> None:
    array = Array("x", "float", (8,), False, np.array([0, 1, np.nan, 3, 4, 5, 6, 7.0]), "nan")
    least, greatest, _ = extremes(array, [(np.array([0, 4]), np.array([3, 7]))])
    assert least.tolist() == [-np.inf, 4]
    assert greatest.tolist() == [np.inf, 7]


CONDITIONS = [
    "start[q.n] <= k.n and k.n < stop[q.n]", "start[q.n] == start[k.n] and causal(n)",
    "k.n - q.n <= shift[k.n]", "level[q.n] > level[k.n]", "shift[q.n // 2 + 3] == k.n % 5",
    "q.n >= 3 and shift[q.n - 3] < shift[k.n]", "band[head, q.n] <= abs(q.n - k.n)",
    "abs(level[k.n]) < 0.5 or k.n < start[q.n]", "shift[clamp(q.n - k.n, 0, n.size - 1)] > 1",
    "near(n, shift[q.n])",
]  # fmt: skip


@pytest.mark.parametrize("seed", range(60))
def test_plans_with_tables_are_exact(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 90))
    x, y = rng.choice(CONDITIONS, 2)
    text = (
        "pattern tables(start: int[n], stop: int[n], shift: int[n + 4], level: float[n], "
        f"band: int[heads, n]) over (n) keep {x} keep {y}"
    )
    cuts = np.sort(rng.integers(0, n, 3))
    start = np.concatenate([[0], cuts])[np.searchsorted(cuts, np.arange(n), side="right")]
    stop = np.concatenate([cuts, [n]])[np.searchsorted(cuts, np.arange(n), side="right")]
    mask = maskdsl.parse(text).bind(
        n=n, heads=2, start=start, stop=stop, shift=rng.integers(-3, 9, n + 4),
        level=np.sort(rng.normal(size=n)), band=rng.integers(0, 20, (2, n)),
    )  # fmt: skip
    step = int(rng.integers(1, 4))
    q_tile = Tile((int(2 ** rng.integers(0, 5)),), (step,), (int(rng.integers(-9, 9)),))
    assert_exact(mask, mask.plan(q_tile, int(2 ** rng.integers(0, 5))))


def test_tables_are_planned_without_a_look_at_every_pair() -> None:
    """Documents of 65,536 tokens by tables of where they start and stop: 2 ** 32 pairs."""
    n, rng = 65_536, np.random.default_rng(0)
    cuts = np.sort(rng.choice(np.arange(1, n), 40, replace=False))
    begins, ends = np.append(0, cuts), np.append(cuts, n)
    number = np.searchsorted(cuts, np.arange(n), side="right")
    text = (
        "pattern packed(start: int[n], stop: int[n]) over (n) "
        "keep start[q.n] <= k.n and k.n < stop[q.n]"
    )
    mask = maskdsl.parse(text).bind(n=n, start=begins[number], stop=ends[number])
    clock = time.process_time()
    plan = mask.plan(128, 128)
    assert time.process_time() - clock < 1.0
    lengths = ends - begins
    assert plan.pairs == int((lengths**2).sum())
    blocks = (ends - 1) // 128 - begins // 128 + 1  # tiles that hold tokens of a document
    visited = plan.tiles.full + plan.tiles.partial
    assert blocks.max() ** 2 < visited <= int((blocks**2).sum())
