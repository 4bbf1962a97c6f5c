"""What holds of every prediction, whatever the plan, device and engine."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulator_plans import EMPTY, FULL, PARTIAL, FakePlan

import maskdsl
from maskdsl.simulator import load_device, simulate
from maskdsl.simulator.rows import Rows

DEVICES = ["a100", "b200", "h100", "h200", "mi300x", "rtx4090"]
EXACT = 1 + 1e-9

plans = st.builds(
    lambda seed, shape, shares: np.random.default_rng(seed).choice(3, size=shape, p=shares),
    st.integers(0, 2**32),
    st.tuples(st.integers(1, 2), st.integers(1, 60), st.integers(1, 20)),
    st.sampled_from([(0.5, 0.3, 0.2), (0.9, 0.05, 0.05), (0.1, 0.8, 0.1), (0.3, 0.0, 0.7)]),
)
lanes = st.sampled_from([16, 64, 128])
settings_of_a_run = st.fixed_dictionaries(
    {
        "device": st.sampled_from(DEVICES),
        "direction": st.sampled_from(["forward", "backward"]),
        "head_dim": st.sampled_from([32, 64, 128]),
        "batch": st.sampled_from([1, 7]),
        "dtype": st.sampled_from(["bf16", "fp32"]),
    }
)


@settings(max_examples=150, deadline=None)
@given(plans, lanes, lanes, settings_of_a_run, st.sampled_from(["maskdsl", "natten"]), st.data())
def test_more_work_on_the_same_tiles_is_never_faster(kinds, q, k, run, engine, data):
    harder = kinds.copy()
    for _ in range(data.draw(st.integers(1, 30))):
        cell = tuple(data.draw(st.integers(0, n - 1)) for n in kinds.shape)
        harder[cell] = {EMPTY: FULL, FULL: PARTIAL, PARTIAL: PARTIAL}[int(harder[cell])]
    splits = data.draw(st.sampled_from([1, 3]))
    less, more = (
        simulate(FakePlan(x, q, k), engine=engine, splits=splits, **run) for x in (kinds, harder)
    )
    assert more.time >= less.time / EXACT
    assert more.bounds["tiles"] <= less.bounds["tiles"]


@settings(max_examples=150, deadline=None)
@given(plans, lanes, lanes, settings_of_a_run)
def test_the_tile_bound_is_beaten_by_wave_quantisation_alone(kinds, q, k, run):
    plan = FakePlan(kinds, q, k)
    p = simulate(plan, **run)
    waves = 1.0
    for dense in p.dense.passes:
        rows, slots = int(dense.schedule.counts.sum()), dense.schedule.slots
        if rows:
            waves = max(waves, -(-rows // slots) * slots / rows)
    assert p.speedup <= p.bounds["tiles"] * waves * EXACT


@settings(max_examples=100, deadline=None)
@given(plans, lanes, lanes, settings_of_a_run)
def test_full_and_empty_masks_are_exact(kinds, q, k, run):
    full = simulate(FakePlan(np.ones_like(kinds), q, k), **run)
    assert full.time == full.dense_time and full.speedup == 1
    assert set(full.bounds.values()) == {1}
    empty = simulate(FakePlan(np.zeros_like(kinds), q, k), **run)
    assert set(empty.bounds.values()) == {math.inf}
    assert empty.sparse.passes[-1].flops == 0
    some = simulate(FakePlan(kinds, q, k), **run)
    assert 0 < empty.time <= some.time * EXACT


@settings(max_examples=100, deadline=None)
@given(plans, lanes, lanes, settings_of_a_run, st.sampled_from([2.0, 1.5]))
def test_units(kinds, q, k, run, factor):
    """On a device whose every rate is higher by a factor, all but the launch takes less by it."""
    device = load_device(run["device"])
    faster = replace(
        device,
        clock=device.clock * factor,
        bf16_flops=device.bf16_flops * factor,
        fp32_flops=device.fp32_flops * factor,
        memory_bandwidth=device.memory_bandwidth * factor,
        l2_bandwidth=device.l2_bandwidth * factor,
    )
    plan = FakePlan(kinds, q, k)
    slow, fast = (simulate(plan, **{**run, "device": d}) for d in (device, faster))
    for old, new in zip(slow.sparse.passes, fast.sparse.passes, strict=True):
        assert 0 <= old.launch <= new.launch <= device.launch_overhead * EXACT
        assert new.compute == pytest.approx(old.compute / factor)
        assert new.memory == pytest.approx(old.memory / factor)
    assert slow.bottleneck == fast.bottleneck or "launch" in (slow.bottleneck, fast.bottleneck)


@settings(max_examples=100, deadline=None)
@given(plans, lanes, lanes, settings_of_a_run)
def test_no_device_is_faster_than_its_peak(kinds, q, k, run):
    p, device = simulate(FakePlan(kinds, q, k), **run), load_device(run["device"])
    for one in p.sparse.passes:
        assert one.compute >= one.flops / device.matrix_flops(run["dtype"]) / EXACT
        assert one.memory == one.bytes / device.memory_bandwidth
        assert one.time >= one.launch + max(one.compute, one.memory)
    assert sum(p.sparse.shares.values()) == pytest.approx(1)
    assert min(p.sparse.shares.values()) >= 0


@settings(max_examples=60, deadline=None)
@given(plans, lanes, settings_of_a_run, st.integers(0, 2**32))
def test_the_order_of_heads_and_rows_is_nothing(kinds, q, run, seed):
    rng = np.random.default_rng(seed)
    other = kinds[rng.permutation(kinds.shape[0])][:, rng.permutation(kinds.shape[1])]
    first, again, shuffled = (simulate(FakePlan(x, q, 64), **run) for x in (kinds, kinds, other))
    assert first == again and repr(first) == repr(again)
    assert shuffled.time == pytest.approx(first.time)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(*[st.integers(0, 50)] * 3), min_size=1, max_size=5), st.integers(1, 9))
def test_pieces_of_rows_hold_all_their_tiles(groups, pieces):
    full, partial, number = (np.array(x) for x in zip(*groups, strict=True))
    whole = Rows(full[:, None], partial[:, None], number)
    parts = whole.split(pieces)
    assert parts.number == whole.number * pieces and parts.visited == whole.visited
    assert parts.full_tiles == whole.full_tiles
    each = parts.visits.reshape(pieces, -1)
    assert (each.max(0) - each.min(0) <= 1).all()
    assert parts.heaviest <= -(-whole.full.max() // pieces) + -(-whole.partial.max() // pieces)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(20, 300),
    st.integers(1, 24),
    st.sampled_from(
        [
            "0 <= q.n - k.n < 40",
            "causal(n)",
            "abs(q.n - k.n) % 16 == 0",
            "k.n < 8 or abs(q.n - k.n) < 20",
        ]
    ),
)
def test_decoding_visits_what_the_last_queries_see(tokens, queries, condition):
    queries = min(queries, tokens)
    mask = maskdsl.parse(f"pattern p over (n) keep {condition}").bind(n=tokens, heads=4, kv_heads=2)
    plan = mask.plan(q_tile=16, kv_tile=16)
    p = simulate(plan, queries=queries, device="h100", engine="natten")  # the plan's own tiles
    first = (tokens - queries) // 16 * 16
    seen = mask.dense()[first:]  # of whole tiles
    seen = np.pad(seen, ((0, -len(seen) % 16), (0, -tokens % 16)))
    visited = seen.reshape(len(seen) // 16, 16, -1, 16).any((1, 3))
    assert p.tiles["full"] + p.tiles["partial"] == 4 * visited.sum()
    assert p.bounds["rows"] == pytest.approx(plan.kv_tiles / visited.sum(1).max())
    planned = simulate(mask, queries=queries, device="h100")
    assert planned.q_lanes == 64  # of queries by two heads, idle ones among them
    allowed = 4 * mask.dense(queries=queries).sum()
    assert planned.bounds["flops"] == pytest.approx(4 * queries * tokens / allowed)
    assert (planned.queries, planned.keys, planned.kv_heads) == (queries, tokens, 2)
