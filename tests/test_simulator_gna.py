"""The counts of the GNA paper (https://arxiv.org/abs/2504.16922), and neighborhoods of any kind."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulator_plans import SeparablePlan

import maskdsl
from maskdsl.simulator import simulate, speedup_bounds

HUNYUAN = {"shape": (30, 48, 80), "window": (18, 24, 24)}
HUNYUAN_TILES = {"q_size": (4, 8, 8), "kv_size": (2, 8, 8)}
GNA_ROWS = [
    ((1, 1, 1), 3.27),
    ((2, 1, 1), 3.60),
    ((1, 1, 8), 5.45),
    ((2, 1, 8), 6.00),
    ((1, 8, 8), 9.09),
    ((2, 8, 8), 10.0),
    ((16, 8, 8), 11.11),
    ((18, 24, 24), 6.67),
]


@pytest.mark.parametrize("stride, expected", GNA_ROWS)
def test_rows_bound_is_the_gna_papers(stride, expected):
    plan = SeparablePlan(**HUNYUAN, stride=stride, **HUNYUAN_TILES)
    assert round(simulate(plan, heads=24, device="b200").bounds["rows"], 2) == expected


@pytest.mark.parametrize("stride, expected", GNA_ROWS[::3])
def test_rows_bound_from_the_language_is_the_gna_papers(stride, expected):
    text = """
    pattern natten(window: int[3], stride: int[3]) over (t, h, w)
    keep neighborhood(t, window[0], stride[0]) and neighborhood(h, window[1], stride[1])
        and neighborhood(w, window[2], stride[2])
    """
    extents = dict(zip("thw", HUNYUAN["shape"], strict=True))
    bind = {"window": list(HUNYUAN["window"]), "stride": list(stride)}
    mask = maskdsl.parse(text).bind(**extents, **bind)
    plan = mask.plan(q_tile=HUNYUAN_TILES["q_size"], kv_tile=HUNYUAN_TILES["kv_size"])
    expected_plan = SeparablePlan(**HUNYUAN, stride=stride, **HUNYUAN_TILES)
    bounds = simulate(plan, heads=24).bounds
    assert round(bounds["rows"], 2) == expected
    assert bounds == pytest.approx(speedup_bounds(expected_plan))


@st.composite
def neighborhoods(draw):
    """Extents, windows, strides, query and key tiles of one or two axes, one tuple per axis."""
    axes = []
    for _ in range(draw(st.integers(1, 2))):
        extent = draw(st.integers(2, 40))
        window = draw(st.integers(1, extent))
        stride = draw(st.integers(1, window))
        sizes = [draw(st.sampled_from([1, 2, 4, 8, 16])) for _ in range(2)]
        axes.append((extent, window, stride, *sizes))
    return axes


@settings(max_examples=150, deadline=None)
@given(neighborhoods())
def test_bounds_of_any_neighborhood_are_those_counted_pair_by_pair(axes):
    names = "yx"[: len(axes)]
    conditions = " and ".join(
        f"neighborhood({a}, {w}, {s})" for a, (_, w, s, _, _) in zip(names, axes, strict=True)
    )
    mask = maskdsl.parse(f"pattern p over ({', '.join(names)}) keep {conditions}").bind(
        **{a: extent for a, (extent, *_) in zip(names, axes, strict=True)}
    )
    extents, windows, strides, q_tile, kv_tile = zip(*axes, strict=True)
    plan = mask.plan(q_tile=q_tile, kv_tile=kv_tile)
    by_hand = SeparablePlan(extents, windows, strides, q_tile, kv_tile)
    assert speedup_bounds(plan) == pytest.approx(speedup_bounds(by_hand))
    assert (plan.tiles.full, plan.tiles.partial) == (by_hand.tiles.full, by_hand.tiles.partial)
