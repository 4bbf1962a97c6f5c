"""Odd calls: a prediction that makes sense, or one line that says what is wrong."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulator_plans import EMPTY, FULL, PARTIAL, FakePlan, one_line

import maskdsl
from maskdsl.errors import BindError, MaskError
from maskdsl.planner import Tile
from maskdsl.simulator import CompiledKernel, load_device, simulate, sweep
from maskdsl.simulator.rows import last_tiles

CAUSAL = maskdsl.parse("pattern p over (n) keep causal(n)").bind(n=2048, heads=8, kv_heads=2)
ODD = maskdsl.parse(
    "pattern p over (n) keep causal(n) score exp(logit / 100) * logit + log(1 + abs(logit))"
).bind(n=512)
SEGMENTS = maskdsl.parse(
    "pattern p over a(t, s) then b(n) keep a -> a: near(t, 1) keep any -> b, b -> any: true"
).bind(t=4, s=100, n=33, heads=4)
EMPTY_MASK = maskdsl.parse("pattern p over (n) keep false").bind(n=300)
ONE = maskdsl.parse("pattern p over (n) keep true").bind(n=1)

FINE = [
    *((mask, {}) for mask in (CAUSAL, ODD, SEGMENTS, EMPTY_MASK, ONE)),
    *((mask, {"direction": "backward"}) for mask in (CAUSAL, ODD, SEGMENTS, EMPTY_MASK, ONE)),
    *((CAUSAL, {"head_dim": n}) for n in (1, 33, 256, 512)),
    *((CAUSAL, {"head_dim": 64, "value_dim": n}) for n in (1, 100, 512)),
    *((CAUSAL, {"queries": n}) for n in (1, 2, 7, 33, 64, 2047, 2048)),
    *((mask, {"queries": 1}) for mask in (ODD, SEGMENTS, EMPTY_MASK, ONE)),
    *((CAUSAL, {"kv_heads": n, "direction": "backward"}) for n in (1, 4, 8)),
    (ONE, {"heads": 1000, "batch": 10_000}),
    (CAUSAL, {"lanes": 16}),
    (CAUSAL, {"lanes": (4096, 16), "dtype": "fp32", "device": "rtx4090"}),
    (SEGMENTS, {"engine": "natten", "device": "b200"}),
    (CAUSAL, {"splits": 64, "device": "mi300x"}),
]


@pytest.mark.parametrize("mask, options", FINE)
def test_odd_calls_are_predicted(mask, options) -> None:
    p = simulate(mask, **options)
    for one in p.sparse.passes + p.dense.passes:
        numbers = [one.launch, one.compute, one.memory, one.merge, one.flops, one.bytes]
        assert all(math.isfinite(x) and x >= 0 for x in numbers)
    assert 0 < p.time < 60 and 0 < p.dense_time < 60
    assert sum(p.sparse.shares.values()) == pytest.approx(1)
    assert p.tiles["total"] == sum(p.tiles[k] for k in ("empty", "full", "partial"))
    found = json.loads(json.dumps(p.to_dict()))
    assert found["time"] == p.time and p.table()


CODE = CompiledKernel(340, 488, 300, 8, 152, 131_072)
WRONG = [
    ({"device": "h1000"}, "did you mean 'h100'"),
    ({"device": None}, "NoneType"),
    ({"device": "none.toml"}, "none.toml"),
    ({"dtype": "int8"}, "int8"),
    ({"head_dim": 0}, "head_dim"),
    ({"head_dim": 2.5}, "head_dim"),
    ({"value_dim": True}, "value_dim"),
    ({"batch": 0}, "batch"),
    ({"batch": 2**31}, "batch is at most"),
    ({"heads": 3}, "repeated"),
    ({"batch": 2**30}, "heads * batch"),
    ({"queries": 0}, "queries"),
    ({"queries": 5000}, "queries=5000"),
    ({"queries": 1, "direction": "backward"}, "decoding"),
    ({"kv_heads": 3}, "multiple"),
    ({"splits": 65}, "splits is at most 64"),
    ({"lanes": 100}, "powers of two"),
    ({"engine": "cudnn"}, "cudnn"),
    ({"direction": "both"}, "both"),
    ({"compiled": "fast"}, "CompiledKernel"),
    ({"compiled": {"forward": 1}}, "CompiledKernel"),
    ({"compiled": {"forwards": CODE}}, "'forwards'"),
    ({"inputs": {"doc": np.zeros(3)}}, "doc"),
]


@pytest.mark.parametrize("options, words", WRONG)
def test_wrong_calls_give_one_line(options, words: str) -> None:
    with pytest.raises(MaskError) as error:
        simulate(CAUSAL, **options)
    assert words in one_line(error)


@pytest.mark.parametrize("subject", [None, "causal", CAUSAL.pattern, 3])
def test_only_masks_plans_and_kernels(subject) -> None:
    with pytest.raises(BindError, match="a mask, a plan or a kernel"):
        simulate(subject)


@pytest.mark.parametrize("value", ["nan", "-inf", "-5.5e12", "0", "true", "[1]"])
def test_figures_that_are_none(tmp_path, value: str) -> None:
    from maskdsl.simulator import devices

    text = (devices.resources.files("maskdsl.simulator") / "devices" / "h100.toml").read_text()
    path = tmp_path / "mine.toml"
    path.write_text(text.replace("value = 5.5e12", f"value = {value}"))
    with pytest.raises(BindError) as error:
        load_device(path)
    assert "l2_bandwidth" in one_line(error)
    lines = [line for line in text.splitlines() if not line.startswith("clock ")]
    path.write_text("\n".join(lines))
    with pytest.raises(BindError, match="expected clock"):
        load_device(path)


shapes = st.lists(
    st.tuples(
        st.integers(1, 12),
        st.sampled_from([1, 2, 4]),
        st.integers(1, 3),
        st.integers(-5, 5),
        st.booleans(),
    ),
    min_size=1,
    max_size=3,
)


@settings(max_examples=80, deadline=None)
@given(shapes, st.data())
def test_the_tiles_of_the_last_queries(axes, data) -> None:
    names = "abc"[: len(axes)]
    extents = [a[0] for a in axes]
    mask = maskdsl.parse(f"pattern p over ({', '.join(names)}) keep true").bind(
        **dict(zip(names, extents, strict=True))
    )
    size, step, origin, wrap = (tuple(a[i] for a in axes) for i in (1, 2, 3, 4))
    tile = Tile(size, step, origin, tuple(max(1, n - 1) for n in size), wrap)
    try:
        plan = mask.plan(tile, 4 if len(axes) == 1 else (2,) * len(axes))
    except MaskError:
        return
    tokens = math.prod(extents)
    queries = data.draw(st.integers(1, tokens))
    held = plan.q_grids[0].tokens(np.arange(plan.q_grids[0].count))
    expected = np.flatnonzero((held >= tokens - queries).any(1))
    assert last_tiles(plan, queries)[0].tolist() == expected.tolist()


# More keys on the same tiles

conditions = st.sampled_from(
    ["abs(q.n - k.n) < {}", "0 <= q.n - k.n < {}", "k.n < {} and k.n <= q.n", "q.n < {}"]
)


def kinds_of(plan) -> np.ndarray:
    found = np.full((1, plan.q_tiles, plan.kv_tiles), EMPTY)
    for row, visits in enumerate(plan.rows()):
        for tile, kind in visits:
            found[0, row, tile] = {"full": FULL, "partial": PARTIAL}[kind]
    return found


@settings(max_examples=60, deadline=None)
@given(
    conditions,
    conditions,
    st.integers(1, 600),
    st.integers(1, 600),
    st.sampled_from([1, 40]),
    st.sampled_from(["h100", "a100", "b200"]),
    st.sampled_from(["forward", "backward"]),
)
def test_more_keys_are_never_faster_but_for_tiles_that_they_fill(
    first, second, a, b, heads, device, direction
) -> None:
    """With all keys of A and more: never less than A without its mask's arithmetic, so never less
    than A where no partial tile of A has become full.
    """
    few, many = first.format(a), f"({first.format(a)}) or ({second.format(b)})"
    plans = [
        maskdsl.parse(f"pattern p over (n) keep {text}").bind(n=512).plan(q_tile=64, kv_tile=32)
        for text in (few, many)
    ]
    less, more = (kinds_of(p) for p in plans)
    options = {"heads": heads, "device": device, "direction": direction}
    fewer, unmasked, all_keys = (
        simulate(FakePlan(kinds, 64, 32), **options).time
        for kinds in (less, np.minimum(less, FULL), more)
    )
    assert all_keys >= unmasked * (1 - 1e-9)
    assert fewer <= 1.4 * unmasked
    if not ((less == PARTIAL) & (more == FULL)).any():
        assert all_keys >= fewer * (1 - 1e-9)


def test_growing_windows_are_never_faster() -> None:
    """By doubling, on the same tiles, whatever the pattern."""
    for name, device in itertools.product(("sliding_window", "dilated"), ("h100", "mi300x")):
        pattern = maskdsl.load(f"std/{name}")
        more = {"dilation": 2} if "dilation" in pattern.params else {}
        found = sweep(
            pattern, device, n=16_384, heads=4, tiles=[(128, 64)],
            window=[16, 32, 64, 128, 256, 512, 1024, 2048, 4096], **more,
        )  # fmt: skip
        windows = [p.choice["window"] for p in found]
        assert windows == sorted(windows)
