"""What tiles and rows cost: worked out by hand, and against machine code."""

from __future__ import annotations

from dataclasses import astuple, replace

import numpy as np
import pytest
from simulator_plans import FULL, PARTIAL, FakePlan

import maskdsl
from maskdsl.errors import BindError
from maskdsl.planner import Candidate, Tile
from maskdsl.simulator import (
    CompiledKernel,
    KernelCost,
    Work,
    layout_cost,
    load_device,
    load_engine,
    simulate,
)
from maskdsl.simulator.cost import TileShape, kernel_cost, tile_costs
from maskdsl.simulator.occupancy import resident_programs
from maskdsl.simulator.operations import (
    UNKNOWN,
    Operations,
)
from maskdsl.simulator.passes import FORWARD, find_direction
from maskdsl.simulator.rows import plan_rows
from maskdsl.simulator.traffic import Tensors, memory_traffic

# Ten multiprocessors at 1 GHz that do 1024 FLOP and 16 exponentials a clock, and issue 128 lanes.
ROUND = replace(
    load_device("h100"),
    name="round",
    compute_units=10,
    clock=1e9,
    bf16_flops=1024 * 10 * 1e9,
    exponentials_per_clock=16,
    vector_ops_per_clock=128,
    integer_ops_per_clock=64,
    issue_lanes_per_clock=128,
    memory_bandwidth=1e12,
    l2_bandwidth=1e13,
    launch_overhead=1e-6,
)
PLAIN = replace(load_engine("maskdsl"), overlap=0.25, stall={"default": 2.0})


def test_costs_add_and_multiply():
    for a, b in (
        (Work(1, 2, 3, 4, 5), Work(10, 20, 30, 40, 50)),
        (KernelCost(1, 2, 3, 4), KernelCost(10, 20, 30, 40)),
        (Operations(1, 2, 3), Operations(10, 20, 30)),
    ):
        assert astuple(a + b) == tuple(11.0 * x for x in astuple(a))
        assert a * 3 == 3 * a == a + a + a
        assert a + type(a)() == a


def test_cycles_of_work_by_hand():
    work = Work(matmul_flops=2048, exponentials=32, vector_ops=256, integer_ops=96, bytes=5000)
    cost = kernel_cost(work, ROUND, "bf16")
    # 384 instructions at 128 a clock; fp32 ones alone would take 2 clocks, integer ones 1.5.
    # A tenth of 1e13 bytes a second is 1000 bytes a clock.
    assert cost == KernelCost(products=2, exponentials=2, instructions=3, loads=5)
    assert cost.cycles(overlap=0, stall=1) == 7
    assert cost.cycles(overlap=0.5, stall=1) == 5
    assert cost.cycles(overlap=1, stall=1) == 5  # the loads
    assert cost.cycles(overlap=1, stall=2) == 6
    slow = kernel_cost(Work(integer_ops=6400), ROUND, "bf16")
    assert slow.instructions == 100  # at 64 a clock, not 128


def test_time_of_one_tile_by_hand():
    plan = FakePlan([[[FULL]]], q_lanes=64, kv_lanes=32)
    pairs, threads = 64 * 32, 4 * 32
    products = 2 * 2 * pairs * 128 / 1024
    exponentials = pairs / 16
    scaled = 64 * 128
    instructions = (pairs * (1 + 2.7 + 1.1) + scaled + 120 * threads) / 128
    tile = 2.0 * (products + exponentials + instructions) * 1e-9  # one warpgroup hides nothing
    moving = 2 * 64 * 128 * 2 / (1e12 / 10)  # q and o at a tenth of the bandwidth
    predicted = simulate(plan, head_dim=128, device=ROUND, engine=PLAIN)
    assert predicted.time == pytest.approx(1e-6 + moving + 2 * tile)
    partial = simulate(FakePlan([[[PARTIAL]]], q_lanes=64, kv_lanes=32), device=ROUND, engine=PLAIN)
    mask = 2.0 * 5 * pairs / 128 * 1e-9  # UNKNOWN: a range, and two selections
    assert partial.time == pytest.approx(predicted.time + mask)


def test_warpgroups_hide_each_other():
    shape = TileShape(128, 64, 128, "bf16")
    assert shape.warps == 8
    costs = tile_costs(shape, FORWARD, UNKNOWN, ROUND, PLAIN)
    alone = costs.full.cycles(0.0, 2.0)
    assert costs.full.cycles(0.25, 2.0) < alone
    one = simulate(FakePlan(np.ones((1, 1, 1000), int), 128, 64), device=ROUND, engine=PLAIN)
    assert one.sparse.compute == pytest.approx(1000 * costs.full.cycles(0.25, 2.0) * 1e-9, rel=0.01)


def test_machine_code_counts_instead_of_estimates():
    # The loops of an emitted sliding window for sm_90, d=128: 341 instructions in the loop over
    # full tiles, 490 over partial ones, 8 warps; without the code the model comes near.
    code = CompiledKernel(341, 490, 300, warps=8, registers=196, shared=131_072)
    shape, h100, engine = (
        TileShape(128, 64, 128, "bf16"),
        load_device("h100"),
        load_engine("maskdsl"),
    )
    counted = tile_costs(shape, FORWARD, UNKNOWN, h100, engine)
    read = tile_costs(shape, FORWARD, UNKNOWN, h100, engine, code)
    assert read.full.instructions == 341 * 8 / 4 and read.partial.instructions == 490 * 8 / 4
    assert read.full.products == counted.full.products
    assert counted.full.instructions == pytest.approx(read.full.instructions, rel=0.02)
    assert counted.partial.instructions == pytest.approx(read.partial.instructions, rel=0.05)
    plan = maskdsl.load("std/sliding_window").bind(n=8192, window=512).plan(q_tile=128, kv_tile=64)
    times = [simulate(plan, device="h100", heads=8, compiled=c).time for c in (None, code)]
    assert times[0] == pytest.approx(times[1], rel=0.1)
    spilling = tile_costs(shape, FORWARD, UNKNOWN, h100, engine, replace(code, spills=8))
    stored_and_read = kernel_cost(Work(bytes=2 * 8 * 8 * 32), h100, "bf16").loads
    assert spilling.row.loads - read.row.loads == pytest.approx(stored_and_read)
    backward = [
        simulate(plan, device="h100", direction="backward", compiled=c)
        for c in (None, code, {"dq": code})
    ]
    assert backward[0] == backward[1]  # one kernel's code is the forward one's
    assert backward[0].sparse.passes[0] != backward[2].sparse.passes[0]
    slow = replace(code, partial_instructions=4900)
    assert simulate(plan, device="h100", heads=8, compiled={"forward": slow}).time > 1.5 * times[1]
    with pytest.raises(BindError, match="shared memory"):
        simulate(plan, device="a100", compiled=replace(code, shared=200_000))


# Emitted sliding windows for sm_90, 8 warps: instructions of the loops over full and partial
# tiles.
@pytest.mark.parametrize(
    "kv_lanes, head_dim, full, partial",
    [
        (64, 128, 341, 490),  # where the constants were counted
        (128, 64, 448, 737),
        (128, 32, 413, 700),
    ],
)
def test_estimated_instructions_are_those_of_the_machine_code(kv_lanes, head_dim, full, partial):
    shape = TileShape(128, kv_lanes, head_dim, "bf16")
    costs = tile_costs(shape, FORWARD, UNKNOWN, load_device("h100"), load_engine("maskdsl"))
    assert costs.full.instructions * 4 / 8 == pytest.approx(full, rel=0.1)
    assert costs.partial.instructions * 4 / 8 == pytest.approx(partial, rel=0.1)


@pytest.mark.parametrize("name, instructions, error", [("dq", 415 / 2, 0.3), ("dkv", 318, 0.1)])
def test_estimated_instructions_of_backward_passes(name, instructions, error):
    # Emitted causal kernels, 64 x 128 tiles, d=64, 8 warps; the loop for dq holds two tiles.
    (step,) = (s for s in find_direction("backward") if s.name == name)
    work = TileShape(64, 128, 64, "bf16").work(step, Operations())
    threads = 4 * 32  # of the 4 warps that the model takes: twice the pairs for each
    lanes = work.exponentials + work.vector_ops + work.integer_ops - 120 * threads
    assert lanes / (2 * threads) + 120 == pytest.approx(instructions, rel=error)


def test_occupancy():
    h100, shape = load_device("h100"), TileShape(64, 64, 64, "bf16")

    def residents(registers, shared, warps):
        code = CompiledKernel(1, 1, 1, warps, registers, shared)
        return resident_programs(shape, h100, code)

    assert residents(registers=128, shared=1000, warps=4) == 4  # 65,536 registers
    assert residents(registers=32, shared=100_000, warps=4) == 2  # 233,472 bytes
    assert residents(registers=255, shared=230_000, warps=8) == 1
    assert resident_programs(TileShape(128, 64, 128, "bf16"), h100) == 1
    assert resident_programs(TileShape(64, 64, 32, "bf16"), h100) > 1


def test_exponentials_bound_small_heads():
    costs = tile_costs(
        TileShape(128, 128, 32, "bf16"), FORWARD, UNKNOWN, load_device("b200"), PLAIN
    )
    assert costs.full.exponentials > costs.full.products
    p = simulate(FakePlan(np.ones((1, 4000, 64), int)), head_dim=32, device="b200")
    assert p.bottleneck in ("exponentials", "softmax arithmetic")


def test_head_dim_is_padded_to_the_product_units():
    flops = [
        TileShape(16, 16, d, "fp16").work(FORWARD, Operations()).matmul_flops
        for d in (1, 16, 49, 64)
    ]
    assert flops[0] == flops[1] == 4 * 16 * 16 * 16
    assert flops[2] == flops[3] == 4 * 16 * 16 * 64


def test_tiles_are_padded_to_the_product_units():
    one, sixteen = (TileShape(n, 64, 64, "fp16").work(FORWARD, Operations()) for n in (1, 16))
    assert one.matmul_flops == sixteen.matmul_flops and one.exponentials == 16 * 64


def test_layouts_cost_what_their_tiles_do():
    h100 = load_device("h100")

    def cost(full, partial, engine="maskdsl"):
        tile = Tile(128)
        candidate = Candidate(tile, tile, full, partial, counted=True)
        return layout_cost(h100, 128, "bf16", engine=engine)(candidate)

    assert cost(3, 2) == pytest.approx(3 * cost(1, 0) + 2 * cost(0, 1))
    assert 1.1 * cost(1, 0) < cost(0, 1) < 1.6 * cost(1, 0)
    assert cost(3, 0, "natten") == pytest.approx(3 * cost(1, 0, "natten"))
    assert cost(3, 1, "natten") == pytest.approx(1.5 * 4 * cost(1, 0, "natten"))


def test_backward_passes_by_hand():
    dq, dkv = find_direction("backward")
    shape, nothing = TileShape(128, 64, 128, "bf16"), Operations()
    assert dq.products == (2, 1)  # S, dQ; dP
    assert dkv.products == (2, 2)  # S, dK; dP, dV
    score, pairs = Operations(integer=1, vector=3, special=1), 128 * 64
    plain, scored = (shape.work(dq, s) for s in (nothing, score))
    assert scored.vector_ops - plain.vector_ops == 2 * 3 * pairs  # the score and its derivative
    assert scored.exponentials - plain.exponentials == 2 * pairs
    assert shape.work(dkv, nothing).bytes == 2 * 128 * 128 * 2  # q and do of a query tile
    assert shape.work(dq, nothing).bytes == 2 * 64 * 128 * 2  # k and v of a key tile
    plan = FakePlan(np.ones((1, 264, 264), int))
    forward, backward = (
        simulate(plan, device="h100"),
        simulate(plan, device="h100", direction="backward"),
    )
    assert [p.name for p in backward.sparse.passes] == ["dq", "dkv"]
    assert 2.5 < backward.time / forward.time < 4
    flops = [p.flops for p in (*forward.sparse.passes, *backward.sparse.passes)]
    assert flops[1:] == [1.5 * flops[0], 2 * flops[0]]


def test_each_backward_pass_is_scheduled_by_its_own_rows():
    kinds = np.zeros((1, 200, 200), int)
    kinds[0, :, 0] = FULL  # every query sees one column: 200 even rows, one long column
    dq, dkv = simulate(FakePlan(kinds), direction="backward", device="h100").sparse.passes
    assert dkv.compute > 15 * dq.compute
    dkv, dq = (
        simulate(FakePlan(kinds.transpose(0, 2, 1)), direction="backward", device="h100")
    ).sparse.passes[::-1]
    assert dq.compute > 15 * dkv.compute


def test_columns_of_a_plan_are_those_of_its_rows():
    mask = maskdsl.load("std/natten2d").bind(
        y=20, x=24, window=[5, 7], stride=[2, 3], dilation=[1, 1], causal=[False, True]
    )
    plan = mask.plan(q_tile=(4, 4), kv_tile=(2, 8))
    expected = np.zeros((2, plan.kv_tiles), int)
    for row in plan.rows():
        for tile, kind in row:
            expected[int(kind == "partial"), tile] += 1
    (rows,) = plan_rows(plan, 1, "k")
    found = np.repeat(np.hstack([rows.full, rows.partial]), rows.count, axis=0)
    assert sorted(map(tuple, expected.T)) == sorted(map(tuple, found))


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
    plan = FakePlan([[[FULL, FULL, 0], [FULL, 0, 0]]], q_lanes=8, kv_lanes=4)
    shapes, (rows,), token = [TileShape(8, 4, 32, "fp16")], plan_rows(plan, copies=5), 32 * 2
    tensors = Tensors(queries=16, keys=12, q_heads=5, kv_heads=5)
    q_and_o, k_and_v = 5 * 2 * 16 * token, 5 * 2 * 12 * token
    h100 = load_device("h100")
    assert memory_traffic(rows, tensors, shapes, FORWARD, h100, 1) == q_and_o + k_and_v
    # k and v do not fit: once for each of two waves would be 24 keys, the visited tiles hold 12.
    small = replace(h100, last_level_cache_bytes=1)
    assert memory_traffic(rows, tensors, shapes, FORWARD, small, 1) == q_and_o + k_and_v
    (dense,) = plan_rows(FakePlan(np.ones((1, 2, 3), int), q_lanes=8, kv_lanes=4), 5)
    assert memory_traffic(dense, tensors, shapes, FORWARD, small, 1) == q_and_o + 2 * k_and_v
    # Five query heads that share one head of keys and values read it once.
    shared = replace(tensors, kv_heads=1)
    assert memory_traffic(rows, shared, shapes, FORWARD, h100, 1) == q_and_o + k_and_v / 5


def test_slow_memory_binds():
    diagonal = np.eye(2000, dtype=int)[None]
    slow = replace(load_device("h100"), memory_bandwidth=1e11)
    assert simulate(FakePlan(diagonal, 16, 16), heads=4, device=slow).bottleneck in (
        "memory",
        "row overhead",
    )
