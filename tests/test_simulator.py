"""The simulator against counts done by hand, brute force, and the model's own promises."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from simulator_plans import FULL, FakePlan, one_line, random_kinds

import maskdsl
from maskdsl.errors import BindError
from maskdsl.simulator import load_device, simulate, speedup_bounds
from maskdsl.simulator.schedule import makespan, timeline

DEVICES = ["a100", "b200", "h100", "h200", "mi300x", "rtx4090"]


# Bounds


def test_bounds_by_hand():
    # Two query tiles of 4 lanes, four key tiles of 2: 8 x 8 pairs. The first row visits one tile,
    # the second three of them; 4 * 2 * 2 pairs in full tiles and 3 + 5 in partial ones are allowed.
    plan = FakePlan([[[1, 0, 0, 0], [1, 2, 2, 0]]], q_lanes=4, kv_lanes=2, pairs=4 * 2 * 2 + 3 + 5)
    assert speedup_bounds(plan) == {"flops": 64 / 24, "tiles": 8 / 4, "rows": 4 / 3}


def test_bounds_take_the_heaviest_row_of_any_head():
    plan = FakePlan([[[1, 0], [1, 0]], [[1, 1], [0, 0]]])
    bounds = speedup_bounds(plan)
    assert bounds["tiles"] == 8 / 4
    assert bounds["rows"] == 2 / 2


def test_bounds_get_tighter_in_order():
    rng = np.random.default_rng(0)
    for _ in range(50):
        bounds = speedup_bounds(FakePlan(random_kinds(rng)))
        assert bounds["flops"] >= bounds["tiles"] >= bounds["rows"] >= 1


def test_empty_mask_has_no_bound_and_full_mask_no_speedup():
    empty = simulate(FakePlan(np.zeros((3, 8, 8), int)))
    assert empty.bounds == {"flops": math.inf, "tiles": math.inf, "rows": math.inf}
    assert empty.speedup > 1
    full = simulate(FakePlan(np.ones((3, 8, 8), int)))
    assert full.bounds == {"flops": 1, "tiles": 1, "rows": 1}
    assert full.time == full.dense_time
    assert full.speedup == 1


def test_bounds_of_tiles_that_leave_lanes_empty() -> None:
    # Tiles of 16 lanes that start every 8 tokens hold 8 each: twice as many as dense attention's.
    mask = maskdsl.parse("pattern p over (n) keep true").bind(n=64)
    half = maskdsl.Tile(16, pitch=8)
    bounds = [
        speedup_bounds(mask.plan(q, k)) for q, k in ((16, 16), (half, 16), (16, half), (half, half))
    ]
    assert [b["tiles"] for b in bounds] == [b["rows"] for b in bounds] == [1, 1 / 2, 1 / 2, 1 / 4]
    assert simulate(mask.plan(16, half)).speedup < 1


def test_pairs_that_an_input_decides_leave_the_other_bounds():
    plan = FakePlan([[[2, 2]]])
    plan.pairs = None
    bounds = simulate(plan).bounds
    assert math.isnan(bounds["flops"])
    assert bounds["tiles"] == bounds["rows"] == 1


# The schedule


def greedy(durations, units):
    loads = [0.0] * units
    for duration in sorted(durations, reverse=True):
        first = loads.index(min(loads))
        loads[first] += duration
    return max(loads)


def optimum(durations, units):
    return min(
        max(
            sum(d for d, u in zip(durations, choice, strict=True) if u == unit)
            for unit in range(units)
        )
        for choice in itertools.product(range(units), repeat=len(durations))
    )


def test_schedule_is_longest_first_and_near_the_optimum():
    rng = np.random.default_rng(1)
    for _ in range(60):
        units = int(rng.integers(1, 4))
        durations = rng.integers(1, 9, size=int(rng.integers(1, 7))).astype(float)
        kinds, counts = np.unique(durations, return_counts=True)
        end = makespan(kinds, counts, units)
        assert end == pytest.approx(greedy(durations, units))
        best = optimum(durations, units)
        assert best <= end * (1 + 1e-12)
        assert end <= (4 / 3 - 1 / (3 * units)) * best * (1 + 1e-12)  # Graham, 1969


def test_schedule_of_many_equal_rows_is_the_greedy_one():
    rng = np.random.default_rng(2)
    for _ in range(60):
        units = int(rng.integers(1, 8))
        kinds = np.unique(rng.integers(1, 50, size=4)).astype(float)
        counts = rng.integers(1, 60, size=len(kinds))
        expected = greedy(np.repeat(kinds, counts), units)
        assert makespan(kinds, counts, units) == pytest.approx(expected)


def test_schedule_waves():
    one = np.array([2.5])
    assert makespan(one, np.array([132]), 132) == 2.5
    assert makespan(one, np.array([133]), 132) == 5.0
    assert makespan(one, np.array([132 * 10**9]), 132) == pytest.approx(2.5e9)
    assert makespan(one, np.array([0]), 132) == 0


def test_the_timeline_is_the_schedule_that_the_makespan_ends():
    rng = np.random.default_rng(8)
    for _ in range(40):
        units = int(rng.integers(1, 6))
        durations, counts = rng.integers(1, 9, size=4) * 1.0, rng.integers(0, 9, size=4)
        machine, start, end = timeline(durations, counts, units)
        assert len(machine) == counts.sum()
        assert end.max(initial=0) == pytest.approx(makespan(durations, counts, units))
        for unit in range(units):
            own = np.argsort(start[machine == unit])
            starts, ends = start[machine == unit][own], end[machine == unit][own]
            assert (starts[1:] == ends[:-1]).all()  # one at a time, and never idle between two


def test_longer_or_more_rows_never_end_earlier():
    rng = np.random.default_rng(3)
    for _ in range(200):
        units = int(rng.integers(1, 6))
        durations = rng.integers(0, 12, size=12).astype(float)
        longer = durations + rng.integers(0, 2, size=12) * rng.integers(0, 4)
        ones = np.ones(12, dtype=np.int64)
        assert makespan(longer, ones, units) >= makespan(durations, ones, units)


# What limits it


def test_bottlenecks():
    dense = np.ones((1, 2048, 64), int)
    assert simulate(FakePlan(dense)).bottleneck == "matrix products"
    assert simulate(FakePlan([[[FULL]]], 16, 16)).bottleneck == "launch"
    assert simulate(FakePlan(np.ones((1, 2, 512), int))).bottleneck == "too few rows"
    long = np.zeros((1, 200, 2048), int)
    long[0, :, 0], long[0, 7] = FULL, FULL
    assert simulate(FakePlan(long)).bottleneck == "one long row"
    # On a card with little bandwidth, rows of one small tile only move q, k, v and o.
    diagonal = np.eye(2000, dtype=int)[None]
    slow = replace(load_device("h100"), memory_bandwidth=1e11)
    moved = simulate(FakePlan(diagonal, 16, 16), heads=4, device=slow)
    assert moved.bottleneck in ("memory", "row overhead")


def test_shares_sum_to_one():
    rng = np.random.default_rng(5)
    for device in DEVICES:
        shares = simulate(FakePlan(random_kinds(rng)), heads=2, device=device).sparse.shares
        assert sum(shares.values()) == pytest.approx(1)
        assert min(shares.values()) >= 0


# Arguments


def test_heads_and_batch_repeat_the_pattern():
    kinds = random_kinds(np.random.default_rng(6), (1, 30, 9))
    one = FakePlan(kinds)
    many = FakePlan(np.repeat(kinds, 24, axis=0))
    repeated = simulate(one, heads=24)
    assert repeated.time == pytest.approx(simulate(many).time)
    assert repeated.heads == 24
    assert simulate(one, heads=12, batch=2).time == pytest.approx(repeated.time)
    assert simulate(many, heads=24) == simulate(many)


def test_a_device_of_any_name_plans_a_mask() -> None:
    mask = maskdsl.parse("pattern f over (n) keep causal(n)").bind(n=1024)
    named = dataclasses.replace(load_device("h100"), name="my own GPU, 80 GB")
    assert simulate(mask, device=named).time == simulate(mask, device="h100").time


def test_a_mask_is_planned_with_the_models_own_tiles() -> None:
    mask = maskdsl.load("std/natten2d").bind(
        y=64, x=64, window=[9, 9], stride=[1, 1], dilation=[1, 1], causal=[False, False]
    )
    found = simulate(mask, device="h100")
    plain = simulate(mask.plan(q_tile=(2, 64), kv_tile=(1, 64)), device="h100")
    assert found.q_lanes == 128 and found.time < plain.time


def test_prediction_is_deterministic_and_plain():
    plan = FakePlan(random_kinds(np.random.default_rng(7)))
    first, second = simulate(plan), simulate(plan)
    assert first == second
    record = json.loads(json.dumps(first.to_dict()))
    assert record["speedup"] == pytest.approx(record["dense_time"] / record["time"])
    assert record["device"] == "h200" and record["tiles"]["total"] == plan.tiles.total
    table = first.table()
    assert "speedup" in table and f"{first.speedup:.2f}x" in table and first.bottleneck in table
    assert "\x1b" not in table and max(map(len, table.splitlines())) <= 100


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({"device": "h10"}, ["unknown device 'h10'", "a100", "did you mean 'h100'?"]),
        ({"device": 3}, ["device", "int"]),
        ({"device": "nowhere.toml"}, ["cannot read", "nowhere.toml"]),
        ({"dtype": "bf61"}, ["unknown dtype 'bf61'", "bf16"]),
        ({"engine": "nattn"}, ["unknown engine 'nattn'", "did you mean 'natten'?"]),
        ({"queries": 0}, ["queries", "at least 1"]),
        ({"splits": 0}, ["splits", "at least 1"]),
        ({"kv_heads": 3}, ["heads (2)", "kv_heads (3)"]),
        ({"inputs": {}}, ["with a mask"]),
        ({"direction": "backward", "queries": 1}, ["queries", "forward"]),
        ({"direction": "foward"}, ["unknown direction 'foward'", "did you mean 'forward'?"]),
        ({"heads": 5}, ["heads=5", "2"]),
        ({"heads": 0}, ["heads", "at least 1"]),
        ({"head_dim": 0}, ["head_dim"]),
        ({"head_dim": 64.5}, ["head_dim", "64.5"]),
        ({"batch": True}, ["batch"]),
    ],
)
def test_bad_arguments_give_one_line(arguments, words):
    with pytest.raises(BindError) as error:
        simulate(FakePlan(np.ones((2, 2, 2), int)), **arguments)
    text = one_line(error)
    assert all(word in text for word in words)


def test_only_masks_and_plans_are_simulated():
    wrong: Any = "causal"
    with pytest.raises(BindError) as error:
        simulate(wrong)
    assert "a mask, a plan or a kernel, not str" in one_line(error)
