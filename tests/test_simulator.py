"""The simulator against counts done by hand, brute force, and the model's own promises."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import maskdsl
from maskdsl.errors import BindError
from maskdsl.simulator import Work, device_names, load_device, simulate, speedup_bounds
from maskdsl.simulator.cost import TileShape, find_direction, unit_time
from maskdsl.simulator.plans import plan_rows
from maskdsl.simulator.schedule import makespan
from maskdsl.simulator.traffic import memory_traffic

DEVICES = ["a100", "b200", "h100", "h200", "mi300x", "rtx4090"]
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


class FakeMask:
    def __init__(self, plan):
        self._plan = plan

    def plan(self, **chosen: object):
        return self._plan


def random_kinds(rng, shape=(2, 7, 9)):
    return rng.integers(0, 3, size=shape)


def one_line(error) -> str:
    text = str(error.value)
    assert text and "\n" not in text
    return text


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


def test_pairs_that_an_input_decides_leave_the_other_bounds():
    plan = FakePlan([[[2, 2]]])
    plan.pairs = None
    bounds = simulate(plan).bounds
    assert math.isnan(bounds["flops"])
    assert bounds["tiles"] == bounds["rows"] == 1


# NATTEN's rule, per axis: the counts that the GNA paper prints


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


def test_longer_or_more_rows_never_end_earlier():
    rng = np.random.default_rng(3)
    for _ in range(200):
        units = int(rng.integers(1, 6))
        durations = rng.integers(0, 12, size=12).astype(float)
        longer = durations + rng.integers(0, 2, size=12) * rng.integers(0, 4)
        ones = np.ones(12, dtype=np.int64)
        assert makespan(longer, ones, units) >= makespan(durations, ones, units)


# Times


def test_more_visited_tiles_are_never_faster():
    rng = np.random.default_rng(4)
    for device, direction in itertools.product(DEVICES, ["forward", "backward"]):
        kinds = random_kinds(rng, (1, 40, 9))
        last = 0.0
        for _ in range(12):
            predicted = simulate(FakePlan(kinds), heads=9, device=device, direction=direction)
            assert predicted.time >= last * (1 - 1e-12)
            last = predicted.time
            empties = np.argwhere(kinds == EMPTY)
            for cell in empties[rng.permutation(len(empties))[:6]]:
                kinds[tuple(cell)] = rng.integers(FULL, PARTIAL + 1)


def test_a_partial_tile_is_dearer_by_half_on_the_reference():
    shape, forward, h100 = TileShape(128, 128, 128, "bf16"), find_direction("forward"), "h100"
    full, partial = (
        unit_time(shape.work(forward, partial), load_device(h100), "bf16").time
        for partial in (False, True)
    )
    assert partial / full == pytest.approx(1.5, rel=1e-3)


@pytest.mark.parametrize("device", DEVICES)
def test_masking_a_visited_tile_costs_time(device):
    full = simulate(FakePlan(np.full((1, 400, 4), FULL)), device=device)
    partial = simulate(FakePlan(np.full((1, 400, 4), PARTIAL)), device=device)
    assert full.time < partial.time < 3 * full.time


def test_time_of_one_tile_by_hand():
    device = replace(
        load_device("h100"),
        compute_units=10,
        clock=1e9,
        bf16_flops=4e13,  # 4e12 for each unit
        exponentials_per_clock=16,
        integer_ops_per_clock=64,
        memory_bandwidth=1e12,
        launch_overhead=1e-6,
        efficiency=0.5,
    )
    plan = FakePlan([[[FULL]]], q_lanes=64, kv_lanes=32)
    tile = 2 * 2 * 64 * 32 * 128 / (4e12 * 0.5)  # two products; exponentials take half as long
    assert tile > 64 * 32 / (16 * 1e9 * 0.5)
    moving = 2 * 64 * 128 * 2 / (1e12 / 10)  # q and o at a tenth of the bandwidth
    predicted = simulate(plan, head_dim=128, device=device)
    assert predicted.time == pytest.approx(1e-6 + moving + 2 * tile)  # fill and drain: one more
    partial = simulate(FakePlan([[[PARTIAL]]], q_lanes=64, kv_lanes=32), device=device)
    mask = 4 * 64 * 32 / (64 * 1e9 * 0.5)
    assert partial.time == pytest.approx(predicted.time + mask)


def test_exponentials_bound_small_heads():
    shape, forward = TileShape(128, 128, 32, "bf16"), find_direction("forward")
    busy = unit_time(shape.work(forward, partial=False), load_device("b200"), "bf16")
    assert busy.time == busy.exponentials > busy.products
    assert simulate(
        FakePlan(np.ones((1, 4000, 64), int)), head_dim=32, device="b200"
    ).bottleneck == ("exponentials")


def test_head_dim_is_padded_to_the_product_units():
    forward = find_direction("forward")
    flops = [
        TileShape(16, 16, d, "fp16").work(forward, False).matmul_flops for d in (1, 16, 49, 64)
    ]
    assert flops[0] == flops[1] == 4 * 16 * 16 * 16
    assert flops[2] == flops[3] == 4 * 16 * 16 * 64


def test_work_adds_and_multiplies():
    a, b = Work(1, 2, 3, 4), Work(10, 20, 30, 40)
    assert a + b == Work(11, 22, 33, 44)
    assert a * 3 == 3 * a == a + a + a
    assert a + Work() == a


def test_backward_is_three_and_a_half_times_the_products():
    plan = FakePlan(np.ones((1, 2000, 64), int))
    forward, backward = simulate(plan), simulate(plan, direction="backward")
    assert forward.bottleneck == backward.bottleneck == "matrix products"
    assert backward.time / forward.time == pytest.approx(3.5, rel=0.02)


def test_slower_types_take_longer():
    plan = FakePlan(np.ones((1, 500, 16), int))
    times = [simulate(plan, dtype=dtype).time for dtype in ("bf16", "tf32", "fp32")]
    assert times == sorted(times) and times[0] < times[2]
    assert simulate(plan, dtype="float32") == simulate(plan, dtype="fp32")


def test_a_torch_dtype_is_a_dtype():
    torch = pytest.importorskip("torch")
    plan = FakePlan([[[FULL]]])
    assert simulate(plan, dtype=torch.bfloat16) == simulate(plan, dtype="bf16")


def test_memory_traffic_by_hand():
    plan = FakePlan([[[FULL, FULL, EMPTY], [FULL, EMPTY, EMPTY]]], q_lanes=8, kv_lanes=4)
    shape, forward = TileShape(8, 4, 32, "fp16"), find_direction("forward")
    rows = plan_rows(plan, copies=5)
    token = 32 * 2
    q_and_o = 5 * 2 * 16 * token
    cached = replace(load_device("h100"), compute_units=1)
    assert memory_traffic(plan, rows, shape, forward, cached, 5) == q_and_o + 5 * 2 * 12 * token
    # k and v do not fit: once for each of two waves would be 24 keys, the visited tiles hold 12.
    small = replace(cached, last_level_cache_bytes=1)
    assert memory_traffic(plan, rows, shape, forward, small, 5) == q_and_o + 5 * 2 * 12 * token
    dense = FakePlan(np.ones((1, 2, 3), int), q_lanes=8, kv_lanes=4)
    assert memory_traffic(dense, plan_rows(dense, 5), shape, forward, small, 5) == (
        q_and_o + 5 * 2 * 24 * token
    )


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


def test_a_mask_is_planned():
    plan = FakePlan([[[FULL, EMPTY], [PARTIAL, FULL]]])
    assert simulate(FakeMask(plan), heads=3) == simulate(plan, heads=3)


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
    assert "a mask or a plan, not str" in one_line(error)


# Devices


@pytest.mark.parametrize("name", DEVICES)
def test_device_files_carry_their_sources(name):
    device = load_device(name.upper())
    assert device.name == name and load_device(device) is device
    figures = set(device.__dataclass_fields__) - {"name", "full_name", "sources"}
    assert set(device.sources) == figures
    assert all(len(text) > 20 for text in device.sources.values())


@pytest.mark.parametrize("name", DEVICES)
def test_device_figures_agree_with_each_other(name):
    device = load_device(name)
    each = device.bf16_flops / (device.compute_units * device.clock)
    assert math.log2(each) == pytest.approx(round(math.log2(each)), abs=0.01)
    assert device.fp16_flops == device.bf16_flops == pytest.approx(2 * device.tf32_flops)
    assert device.shared_per_block <= device.shared_per_unit
    assert device.l2_bytes <= device.last_level_cache_bytes < device.memory_bytes
    assert 0 < device.efficiency <= 1


def test_device_names():
    assert device_names() == DEVICES


def write_device(path: Path, change=lambda text: text) -> str:
    """A copy of the h100's file, changed."""
    from maskdsl.simulator import devices

    original = Path(devices.__file__).with_name("devices") / "h100.toml"
    path.write_text(change(original.read_text(encoding="utf-8")), encoding="utf-8")
    return str(path)


def test_a_users_device_file(tmp_path):
    path = write_device(tmp_path / "mine.toml", lambda text: text.replace('"h100"', '"mine"'))
    plan = FakePlan(np.ones((1, 9, 9), int))
    mine, h100 = simulate(plan, device=Path(path)), simulate(plan, device="h100")
    assert mine.device == "mine" and mine.time == h100.time


@pytest.mark.parametrize(
    "old, new, words",
    [
        ("compute_units = {", "units = {", ["units"]),
        ("value = 132", "value = -1", ["compute_units", "positive"]),
        ("value = 132", "value = 1.5", ["compute_units", "whole number"]),
        ("value = 132", 'value = "many"', ["compute_units", "number"]),
        ('{ value = 132, source = "whitepaper" }', "132", ["compute_units", "source"]),
        ('value = 132, source = "whitepaper"', 'value = 132, source = "hearsay"', ["[sources]"]),
        ('full_name = "', 'long_name = "', ["long_name"]),
        ("\n[sources]", "\n[sources", []),
    ],
)
def test_wrong_device_files_give_one_line(tmp_path, old, new, words):
    path = write_device(tmp_path / "mine.toml", lambda text: text.replace(old, new, 1))
    with pytest.raises(BindError) as error:
        load_device(path)
    text = one_line(error)
    assert all(word in text for word in [*words, "mine.toml"])


# Speed


def test_a_large_plan_is_predicted_at_once():
    class Causal(FakePlan):
        """24 heads of 4096 rows, no two of a head alike."""

        def __init__(self):
            size = 4096
            self.q_tiles = self.kv_tiles = size
            self.mask_shape = (24, size * 128, size * 128)
            self.q_tile = self.kv_tile = FakeTile(128)
            full = 24 * size * (size - 1) // 2
            self.tiles = FakeCounts(full, full, 24 * size, 24 * size * size)
            self.head_classes = [FakeClass(tuple(range(24)))]
            self.pairs = 24 * (size * 128) * (size * 128 + 1) // 2

        def row_counts(self, head):
            return np.arange(self.q_tiles), np.ones(self.q_tiles, dtype=np.int64)

    plan = Causal()
    simulate(plan)
    best = math.inf
    for _ in range(3):
        begin = time.perf_counter()
        predicted = simulate(plan, device="h100")
        best = min(best, time.perf_counter() - begin)
    assert best < 0.2
    assert predicted.speedup == pytest.approx(2, rel=0.05)
