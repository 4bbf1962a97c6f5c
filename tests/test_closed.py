"""Closed forms of walks against the tree's rows and against the dense definition."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import grid_cases  # noqa: F401  registers its cases
import numpy as np
import pytest
from library_cases import CASES
from random_patterns import random_case

import maskdsl
from maskdsl import Tile
from maskdsl.planner.boxes import Side
from maskdsl.planner.closed import ClosedForm, closed_form, open_form
from maskdsl.planner.rows import Placed, Runs, unfold

FUNCTIONS = """
def tile_window(a: axis, size: int, window: int)
let tiles = (a.size + size - 1) // size
let start = clamp(q.a // size - window // 2, 0, tiles - window)
return start <= k.a // size < start + window

def overlapped(a: axis, size: int, wide: int)
let start = q.a // size * size - (wide - size) // 2
return start <= k.a < start + wide

def shifted_window(a: axis, size: int, shift: int)
let s = if size < a.size then shift else 0
return (q.a - s) // size == (k.a - s) // size

def rolled_window(a: axis, size: int, shift: int)
return (q.a - shift) % a.size // size == (k.a - shift) % a.size // size
"""

# One condition per axis {a}; {w} and {u} are 1 to 24, {s} 1 to 6 and at most {w}.
INTERVALS = {
    "causal": "causal({a})",
    "window": "near({a}, {w})",
    "causal window": "0 <= q.{a} - k.{a} < {w}",
    "uneven window": "-{u} <= q.{a} - k.{a} <= {w}",
    "ahead": "0 <= k.{a} - q.{a} < {w}",
    "behind, itself excluded": "0 < q.{a} - k.{a} <= {w}",
    "ahead, itself excluded": "0 < k.{a} - q.{a} <= {w}",
    "blocks": "block({a}, {w})",
    "chunks": "causal({a}) and block({a}, {w})",
    "block-causal": "k.{a} // {w} <= q.{a} // {w}",
    "block-causal, by remainders": "k.{a} - k.{a} % {w} <= q.{a}",
    "earlier blocks": "k.{a} // {w} < q.{a} // {w}",
    "window of blocks": "abs(q.{a} // {s} - k.{a} // {s}) <= {u}",
    "neighborhood": "neighborhood({a}, {w})",
    "neighborhood with stride": "neighborhood({a}, {w}, stride={s})",
    "causal neighborhood": "neighborhood({a}, {w}, stride={s}, causal=true)",
    "overlapping windows": "overlapped({a}, {s}, {w})",
    "shifted windows": "shifted_window({a}, {w}, {s})",
    "sliding tiles": "tile_window({a}, {s}, 3)",
    "first keys": "k.{a} < {w}",
    "all but the first keys": "not (k.{a} < {w}) and causal({a})",
    "nearest of two": "k.{a} <= min(q.{a} + {w}, {u}) and max(k.{a} - {s}, k.{a} - 2) <= q.{a}",
    "everything": "true",
}
DILATED = {
    "dilated": "dilated({a}, {w}, {s})",
    "dilated neighborhood": "neighborhood({a}, {w}, dilation={s})",
    "dilated, stride": "neighborhood({a}, {w}, dilation={s}, stride=2, causal=true)",
    "residues, causal": "causal({a}) and q.{a} % {s} == k.{a} % {s}",
}
BANDS = {
    "sinks and window": "causal({a}) and (k.{a} < {u} or q.{a} - k.{a} < {w})",
    "sinks and window on both sides": "k.{a} < {u} or near({a}, {w})",
    "sinks and blocks": "k.{a} < {u} or block({a}, {w})",
    "sinks and neighborhood": "neighborhood({a}, {w}, stride={s}) or k.{a} < {u}",
}


def fill(rng: np.random.Generator, condition: str, axis: str) -> str:
    w, u = (int(x) for x in rng.integers(1, 25, 2))
    return condition.format(a=axis, w=w, u=u, s=int(rng.integers(1, min(6, w) + 1)))


def masked(keep: str, **extents: int) -> maskdsl.Mask:
    text = f"{FUNCTIONS}\npattern walked over ({', '.join(extents)})\nkeep {keep}"
    return maskdsl.parse(text).bind(**extents)


def tile(rng: np.random.Generator, rank: int, steps: tuple[int, ...] = ()) -> Tile:
    """Any sizes, origins on half of the axes."""
    size = tuple(int(2 ** rng.integers(0, {1: 7, 2: 4, 3: 3}[rank])) for _ in range(rank))
    origin = tuple(int(rng.integers(-9, 10)) if rng.random() < 0.5 else 0 for _ in range(rank))
    return Tile(size, steps or 1 if rank == 1 else steps or (1,) * rank, origin)


def walks(
    mask: maskdsl.Mask, q_tile: Any, kv_tile: Any
) -> Iterator[tuple[ClosedForm | str, Runs, tuple[Side, ...]]]:
    """Per head class and pair of segments: the closed form, or why there is none, and the rows."""
    for head_class in mask.plan(q_tile, kv_tile).head_classes:
        for tree in head_class.all_trees:
            sides = tree.space.sides
            runs = unfold([Placed(tree, 0, 0)], sides[0].grid.count)
            yield closed_form(tree.keep, *sides), runs, sides


def assert_same(form: ClosedForm, runs: Runs, sides: tuple[Side, ...]) -> None:
    found = form.runs(*(s.grid for s in sides))
    for name in ("offsets", "first", "count", "full"):
        assert np.array_equal(getattr(found, name), getattr(runs, name)), (name, form.text())


def assert_closed(mask: maskdsl.Mask, q_tile: Any, kv_tile: Any) -> None:
    for form, runs, sides in walks(mask, q_tile, kv_tile):
        assert isinstance(form, ClosedForm), form
        assert_same(form, runs, sides)
        if form.no_empty_row:
            assert all(mask.dense(head=h).any(1).all() for h in range(mask.heads))


@pytest.mark.parametrize("name", INTERVALS)
def test_intervals_have_a_closed_form(name: str) -> None:
    rng = np.random.default_rng(list(name.encode()))
    for _ in range(30):
        mask = masked(fill(rng, INTERVALS[name], "n"), n=int(rng.integers(2, 81)))
        assert_closed(mask, tile(rng, 1), tile(rng, 1))


@pytest.mark.parametrize("name", BANDS)
def test_first_keys_and_an_interval_have_a_closed_form(name: str) -> None:
    rng = np.random.default_rng(list(name.encode()))
    for _ in range(60):
        mask = masked(fill(rng, BANDS[name], "n"), n=int(rng.integers(2, 81)))
        assert_closed(mask, tile(rng, 1), tile(rng, 1))


@pytest.mark.parametrize("name", DILATED)
def test_residue_tiles_of_a_dilated_pattern_have_a_closed_form(name: str) -> None:
    rng = np.random.default_rng(list(name.encode()))
    for _ in range(40):
        w, s = int(rng.integers(1, 9)), int(rng.integers(2, 6))
        n = int(rng.integers(2 * s, 81))  # of fewer, the residue may be the coordinate itself
        mask = masked(DILATED[name].format(a="n", w=max(w, 2), s=s), n=n)
        assert_closed(mask, tile(rng, 1, (s,)), tile(rng, 1, (s,)))
        for form, _, _ in walks(mask, 8, 8):
            assert isinstance(form, str)


@pytest.mark.parametrize("seed", range(150))
def test_axes_multiply(seed: int) -> None:
    rng = np.random.default_rng(seed)
    axes = "tyx"[: int(rng.integers(2, 4))]
    extents = {a: int(rng.integers(2, 15 if len(axes) == 2 else 8)) for a in axes}
    conditions = [fill(rng, str(rng.choice(list(INTERVALS.values()))), a) for a in axes]
    mask = masked(" and ".join(f"({c})" for c in conditions), **extents)
    assert_closed(mask, tile(rng, len(axes)), tile(rng, len(axes)))


@pytest.mark.parametrize("seed", range(60))
def test_tiles_with_empty_lanes_have_a_closed_form(seed: int) -> None:
    rng = np.random.default_rng(seed)
    conditions = [fill(rng, str(rng.choice(list(INTERVALS.values()))), a) for a in "yx"]
    extents = {a: int(rng.integers(2, 15)) for a in "yx"}
    mask = masked(" and ".join(f"({c})" for c in conditions), **extents)
    size, pitch = (8, 4), (int(rng.integers(1, 9)), int(rng.integers(1, 5)))
    assert_closed(mask, Tile(size, pitch=pitch), Tile(size, origin=(3, 1), pitch=pitch))


def test_tiles_that_wrap_follow_windows_that_wrap() -> None:
    mask = masked("rolled_window(n, 8, 3)", n=40)
    assert_closed(mask, Tile(8, origin=3, wrap=True), Tile(4, origin=3, wrap=True))
    assert_closed(mask, Tile(16, origin=3, wrap=True), Tile(8, origin=3, wrap=True))
    assert all(isinstance(form, str) for form, _, _ in walks(mask, 8, 8))


@pytest.mark.parametrize("seed", range(40))
def test_queries_and_keys_of_different_axes(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n, m, shift = (int(x) for x in rng.integers(2, 60, 3))
    keep = rng.choice([f"k.m <= q.n + {shift}", f"k.m // 4 <= q.n // 3 < k.m // 4 + {shift}"])
    mask = maskdsl.parse(f"pattern cross over (n) -> (m) keep {keep}").bind(n=n, m=m)
    assert_closed(mask, tile(rng, 1), tile(rng, 1))


@pytest.mark.parametrize("odd", [False, True])
@pytest.mark.parametrize("seed", range(150))
def test_random_patterns_with_a_closed_form_agree_with_the_tree(seed: int, odd: bool) -> None:
    case = random_case(seed, odd=odd)
    for form, runs, sides in walks(case.mask(), case.q_tile, case.kv_tile):
        if isinstance(form, ClosedForm):
            assert_same(form, runs, sides)
        else:
            assert form and len(form) <= 200 and "\n" not in form


@pytest.mark.parametrize("seed", range(60))
def test_kinds_are_those_of_the_definition(seed: int) -> None:
    rng = np.random.default_rng(seed)
    families = [*INTERVALS.values(), *BANDS.values()]
    n = int(rng.integers(2, 60))
    mask = masked(fill(rng, str(rng.choice(families)), "n"), n=n)
    q_tile, kv_tile = tile(rng, 1), tile(rng, 1)
    truth, plan = mask.dense(), mask.plan(q_tile, kv_tile)
    ((form, _, sides),) = walks(mask, q_tile, kv_tile)
    assert isinstance(form, ClosedForm)
    runs = form.runs(*(s.grid for s in sides))
    for row in range(plan.q_tiles):
        kinds = {}
        for i in range(runs.offsets[row], runs.offsets[row + 1]):
            for step in range(runs.count[i]):
                kinds[int(runs.first[i]) + step] = "full" if runs.full[i] else "partial"
        for column in range(plan.kv_tiles):
            pairs = truth[np.ix_(plan.tokens("q", row), plan.tokens("k", column))]
            kind = "full" if pairs.all() else "partial" if pairs.any() else "empty"
            assert kinds.get(column, "empty") == kind, form.text()


# Entries of the library that must have a closed form under plain tiles, whatever is bound.
CLOSED = (
    "full", "full:cross", "causal", "sliding_window", "local", "blocks", "chunked", "prefix_lm",
    "streaming", "alternating", "block_diffusion", "shifted_groups", "swin", "swin:swin3d", "block",
    "overlapping", "axial", "stripe", "sliding_tile", "sliding_tile:sliding_tile_text",
    "temporal_head:temporal_head_columns",
)  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_library(name: str) -> None:
    rng = np.random.default_rng(list(name.encode()))
    file, _, pattern = name.partition(":")
    for _ in range(8):
        case = CASES[name](rng)
        mask = maskdsl.load(f"std/{file}", pattern or None).bind(**case.bound)
        segments = [[len(s.axes) for s in x] for x in (mask.program.queries, mask.program.keys)]
        tiles = [[tile(rng, rank) for rank in ranks] for ranks in segments]
        q_tile, kv_tile = (t if len(t) > 1 else t[0] for t in tiles)
        for form, runs, sides in walks(mask, q_tile, kv_tile):
            assert isinstance(form, ClosedForm) or name not in CLOSED, form
            if isinstance(form, ClosedForm):
                assert_same(form, runs, sides)


def assert_open(text: str, q_tile: Tile, kv_tile: Tile, lengths: list[dict[str, int]]) -> None:
    """One form, derived with extents left open, walks as the tree does for all of these."""
    pattern = maskdsl.parse(text)
    block = pattern.bind().program.only
    form = open_form(block.keep, block.queries.axes, block.keys.axes, q_tile, kv_tile)
    assert isinstance(form, ClosedForm), form
    for extents in lengths:
        mask = pattern.bind(**extents)
        ((_, runs, sides),) = walks(mask, q_tile, kv_tile)
        assert_same(form.at(**extents), runs, sides)
        assert not form.no_empty_row or mask.dense().any(1).all()


@pytest.mark.parametrize("name", [*INTERVALS, *BANDS])
def test_one_form_for_all_extents(name: str) -> None:
    rng = np.random.default_rng(list(name.encode()))
    for _ in range(3):
        keep = fill(rng, {**INTERVALS, **BANDS}[name], "n")
        text = f"{FUNCTIONS}\npattern walked over (n)\nkeep {keep}"
        lengths = [{"n": int(n)} for n in (1, 2, *rng.integers(3, 100, 8))]
        assert_open(text, tile(rng, 1), tile(rng, 1), lengths)


@pytest.mark.parametrize("name", DILATED)
def test_one_form_for_all_extents_of_residue_tiles(name: str) -> None:
    rng = np.random.default_rng(list(name.encode()))
    text = f"pattern walked over (n)\nkeep {DILATED[name].format(a='n', w=5, s=3)}"
    lengths = [{"n": int(n)} for n in (1, 2, *rng.integers(3, 100, 8))]
    assert_open(text, Tile(8, 3), Tile(4, 3), lengths)
    assert_open(text, Tile(8, 3, 7), Tile(4, 3, 1), lengths)


def test_one_form_for_all_extents_of_several_axes() -> None:
    text = "pattern walked over (y, x)\nkeep neighborhood(y, 5, stride=2) and causal(x)"
    lengths = [{"y": y, "x": x} for y in (1, 4, 5, 9, 16) for x in (1, 7, 12)]
    assert_open(text, Tile((4, 4)), Tile((2, 4), origin=(1, 2)), lengths)
    cross = "pattern cross over (n) -> (m)\nkeep k.m - m.size <= q.n - n.size"
    lengths = [{"n": n, "m": m} for n in (1, 7, 30, 32) for m in (1, 8, 30, 61)]
    assert_open(cross, Tile(8), Tile(16), lengths)


def test_the_text_of_an_open_form() -> None:
    axes = (("n", None),)
    keep = maskdsl.parse("pattern p over (n) keep 0 <= q.n - k.n < 4096").bind().program.keep
    form = open_form(keep, axes, axes, Tile(128), Tile(128))
    assert isinstance(form, ClosedForm)
    assert form.text().startswith(
        "n tiles [max(i - 32, 0), i + 1), full [max(i - 31, 0), if n.size"
    )
    assert form.no_empty_row
    wraps = Tile(128, wrap=True)
    assert open_form(keep, axes, axes, wraps, wraps) == "tiles that wrap depend on the extent"


def test_text() -> None:
    ((form, _, _),) = walks(masked("0 <= q.n - k.n < 2048", n=8192), 64, 64)
    assert isinstance(form, ClosedForm)
    assert form.text() == "n tiles [max(i - 32, 0), i + 1), full [max(i - 31, 0), i)"
    assert form.no_empty_row


@pytest.mark.parametrize(
    ("keep", "reason"),
    [
        ("(q.n - k.n) % 4 == 0", "not an interval of keys: (q.n - k.n) % 4 == 0"),
        ("not near(n, 5)", "not an interval of keys: 6 <= abs(k.n - q.n)"),
        ("q.n < 5", "only some queries see keys: q.n <= 4"),
        ("near(n, 2) or q.n < 5", "only some queries see keys: "),
        ("k.n <= 40 - q.n", "queries further on may see keys further back on axis n"),
        ("3 * q.n <= k.n < 3 * q.n + 2", "the keys of two neighbours may leave a gap on axis n"),
        ("causal(n) and bit_count(q.n - k.n) <= 1", "not an interval of keys: "),
        ("near(n, 3) or 30 <= k.n < 33", "the fixed interval of keys does not come first: "),
        ("random(1, q.n, k.n) < 0.5", "not an interval of keys: random(1, q.n, k.n) < 0.5"),
    ],
)
def test_reasons(keep: str, reason: str) -> None:
    ((form, _, _),) = walks(masked(keep, n=64), 8, 8)
    assert isinstance(form, str) and form.startswith(reason)


@pytest.mark.parametrize(
    ("keep", "step", "reason"),
    [
        ("causal(n)", 2, "no condition picks one of 2 residue classes of n"),
        ("(q.n - k.n) % 2 == 0", 4, "not one of 4 residue classes of n: "),
        ("k.n % 3 == 2 * q.n % 3", 3, "not one of 3 residue classes of n: "),
    ],
)
def test_residue_tiles_without_a_closed_form(keep: str, step: int, reason: str) -> None:
    ((form, _, _),) = walks(masked(keep, n=64), Tile(8, step), Tile(8, step))
    assert isinstance(form, str) and form.startswith(reason)


def test_queries_may_see_another_residue_than_their_own() -> None:
    for n in (30, 31, 64):
        mask = masked("causal(n) and k.n % 3 == (q.n + 1) % 3", n=n)
        assert_closed(mask, Tile(4, 3), Tile(8, 3))
        assert_closed(mask, Tile(4, 6), Tile(8, 3))
        assert_closed(masked("k.n % 3 == 1 and k.n < 20", n=n), 16, Tile(8, 3))


def test_gaps_inside_a_tile_of_one_query_do_not_matter() -> None:
    assert_closed(masked("3 * q.n <= k.n < 3 * q.n + 2", n=64), 1, 4)
    assert_closed(masked("k.n <= 40 - q.n", n=64), 1, 4)


def test_an_axis_of_the_queries_that_bounds_two_axes_of_the_keys() -> None:
    mask = masked("k.y <= q.y and k.x <= q.y", y=8, x=8)
    ((form, _, _),) = walks(mask, (4, 4), (4, 4))
    assert form == "one axis of the queries bounds several axes of the keys"


def test_plans_explain_how_rows_are_walked() -> None:
    plan = maskdsl.load("std/block_diffusion").bind(n=1024, size=32).plan((64, 64), (64, 64))
    text = plan.explain()
    assert "  noised -> clean: closed form; n tiles [0, i + 1), full [0, i)" in text
    plan = maskdsl.load("std/strided").bind(n=1024, heads=2).plan(64, 64)
    lines = plan.explain().splitlines()
    at = [i for i, line in enumerate(lines) if line.startswith("heads ")]
    assert lines[at[0] + 1].startswith("  closed form; n tiles [max(i - 2, 0), i + 1)")
    assert lines[at[1] + 1] == ("  stored runs; not an interval of keys: (q.n - k.n) % 128 == 0")
