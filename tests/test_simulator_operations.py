"""What masks and scores cost for a pair: counted by hand, and against machine code."""

from __future__ import annotations

from dataclasses import astuple

import pytest

import maskdsl
from maskdsl.simulator import simulate
from maskdsl.simulator.operations import (
    BY_CONSTANT,
    Operations,
    masking,
    of_tile,
    pair_work,
    scoring,
)


def work_of(text, over="n", tile=None):
    """Of a pattern's mask and scores, under a key tile of `tile` lanes on each axis."""
    axes = over.split(", ")
    mask = maskdsl.parse(f"pattern p over ({over}) {text}").bind(**dict.fromkeys(axes, 4096 >> 7))
    share = of_tile(dict(zip(axes, tile or (64,) * len(axes), strict=True)))
    return masking(mask.program.keep, share), scoring(mask.program.score, share)


def test_the_mask_at_hand_is_counted():
    causal, _ = work_of("keep causal(n)")
    window, _ = work_of("keep 0 <= q.n - k.n < 10")
    dilated, _ = work_of("keep dilated(n, 10, 3)")
    assert causal == Operations(integer=1, vector=2)  # one comparison, two selections
    assert window == Operations(integer=3, vector=2)  # two comparisons and their `and`
    assert sum(astuple(dilated)) > sum(astuple(window))
    # What one side decides is at hand: a comparison of two numbers, whatever they are made of.
    assert work_of("keep (q.n * q.n + 7) // 5 <= k.n % 11")[0] == causal
    assert work_of("keep causal(n) and q.n % 2 == 0 and k.n % 3 == 0")[0].integer == 1 + 2
    assert work_of("keep (q.n - k.n) % 8 == 0")[0].integer == 3  # subtract, mask, compare
    assert work_of("keep (q.n - k.n) % 7 == 0")[0].integer == 3 + BY_CONSTANT - 1
    assert work_of("keep random(1, q.n, k.n) < 0.5")[0].integer > 10


def test_what_reads_one_axis_is_worked_out_once_for_its_lanes():
    box = "keep abs(q.a - k.a) <= 3 and abs(q.b - k.b) <= 3"
    lines, _ = work_of(box, "a, b", (1, 64))
    square, _ = work_of(box, "a, b", (8, 8))
    # One range of an axis is two comparisons and their `and`; the ranges meet in another `and`.
    assert lines.integer == pytest.approx(3 / 64 + 3 + 1)
    assert square.integer == pytest.approx(3 / 8 + 3 / 8 + 1)
    joint, _ = work_of("keep abs(q.a - k.a) + abs(q.b - k.b) <= 3", "a, b", (8, 8))
    assert joint.integer == pytest.approx(2 * 2 / 8 + 1 + 1)  # subtract, absolute; add; compare
    # The loops of an emitted 3-D neighborhood for sm_90, 2x8x4 keys: 337 instructions over full
    # tiles and 433 over partial ones, for the 32 pairs of each thread.
    near = " and ".join(f"neighborhood({a}, 9)" for a in "abc")
    counted = sum(astuple(work_of(f"keep {near}", "a, b, c", (2, 8, 4))[0]))
    assert 337 + 32 * counted == pytest.approx(433, rel=0.1)


def test_scores_cost_in_every_tile():
    assert work_of("keep causal(n)")[1] == Operations()
    _, alibi = work_of("score logit - 0.5 * (q.n - k.n)")
    assert alibi.integer >= 1 and alibi.vector >= 2 and alibi.special == 0
    assert work_of("score 50 * tanh(logit / 50)")[1].special >= 1
    plain, capped = (
        simulate(maskdsl.load(f"std/{name}").bind(n=8192), heads=16, device="h100")
        for name in ("causal", "softcap")
    )
    assert plain.tiles == capped.tiles and plain.time < capped.time
    assert plain.dense_time < capped.dense_time  # dense attention has the same scores


def test_the_mask_is_weighed_by_the_tiles_that_need_it():
    text = "pattern p over (n) keep causal(n) and (head < 2 or (q.n - k.n) % 7 == 0)"
    mask = maskdsl.parse(text).bind(n=1024, heads=4)
    plan = mask.plan(q_tile=64, kv_tile=64)
    near, far = plan.head_classes
    counts = [c.trees[0][0].partial for c in (near, far)]
    each = [masking(c.keep, of_tile({"n": 64})) for c in (near, far)]
    expected = (each[0] * counts[0] + each[1] * counts[1]) * (1 / sum(counts))
    assert astuple(pair_work(plan)[0][0].mask) == pytest.approx(astuple(expected))
    assert counts[1] > counts[0] > 0
