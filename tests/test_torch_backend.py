"""The torch and reference backends against dense attention in float64."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from kernels import dense_attention
from random_patterns import random_case

import maskdsl
from maskdsl import Tile


def integers(generator: torch.Generator, *shape: int) -> torch.Tensor:
    return torch.randint(-3, 4, shape, generator=generator).float()


def check(
    text: str,
    q_tile: Any = None,
    kv_tile: Any = None,
    *,
    backend: str = "torch",
    batch: int = 2,
    head_dim: int = 16,
    value_dim: int = 8,
    dtype: torch.dtype = torch.float32,
    inputs: dict[str, Any] | None = None,
    **values: Any,
) -> None:
    mask = maskdsl.parse(text).bind(**values)
    inputs = inputs or {}
    heads, queries, keys = mask.shape
    g = torch.Generator().manual_seed(0)
    q = integers(g, batch, heads, queries, head_dim).to(dtype)
    k = integers(g, batch, mask.kv_heads, keys, head_dim).to(dtype)
    v = integers(g, batch, mask.kv_heads, keys, value_dim).to(dtype)
    kernel = maskdsl.compile(
        mask, head_dim, dtype, value_dim=value_dim, backend=backend, q_tile=q_tile, kv_tile=kv_tile
    )
    out, lse = kernel(q, k, v, return_lse=True, **inputs)
    want, want_lse = dense_attention(mask, q, k, v, head_dim**-0.5, **inputs)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-11 if dtype == torch.float64 else 2e-2
    assert out.dtype == dtype and not out.isnan().any()
    torch.testing.assert_close(out.double(), want, atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(lse.double(), want_lse, atol=max(tolerance, 1e-5), rtol=1e-5)
    # Exactly the right keys: huge finite values in those a query may not see change nothing.
    for i in sorted({0, queries // 2, queries - 1}):
        for b, h in ((0, 0), (batch - 1, heads - 1)):
            hidden = torch.from_numpy(~mask.dense(head=h, batch=b, **inputs)[i])
            kv = h // (heads // mask.kv_heads)
            k2, v2 = k.clone(), v.clone()
            huge = 3e4 if dtype == torch.float16 else 3e38
            k2[b, kv, hidden], v2[b, kv, hidden] = huge, huge
            again = kernel(q, k2, v2, **inputs)
            torch.testing.assert_close(again[b, h, i], out[b, h, i], atol=tolerance, rtol=tolerance)


VIDEO = "neighborhood(t, 3) and neighborhood(y, 5) and neighborhood(x, 4, stride=2)"
Values = dict[str, Any]
SMALL = {"y": 17, "x": 19}
CASES: dict[str, tuple[str, Any, Any, Values]] = {
    "full": ("over (n)", None, None, {"n": 67}),
    "causal": ("over (n) keep causal(n)", 16, 32, {"n": 131, "heads": 2}),
    "window, GQA": (
        "over (n) keep 0 <= q.n - k.n < 20", 16, 16, {"n": 131, "heads": 4, "kv_heads": 2},
    ),
    "dilated": ("over (n) keep dilated(n, 5, 4)", 16, 16, {"n": 97}),
    "residue tiles": ("over (n) keep dilated(n, 5, 4)", Tile(8, 4), Tile(4, 4, 3), {"n": 97}),
    "blocks": ("over (n) keep block(n, 12)", 16, 8, {"n": 97}),
    "1-D": ("over (n) keep neighborhood(n, 9, stride=4, dilation=2)", 16, 16, {"n": 101}),
    "2-D": (
        "over (y, x) keep neighborhood(y, 5) and neighborhood(x, 7, dilation=2)",
        (4, 4), (2, 8), SMALL,
    ),
    "3-D": (f"over (t, y, x) keep {VIDEO}", (1, 4, 4), (2, 2, 8), {"t": 5, "y": 7, "x": 11}),
    "cross": (
        "over (n) -> (m) keep q.n * 2 >= k.m and random(3, q.n, k.m) < 0.1",
        8, 16, {"n": 37, "m": 61},
    ),
    "per head": (
        "over (n) keep head < heads // 2 and near(n, 3 * head)", 8, 8, {"n": 37, "heads": 6},
    ),
    "nothing": ("over (n) keep false", 16, 16, {"n": 37}),
    "softcap": ("over (n) keep causal(n) score 5.0 * tanh(logit / 5.0)", 16, 16, {"n": 59}),
    "alibi": (
        "over (n) keep near(n, 30) score logit - 0.5 ** (head + 1.0) * abs(q.n - k.n)",
        16, 16, {"n": 59, "heads": 3},
    ),
}  # fmt: skip


@pytest.mark.parametrize("backend", ["torch", "reference"])
@pytest.mark.parametrize("name", CASES)
def test_values_and_keys(name: str, backend: str) -> None:
    text, q_tile, kv_tile, values = CASES[name]
    check("pattern f " + text, q_tile, kv_tile, backend=backend, **values)


def test_radial() -> None:
    text = maskdsl.load("std/radial").source
    check(text, (1, 16), (1, 16), t=9, s=37)


@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_inputs_in_keep_and_score(backend: str) -> None:
    text = """pattern f over (n) input doc[batch, n]: int input slope[heads]: float
    keep causal(n) and doc[batch, q.n] == doc[batch, k.n]
    score logit - slope[head] * (q.n - k.n)"""
    g = torch.Generator().manual_seed(1)
    inputs = {
        "doc": torch.randint(0, 3, (2, 59), generator=g),
        "slope": torch.rand(2, generator=g),
    }
    check(text, 16, 16, n=59, heads=2, inputs=inputs, backend=backend)


def test_bool_inputs() -> None:
    text = "pattern f over (n) input seen[batch, n]: bool keep causal(n) and seen[batch, k.n]"
    seen = torch.rand(2, 40, generator=torch.Generator().manual_seed(2)) < 0.5
    check(text, 16, 16, n=40, inputs={"seen": seen})


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes(dtype: torch.dtype) -> None:
    text, q_tile, kv_tile, values = CASES["2-D"]
    check("pattern f " + text, q_tile, kv_tile, dtype=dtype, **values)


@pytest.mark.parametrize("seed", range(1000, 1060))
def test_random_patterns(seed: int) -> None:
    case = random_case(seed, odd=seed % 2 == 0)
    check(case.text, case.q_tile, case.kv_tile, head_dim=8, batch=1, **case.values)


def test_long_rows_are_cut_and_merged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("maskdsl.runtime.torch_walk.LEAST_KEYS", 24)
    monkeypatch.setattr("maskdsl.runtime.torch_walk.BUDGET", 64)
    for name in ("causal", "window, GQA", "per head", "cross", "nothing"):
        text, q_tile, kv_tile, values = CASES[name]
        check("pattern f " + text, q_tile, kv_tile, **values)


def test_layouts_and_strides() -> None:
    mask = maskdsl.parse("pattern f over (n) keep causal(n)").bind(n=40, heads=2)
    q, k, v = (torch.randn(2, 2, 40, 8) for _ in range(3))
    want = maskdsl.compile(mask, 8)(q, k, v)
    turned = [x.transpose(1, 2).contiguous() for x in (q, k, v)]
    got = maskdsl.compile(mask, 8, layout="bnhd")(*turned)
    torch.testing.assert_close(got.transpose(1, 2), want)
    apart = [torch.stack([x, x], -1)[..., 0] for x in (q, k, v)]
    torch.testing.assert_close(maskdsl.compile(mask, 8)(*apart), want)


def test_reference_gradients_are_those_of_dense_attention() -> None:
    mask = maskdsl.parse("pattern f over (n) keep near(n, 3)").bind(n=12)
    q, k, v = (torch.randn(1, 1, 12, 4, dtype=torch.float64, requires_grad=True) for _ in range(3))
    kernel = maskdsl.compile(mask, 4, torch.float64, backend="reference")
    assert torch.autograd.gradcheck(lambda *x: kernel(*x), (q, k, v))


GOOD = {"q": (2, 4, 32, 8), "k": (2, 2, 32, 8), "v": (2, 2, 32, 8)}


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({"q": (2, 4, 33, 8)}, "q has tokens 33, the mask's is 32"),
        ({"q": (2, 3, 32, 8)}, "q has heads 3"),
        ({"k": (2, 4, 32, 8)}, "k has heads 4, the mask's is 2"),
        ({"k": (1, 2, 32, 8)}, "k has batch 1, q's is 2"),
        ({"v": (2, 2, 32, 7)}, "v has head_dim 7"),
        ({"q": (4, 32, 8)}, "must have 4 dimensions"),
    ],
)
def test_wrong_shapes_are_one_line(changes: dict[str, tuple[int, ...]], cause: str) -> None:
    mask = maskdsl.parse("pattern f over (n) keep causal(n)").bind(n=32, heads=4, kv_heads=2)
    kernel = maskdsl.compile(mask, 8)
    with pytest.raises(maskdsl.BindError, match=cause) as caught:
        kernel(*(torch.zeros(changes.get(name, shape)) for name, shape in GOOD.items()))
    assert "\n" not in str(caught.value)


def test_other_wrong_calls() -> None:
    text = "pattern f over (n) input doc[batch, n]: int keep doc[batch, q.n] == doc[batch, k.n]"
    mask = maskdsl.parse(text).bind(n=8)
    kernel = maskdsl.compile(mask, 4)
    x = torch.zeros(2, 1, 8, 4)
    doc = torch.zeros(2, 8, dtype=torch.int64)
    assert kernel(x, x, x, doc=doc).shape == x.shape
    wrong: list[tuple[dict[str, Any], str]] = [
        ({}, "'doc' is missing"),
        ({"doc": doc, "dock": doc}, "no input 'dock'; did you mean 'doc'"),
        ({"doc": doc[:1]}, "has batch 1 in dimension 0, q has 2"),
        ({"doc": doc[:, :7]}, "must have shape"),
        ({"doc": doc.float()}, "must be of int"),
        ({"doc": [[0] * 8] * 2}, "must be a tensor or an array"),
    ]
    for inputs, cause in wrong:
        with pytest.raises(maskdsl.BindError, match=cause):
            kernel(x, x, x, **inputs)
    with pytest.raises(maskdsl.BindError, match="q must be torch.float32, as compiled"):
        kernel(x.double(), x.double(), x.double(), doc=doc)
    with pytest.raises(maskdsl.BindError, match="q must be a tensor"):
        kernel(x.numpy(), x, x, doc=doc)


@pytest.mark.parametrize(
    ("kwargs", "cause"),
    [
        ({"backend": "tritn"}, "did you mean 'triton'"),
        ({"layout": "hbnd"}, "layout is one of"),
        ({"dtype": torch.int32}, "dtype is one of"),
        ({"head_dim": 0}, "at least 1"),
        ({"scale": math.inf}, "must be finite"),
        ({"scale": "x"}, "must be a number"),
        ({"scale": 10**400}, "must be finite"),
        ({"dtype": [1]}, "dtype is one of"),
    ],
)
def test_wrong_compile_arguments(kwargs: dict[str, Any], cause: str) -> None:
    mask = maskdsl.parse("pattern f over (n) keep causal(n)").bind(n=32)
    with pytest.raises(maskdsl.BindError, match=cause):
        maskdsl.compile(mask, **{"head_dim": 8, **kwargs})


def test_arrays_of_all_kinds_are_inputs() -> None:
    mask = maskdsl.parse("pattern f over (n) input x[n]: float keep x[q.n] <= x[k.n]").bind(n=8)
    q = torch.randn(1, 1, 8, 4)
    kernel = maskdsl.compile(mask, 4)
    up = np.arange(8.0)
    for x in (up[::-1], up.astype(">f8"), up.astype(np.longdouble), up.astype(np.float32)):
        want, _ = dense_attention(mask, q, q, q, 0.5, x=x)
        torch.testing.assert_close(kernel(q, q, q, x=x).double(), want, atol=1e-5, rtol=1e-5)
    for wrong in (np.array(["a"] * 8), np.array([None] * 8)):
        with pytest.raises(maskdsl.BindError, match="must be of float"):
            kernel(q, q, q, x=wrong)
    ints = maskdsl.parse("pattern f over (n) input i[n]: int keep i[k.n] > 0").bind(n=2)
    for big in (np.full(2, 2**63, np.uint64), torch.full((2,), 2**63, dtype=torch.uint64)):
        with pytest.raises(maskdsl.BindError, match="64 bits"):
            ints.dense(i=big)
        with pytest.raises(maskdsl.BindError, match="64 bits"):
            maskdsl.compile(ints, 4)(q[:, :, :2], q[:, :, :2], q[:, :, :2], i=big)
    named = maskdsl.parse("pattern f over (n) input v[n]: float keep v[k.n] > 0").bind(n=8)
    assert maskdsl.compile(named, 4)(q, q, q, v=torch.ones(8)).shape == q.shape


def test_empty_batches() -> None:
    mask = maskdsl.parse("pattern f over (n) keep causal(n)").bind(n=32)
    x = torch.zeros(0, 1, 32, 8)
    for backend in ("torch", "reference"):
        out, lse = maskdsl.compile(mask, 8, backend=backend)(x, x, x, return_lse=True)
        assert out.shape == (0, 1, 32, 8) and lse.shape == (0, 1, 32)


def test_choices_between_float_constants_are_binary64() -> None:
    """Two floats of Python once met in float32: 0.1 there lies above 0.1 * 1."""
    text = (
        "pattern f over (n) input x[n]: int\n"
        "keep (if q.n % 2 == 0 then 0.1 else 0.3) <= 0.1 * k.n and x[k.n] >= 0"
    )
    mask = maskdsl.parse(text).bind(n=8)
    x = torch.zeros(8, dtype=torch.int64)
    q, k, v = torch.zeros(1, 1, 8, 4), torch.zeros(1, 1, 8, 4), torch.eye(8)[None, None]
    out = maskdsl.compile(mask, 4, value_dim=8)(q, k, v, x=x)
    assert np.array_equal(out[0, 0].numpy() > 0, mask.dense(x=x))


@pytest.mark.parametrize("tokens", [4, 37, 70])
def test_tables_end_where_the_extents_do(tokens: int) -> None:
    pattern = maskdsl.parse("pattern p(seen: bool[n]) over (n) keep seen[k.n] and not seen[q.n]")
    seen = np.arange(tokens) % 3 > 0
    seen[-1] = True
    mask = pattern.bind(n=tokens, seen=seen)
    kernel = maskdsl.compile(mask, 4, backend="torch")
    q, v = torch.zeros(1, 1, tokens, 4), torch.arange(tokens * 4.0).view(1, 1, tokens, 4)
    kept = torch.from_numpy(mask.dense()).float()
    want = kept @ v / kept.sum(-1, keepdim=True).clamp(min=1)
    torch.testing.assert_close(kernel(q, q, v), want)
