"""What is proved of plans, against the dense definition."""

from __future__ import annotations

import time
import zlib
from typing import Any

import numpy as np
import pytest
from grid_cases import CASES  # those of library_cases too
from random_patterns import random_case

import maskdsl
from maskdsl import Plan, Tile
from maskdsl.ir.integers import add, compare, integer, make, mul
from maskdsl.planner import proofs


def assert_rows_proved(mask: maskdsl.Mask, plan: Plan) -> None:
    """`no_empty_row` and `contiguous`, exactly, of patterns without inputs."""
    for c, proved in zip(plan.head_classes, plan.class_proofs, strict=True):
        truth = mask.dense(head=c.heads[0])
        assert proved["no_empty_row"] == truth.any(1).all()
        columns = np.zeros(truth.shape[1], dtype=np.int64)
        for j in range(plan.kv_tiles):
            columns[plan.tokens("k", j)] = j
        contiguous = True
        for i in range(plan.q_tiles):
            tiles = np.unique(columns[truth[plan.tokens("q", i)].any(0)])
            contiguous &= len(tiles) == 0 or tiles[-1] - tiles[0] + 1 == len(tiles)
        assert proved["contiguous"] == contiguous
    for name in ("no_empty_row", "contiguous"):
        assert plan.proofs[name] == all(p[name] for p in plan.class_proofs)


@pytest.mark.parametrize("odd", [False, True])
@pytest.mark.parametrize("seed", range(7000, 7200))
def test_random_rows_are_proved_exactly(seed: int, odd: bool) -> None:
    case = random_case(seed, odd=odd)
    mask = case.mask()
    assert_rows_proved(mask, mask.plan(case.q_tile, case.kv_tile))


@pytest.mark.parametrize("odd", [False, True])
@pytest.mark.parametrize("seed", range(7200, 7350))
def test_the_tree_alone_proves_rows_exactly(
    seed: int, odd: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the quick ways, and with tiles split down to pairs."""
    monkeypatch.setattr(proofs, "_keeps_itself", lambda keep, segment: False)
    monkeypatch.setattr("maskdsl.planner.rows.Runs.counts", lambda runs: [np.zeros(runs.rows)])
    monkeypatch.setattr("maskdsl.planner.tree.FEW_PAIRS", 0)
    case = random_case(seed, odd=odd)
    mask = case.mask()
    plan = mask.plan(case.q_tile, case.kv_tile)
    for c, proved in zip(plan.head_classes, plan.class_proofs, strict=True):
        assert proved["no_empty_row"] == mask.dense(head=c.heads[0]).any(1).all()


@pytest.mark.parametrize("name", CASES)
def test_library_rows(name: str) -> None:
    """Exact where no input decides; with inputs, what is proved holds."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    file, _, pattern = name.partition(":")
    for _ in range(4):
        case = CASES[name](rng)
        mask = maskdsl.load(f"std/{file}", name=pattern or None).bind(**case.bound)
        plan = mask.plan()
        if not case.inputs:
            assert_rows_proved(mask, plan)
        elif plan.proofs["no_empty_row"]:
            for head in range(mask.heads):
                assert case.truth(head, 0).any(1).all()


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("keep causal(n)", True),
        ("keep q.n > k.n", False),
        ("keep q.n < k.n", False),
        ("keep q.n > k.n or q.n == 0", True),
        ("keep q.n >= 5 and causal(n)", False),
        ("keep abs(q.n - k.n) == 3", True),
        ("keep abs(q.n - k.n) == 51", False),
        ("keep q.n % 4 == k.n % 4 and q.n != k.n", True),
        ("keep k.n == 99 or q.n > 0 and k.n == 0", True),
        ("keep q.n == 99 or q.n > 0 and k.n == 0", False),
    ],
)
@pytest.mark.parametrize("tile", [1, 8, 64, 128])
def test_one_empty_row_is_enough(text: str, holds: bool, tile: int) -> None:
    mask = maskdsl.parse(f"pattern f over (n) {text}").bind(n=100)
    plan = mask.plan(tile, 16)
    assert plan.proofs["no_empty_row"] == holds == mask.dense().any(1).all()


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("input doc[n]: int keep causal(n) and doc[q.n] == doc[k.n]", True),
        ("input doc[n]: int keep neighborhood(n, 5) and doc[q.n] == doc[k.n]", True),
        ("input doc[n]: int keep q.n > k.n and doc[q.n] == doc[k.n]", False),
        ("input doc[n]: int keep causal(n) and doc[q.n] == doc[k.n] and doc[q.n] >= 0", False),
        ("input doc[n]: int keep doc[q.n] == doc[k.n] or k.n == 0", True),
        ("input doc[n]: int keep doc[q.n] < doc[k.n] or k.n == q.n // 2", True),
        ("input pad[n]: bool keep pad[k.n]", False),
    ],
)
def test_rows_that_inputs_cannot_empty(text: str, holds: bool) -> None:
    plan = maskdsl.parse(f"pattern f over (n) {text}").bind(n=100).plan(16, 16)
    assert plan.proofs["no_empty_row"] == holds


def test_segments_help_each_other() -> None:
    text = (
        "pattern f over a(n) then b(m) keep a -> a: q.n > k.n keep a -> b: {} keep b -> any: true"
    )
    for extra, holds in (("q.n == 0", True), ("q.n == 1", False), ("q.n < k.m", True)):
        mask = maskdsl.parse(text.format(extra)).bind(n=30, m=9)
        plan = mask.plan([8, 4], [4, 8])
        assert plan.proofs["no_empty_row"] == holds == mask.dense().any(1).all()


def test_each_head_class_has_its_own_proofs() -> None:
    text = "pattern f over (n) keep if head == 0 then causal(n) else q.n > k.n or q.n == k.n + 64"
    plan = maskdsl.parse(text).bind(n=128, heads=3).plan(16, 16)
    assert [c.heads for c in plan.head_classes] == [(0,), (1, 2)]
    assert [c["no_empty_row"] for c in plan.class_proofs] == [True, False]
    assert not plan.proofs["no_empty_row"] and plan.proofs["contiguous"]


def test_runs_that_touch_are_contiguous_whatever_their_kinds() -> None:
    def plan(text: str) -> Plan:
        return maskdsl.parse(f"pattern f over (n) {text}").bind(n=128).plan(16, 16)

    assert plan("keep near(n, 40)").proofs["contiguous"]  # partial, full, partial
    assert not plan("keep near(n, 8) or k.n < 3").proofs["contiguous"]
    assert plan("keep k.n > 200").proofs["contiguous"]


def test_past_the_limits_nothing_is_claimed(monkeypatch: pytest.MonkeyPatch) -> None:
    mask = maskdsl.parse("pattern f over (n) keep abs(q.n - k.n) == 1").bind(n=100)
    assert mask.plan(16, 16).proofs["no_empty_row"]
    for limit in ("MAX_PLACES", "MAX_PAIRS"):
        with monkeypatch.context() as patch:
            patch.setattr(proofs, limit, 0)
            assert not mask.plan(16, 16).proofs["no_empty_row"]
    with monkeypatch.context() as patch:
        patch.setattr("maskdsl.planner.plan.FEW_RUNS", 3)
        found = mask.plan(16, 16).proofs
    assert found["no_empty_row"] and not found["contiguous"]


def test_divisible_means_that_no_lane_is_idle() -> None:
    mask = maskdsl.parse("pattern f over (n) keep true").bind(n=96)
    for tile, divisible in [
        (Tile(32), True), (Tile(64), False), (Tile(16, step=2), True), (Tile(32, step=2), False),
        (Tile(32, origin=1), False), (Tile(32, origin=1, wrap=True), True),
        (Tile(32, pitch=24), False),
    ]:  # fmt: skip
        plan = mask.plan(tile, tile)
        lanes = plan.q_tiles * plan.q_grids[0].tile.lanes
        assert plan.proofs["divisible"] == divisible == (lanes == 96)


def test_reach_counts_the_sums_on_the_way() -> None:
    q, k = (make("coord", (), 0, 2**30, (side, "n")) for side in "qk")
    near = add(mul(integer(3), q), mul(integer(-3), k), integer(-5))
    assert (near.low, near.high) == (-3 * 2**30 - 5, 3 * 2**30 - 5)
    assert proofs.reach(near) == 6 * 2**30 + 5
    assert proofs.reach(make("max", (near, q), -7, 4)) == 7
    assert proofs.reach(compare("le", q, k).args[0]) == 2**30


@pytest.mark.parametrize(
    ("text", "n", "holds"),
    [
        ("keep causal(n)", 2**20, True),
        ("keep q.n - k.n < 5", 2**30 - 9, True),
        ("keep q.n - k.n < 5", 2**30, False),  # k.n + 5 + q.n
        ("keep q.n * k.n < 5", 2**15, True),
        ("keep q.n * k.n < 5", 2**16, False),
        ("keep 2 * q.n - k.n < 5 * 10 ** 9", 2**10, True),  # known to hold
        ("keep (2 ** 21 * q.n) % 7 == k.n % 7", 2**10, True),  # 2 ** 21 is 1 modulo 7
        ("keep (q.n * q.n * q.n) % 7 == k.n % 7", 2**11, False),
        ("keep causal(n) score logit + float(k.n * k.n)", 2**16, False),
        ("keep causal(n) score logit + float(k.n * k.n)", 2**15, True),
        ("input d[n]: int keep d[q.n] == d[k.n]", 64, False),
    ],
)
def test_32_bits_suffice(text: str, n: int, holds: bool) -> None:
    plan = maskdsl.parse(f"pattern f over (n) {text}").bind(n=n).plan(min(4096, n), min(4096, n))
    assert plan.proofs["int32"] == holds


def test_lanes_outside_the_space_count_for_32_bits() -> None:
    mask = maskdsl.parse("pattern f over (n) keep true").bind(n=2**31 - 5000)
    assert mask.plan(1024, 1024).proofs["int32"]
    assert not mask.plan(Tile(1024, step=100), 1024).proofs["int32"]


SLOW: dict[str, Any] = {
    "causal window": "keep 0 <= q.n - k.n < 4096",
    "no query sees itself": "keep 0 < q.n - k.n < 4096",
    "each at a distance": "keep abs(q.n - k.n) == 4095",
}


@pytest.mark.parametrize("name", SLOW)
def test_proofs_cost_little_at_a_million_tokens(name: str) -> None:
    plan = maskdsl.parse(f"pattern f over (n) {SLOW[name]}").bind(n=2**20).plan(128, 128)
    assert len(plan.head_classes[0].runs.first)  # rows are needed by all that use a plan
    start = time.process_time()
    found = plan.proofs
    took = time.process_time() - start
    assert found["no_empty_row"] == ("no query" not in name)
    assert took < 0.1  # seconds of one core; 0.01 measured
