"""Features of values, heads that share keys, segments: what differs from one plain square."""

from __future__ import annotations

import numpy as np
from simulator_plans import FULL, PARTIAL, FakePlan

import maskdsl
from maskdsl.simulator import simulate
from maskdsl.simulator.cost import TileShape
from maskdsl.simulator.estimate import PassEstimate, Schedule, in_turn
from maskdsl.simulator.operations import Operations
from maskdsl.simulator.passes import FORWARD
from maskdsl.simulator.rows import plan_rows


def test_values_with_other_features_than_keys() -> None:
    plan = FakePlan(np.ones((1, 300, 300), int))
    wide, same, narrow = (
        simulate(plan, 128, value_dim=n, device="h100", heads=2) for n in (256, 128, 64)
    )
    assert same == simulate(plan, 128, device="h100", heads=2)
    # S has 128 features, P V has value_dim; dQ takes 2 x 128 + 1, dK and dV 2 x 128 + 2 of them.
    flops = [p.sparse.passes[0].flops for p in (narrow, same, wide)]
    assert flops == [flops[1] * x for x in (3 / 4, 1, 3 / 2)]
    assert narrow.time < same.time < wide.time
    backward = simulate(plan, 128, value_dim=256, device="h100", direction="backward")
    dq, dkv = (p.flops / (2 * (300 * 128) ** 2) for p in backward.sparse.passes)
    assert (dq, dkv) == (2 * 128 + 256, 2 * 128 + 2 * 256)
    # k and v: 128 and 256 numbers of two bytes for each key of the one tile.
    shape = TileShape(128, 64, 128, "bf16", 256)
    assert shape.work(FORWARD, Operations()).bytes == 64 * (128 + 256) * 2
    assert same.sparse.passes[0].bytes == 2 * 300 * 128 * 128 * 2 * 4
    assert wide.sparse.passes[0].bytes == 2 * 300 * 128 * (128 + 256) * 2 * 2


def test_heads_that_share_keys_share_the_rows_of_their_gradients() -> None:
    plan = FakePlan(np.ones((1, 264, 64), int))
    apart, shared = (
        simulate(plan, heads=8, kv_heads=n, device="h100", direction="backward") for n in (8, 2)
    )
    rows = [p.sparse.passes[1].schedule.counts.sum() for p in (apart, shared)]
    assert rows == [64 * 8, 64 * 2]
    assert apart.sparse.passes[1].flops == shared.sparse.passes[1].flops
    assert shared.time / shared.dense_time == 1
    kinds = np.zeros((4, 3, 2), int)
    kinds[0, :, 0], kinds[1, 0, 1], kinds[3, 1, 1] = FULL, PARTIAL, FULL
    (rows,) = plan_rows(FakePlan(kinds), 5, "k", group=2)
    found = sorted(zip(rows.full[:, 0], rows.partial[:, 0], rows.count, strict=True))
    # Key tiles of heads 0 and 1 see three full tiles, and one partial; of 2 and 3 none, and a full.
    assert found == [(0, 0, 5), (0, 1, 5), (1, 0, 5), (3, 0, 5)]


def test_segments_have_kernels_and_tiles_of_their_own() -> None:
    text = """
    pattern p over video(t, s) then text(n)
    keep video -> video: near(t, 1)
    keep any -> text, text -> any: true
    """
    mask = maskdsl.parse(text).bind(t=16, s=256, n=100, heads=4)
    plan = mask.plan(q_tile=[(1, 128), 16], kv_tile=[(1, 64), 32])
    video, words = simulate(plan, device="h100", batch=8).sparse.passes
    assert (video.name, words.name) == ("forward video", "forward text")
    assert video.launch == 5e-6 and words.launch == 0  # launched while the video's kernel runs
    rows = video.schedule.counts.sum(), words.schedule.counts.sum()
    assert rows == (16 * 2 * 4 * 8, -(-100 // 16) * 4 * 8)
    # Every row of text sees 64 tiles of 64 tokens of the video and 4 of 32 of the text.
    pairs = 16 * (64 * 64 + 4 * 32)
    assert words.flops == 7 * 4 * 8 * pairs * 2 * (128 + 128)
    names = [p.name for p in simulate(plan, direction="backward").sparse.passes]
    assert names == ["dq video", "dq text", "dkv video", "dkv text"]
    small = simulate(mask.plan(q_tile=[(1, 128), 128], kv_tile=[(1, 64), 64]), device="h100")
    assert small.sparse.passes[1].flops > simulate(plan, device="h100").sparse.passes[1].flops


def test_launches_follow_one_another_while_kernels_run() -> None:
    def one(seconds):
        schedule = Schedule(np.ones(1), np.ones(1, int), 1)
        return PassEstimate("x", 5.0, seconds, 0.0, 0.0, 1, {}, 0.0, 0.0, schedule)

    short = in_turn([one(1.0), one(1.0), one(1.0)])
    # Launched after 5, 10 and 15 seconds; the last ends after 16.
    assert [p.launch for p in short.passes] == [5, 4, 4] and short.time == 16
    long = in_turn([one(100.0), one(1.0), one(1.0)])
    assert [p.launch for p in long.passes] == [5, 0, 0] and long.time == 107
