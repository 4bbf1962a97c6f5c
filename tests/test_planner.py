"""Plans against the dense definition, tile by tile and token by token."""

from __future__ import annotations

import time

import numpy as np
import pytest
from random_patterns import random_case

import maskdsl
from maskdsl import Plan, Tile
from maskdsl.planner import tree
from maskdsl.planner.rows import most_runs

AT_ONCE = (1, 20, tree.AT_ONCE)  # boxes are halved, quartered, divided as they come


def assert_exact(mask: maskdsl.Mask, plan: Plan) -> None:
    """Every tile's kind, the rows, the counts and the pairs, from `mask.dense()`."""
    pairs = full = partial = 0
    rows = [plan.tokens("q", i) for i in range(plan.q_tiles)]
    columns = [plan.tokens("k", j) for j in range(plan.kv_tiles)]
    for head in range(mask.heads):
        truth = mask.dense(head=head)
        pairs += int(truth.sum())
        assert sorted(np.concatenate(rows)) == list(range(truth.shape[0]))
        assert sorted(np.concatenate(columns)) == list(range(truth.shape[1]))
        visits = plan.rows(head)
        for i in range(plan.q_tiles):
            listed = dict(visits[i])
            assert list(listed) == sorted(listed)
            for j in range(plan.kv_tiles):
                tile = truth[np.ix_(rows[i], columns[j])]
                kind = "empty" if not tile.any() else "full" if tile.all() else "partial"
                assert plan.kind(head, i, j) == kind, (head, i, j)
                assert listed.get(j, "empty") == kind
                full += kind == "full"
                partial += kind == "partial"
        counts = plan.row_counts(head)
        assert [sum(k == "full" for _, k in row) for row in visits] == counts[0].tolist()
        assert [sum(k == "partial" for _, k in row) for row in visits] == counts[1].tolist()
    assert plan.pairs == pairs
    assert (plan.tiles.full, plan.tiles.partial) == (full, partial)
    assert plan.tiles.total == mask.heads * plan.q_tiles * plan.kv_tiles


@pytest.mark.parametrize("odd", [False, True])
@pytest.mark.parametrize("seed", range(250))
def test_random_plans_are_exact(seed: int, odd: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("maskdsl.planner.tree.AT_ONCE", AT_ONCE[seed % 3])
    case = random_case(seed, odd=odd)
    mask = case.mask()
    plan = mask.plan(case.q_tile, case.kv_tile)
    assert_exact(mask, plan)


@pytest.mark.parametrize("odd", [False, True])
@pytest.mark.parametrize("seed", range(2000, 2120))
def test_random_plans_split_inside_tiles_are_exact(
    seed: int, odd: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("maskdsl.planner.tree.FEW_PAIRS", 0)
    monkeypatch.setattr("maskdsl.planner.tree.AT_ONCE", AT_ONCE[seed % 3])
    case = random_case(seed, odd=odd)
    mask = case.mask()
    assert_exact(mask, mask.plan(case.q_tile, case.kv_tile))


def test_irregular_patterns_are_evaluated_pair_by_pair(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("maskdsl.planner.tree.FEW_PAIRS", 0)
    monkeypatch.setattr("maskdsl.planner.tree.MAX_INNER", 500)
    mask = maskdsl.parse("pattern f over (n) keep random(1, q.n, k.n) < 0.01").bind(n=90)
    assert_exact(mask, mask.plan(16, 8))


def test_runs_of_several_axes_stay_within_a_line() -> None:
    mask = maskdsl.parse("pattern f over (y, x) keep near(y, 9)").bind(y=32, x=32)
    plan = mask.plan((4, 4), (4, 4))
    runs = plan.head_classes[0].runs
    assert (runs.first // 8 == (runs.first + runs.count - 1) // 8).all()
    assert int(runs.count.max()) == 8


def test_inputs_leave_tiles_partial_where_they_decide() -> None:
    text = (
        "pattern f over (n) input doc[n]: int keep causal(n) and (doc[q.n] == doc[k.n] or q.n < 16)"
    )
    plan = maskdsl.parse(text).bind(n=64).plan(16, 16)
    kinds = np.array([[plan.kind(0, i, j) for j in range(4)] for i in range(4)])
    assert kinds.tolist() == [
        ["partial", "empty", "empty", "empty"],
        ["partial", "partial", "empty", "empty"],
        ["partial", "partial", "partial", "empty"],
        ["partial", "partial", "partial", "partial"],
    ]
    assert plan.pairs is None


def test_head_classes_are_shared() -> None:
    text = "pattern f over (n) keep head < heads // 2 or near(n, 3 + head % 2)"
    plan = maskdsl.parse(text).bind(n=64, heads=8).plan(16, 16)
    assert [c.heads for c in plan.head_classes] == [(0, 1, 2, 3), (4, 6), (5, 7)]


@pytest.mark.parametrize(
    ("tile", "cause"),
    [
        ((4, 4), "has 1 axes"),
        (3, "powers of two"),
        (0, "powers of two"),
        ("x", "must be ints"),
        ({4}, "must be ints"),
        (b"4", "must be ints"),
        ((True,), "must be ints"),
        ((x for x in (4,)), "must be ints"),
        ((), "one axis at least"),
        (2.5, "must be ints"),
        (2**20, "larger than"),
    ],
)
def test_wrong_tiles(tile: object, cause: str) -> None:
    mask = maskdsl.parse("pattern f over (n) keep causal(n)").bind(n=64)
    with pytest.raises(maskdsl.PlanError, match=cause):
        mask.plan(tile, 16)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("kwargs", "cause"),
    [
        ({"step": (0,)}, "at least 1"),
        ({"step": (1, 1)}, "one entry per axis"),
        ({"pitch": (5,)}, "between 1 and its size"),
        ({"pitch": (0,)}, "between 1 and its size"),
        ({"pitch": (2, 2)}, "one entry per axis"),
        ({"wrap": (True, False)}, "one entry per axis"),
        ({"wrap": 1}, "true or false"),
    ],
)
def test_wrong_tile_fields(kwargs: dict[str, object], cause: str) -> None:
    with pytest.raises(maskdsl.PlanError, match=cause):
        Tile((4,), **kwargs)  # type: ignore[arg-type]


def test_tile_numbers_outside_the_grid() -> None:
    plan = maskdsl.parse("pattern f over (y, x) keep true").bind(y=8, x=8).plan((4, 4), (4, 4))
    assert plan.kind(0, (1, 0), 3) == "full"
    for wrong in (4, -1, (2, 0), (0, 0, 0), "x", None):
        with pytest.raises(maskdsl.PlanError, match="no query tile"):
            plan.kind(0, wrong, 0)  # type: ignore[arg-type]
    with pytest.raises(maskdsl.PlanError, match="no head 1"):
        plan.kind(1, 0, 0)


@pytest.mark.parametrize(("side", "tile"), [("x", 0), ("q", -1), ("k", 4), ("q", None), ("q", 1.0)])
def test_tokens_of_no_tile(side: str, tile: int) -> None:
    plan = maskdsl.parse("pattern f over (n) keep true").bind(n=64).plan(16, 16)
    with pytest.raises(maskdsl.PlanError, match="a side is|there is no"):
        plan.tokens(side, tile)


def test_runs_are_not_more_than_foretold() -> None:
    for seed in range(40):
        case = random_case(seed, odd=seed % 2 == 0)
        for c in case.mask().plan(case.q_tile, case.kv_tile).head_classes:
            assert len(c.runs.first) <= sum(map(most_runs, c.all_trees))


def test_proofs_and_explain_do_not_list_endless_rows() -> None:
    start = time.process_time()
    columns = maskdsl.parse("pattern f over (n) keep near(n, 64) or k.n % 512 == 0").bind(n=2**22)
    plan = columns.plan(64, 64)
    assert plan.proofs["no_empty_row"] and not plan.proofs["contiguous"]
    assert "too many runs to list" in plan.explain()
    causal = maskdsl.parse("pattern f over (n) keep causal(n)").bind(n=2**31).plan(64, 64)
    assert causal.proofs["no_empty_row"] and causal.proofs["contiguous"]
    assert "closed form" in causal.explain()
    assert time.process_time() - start < 2


def test_the_permutation_makes_tiles_contiguous() -> None:
    plan = maskdsl.parse("pattern f over (y, x) keep true").bind(y=5, x=6).plan((2, 4), (2, 4))
    order = plan.permutation()
    assert sorted(order) == list(range(30))
    assert order[:8].tolist() == [0, 1, 2, 3, 6, 7, 8, 9]


def test_local_patterns_cost_little_at_a_million_tokens() -> None:
    """Work follows the boxes that differ, not the pairs: 2 ** 40 of them here."""
    mask = maskdsl.parse("pattern f over (n) keep 0 <= q.n - k.n < 4096").bind(n=2**20)
    start = time.perf_counter()
    plan = mask.plan(128, 128)
    took = time.perf_counter() - start
    assert took < 1
    n, w = 2**20, 4096
    assert plan.pairs == n * w - w * (w - 1) // 2
    tree = plan.head_classes[0].trees[0][0]
    assert max(len(level.kind) for level in tree.levels) < 20
    # Rows past the first 4096 queries: 31 full tiles and one partial at either end.
    full, partial = plan.row_counts()
    assert set(full[40:]) == {31} and set(partial[40:]) == {2}


def test_explain_says_what_was_found() -> None:
    plan = maskdsl.parse("pattern f over (n) keep causal(n)").bind(n=256).plan(64, 64)
    text = plan.explain()
    assert "6 full, 4 partial, 6 empty" in text
    assert "divisible" in text
