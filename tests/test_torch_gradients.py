"""Gradients of the torch backend: against autograd through dense attention, and by differences."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from random_patterns import random_case
from test_segments import VIDEO_TEXT
from test_torch_backend import CASES

import maskdsl
from maskdsl import Tile

Values = dict[str, Any]

# Patterns whose scores and sinks read inputs: text, tiles, what to bind, inputs by name.
DECAY = "input s[heads]: float keep causal(n)"
WITH_INPUTS: dict[str, tuple[str, Any, Values, dict[str, Any]]] = {
    "slope": (
        f"over (n) {DECAY} score logit - s[head] * (q.n - k.n)",
        4, {"n": 11, "heads": 2}, {"s": (2,)},
    ),
    "softcap": (
        "over (n) input c[heads]: float keep near(n, 3) score c[head] * tanh(logit / c[head])",
        4, {"n": 9, "heads": 2}, {"c": (2,)},
    ),
    "bias table": (
        "over (n) input b[heads, 7]: float keep near(n, 3) score logit + b[head, q.n - k.n + 3]",
        4, {"n": 10, "heads": 2}, {"b": (2, 7)},
    ),
    "bias of pairs": (
        "over (n) -> (m) input b[n, m]: float keep q.n * 2 >= k.m score logit * b[q.n, k.m]",
        (4, 8), {"n": 5, "m": 9}, {"b": (5, 9)},
    ),
    "two scores": (
        f"over (n) {DECAY} score logit * exp(s[head]) score logit + sigmoid(s[0]) * k.n",
        4, {"n": 9, "heads": 2}, {"s": (2,)},
    ),
    "sink": (
        "over (n) input z[heads]: float keep 0 < q.n - k.n < 4 sink z[head]",
        4, {"n": 9, "heads": 2}, {"z": (2,)},
    ),
    "sink and score": (
        "over (n) input z[heads]: float input w[batch, n]: float keep causal(n)"
        " score logit + w[batch, k.n] * q.n sink 2.0 * tanh(z[head])",
        4, {"n": 8, "heads": 4, "kv_heads": 2}, {"z": (4,), "w": (2, 8)},
    ),
    "a score without a logit": (
        "over (n) input w[n]: float keep near(n, 2) score w[k.n] * w[q.n]",
        4, {"n": 9}, {"w": (9,)},
    ),
    "two axes": (
        "over (y, x) input b[3, 5]: float keep near(y, 1) and near(x, 2)"
        " score logit + b[q.y - k.y + 1, k.x - q.x + 2]",
        (2, 2), {"y": 4, "x": 5}, {"b": (3, 5)},
    ),
    "heads of two kinds": (
        f"over (n) {DECAY} keep head == 1 and k.n < 3 score if head == 0 then logit"
        " else logit * s[head] - s[0] sink s[head] * s[head]",
        4, {"n": 9, "heads": 3}, {"s": (3,)},
    ),
    "segments": (
        "over a(x) then b(y) input u[heads]: float keep a -> a: near(x, 2) keep any -> b: true"
        " keep b -> a: k.x % 2 == 0"
        " score a -> a: logit * u[head] score any -> b: logit + u[0] * q.index sink u[head]",
        [4, 2], {"x": 7, "y": 4, "heads": 2}, {"u": (2,)},
    ),
}  # fmt: skip


def tensors(
    mask: maskdsl.Mask, batch: int, dim: int, value_dim: int, dtype: torch.dtype
) -> tuple[torch.Tensor, ...]:
    heads, queries, keys = mask.shape
    g = torch.Generator().manual_seed(0)
    shapes = (heads, queries, dim), (mask.kv_heads, keys, dim), (mask.kv_heads, keys, value_dim)
    return tuple(
        torch.randn(batch, *s, generator=g, dtype=torch.float64).to(dtype).requires_grad_()
        for s in shapes
    )


def inputs_of(shapes: Values, dtype: torch.dtype = torch.float64) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(1)
    made = {n: torch.rand(s, generator=g, dtype=torch.float64) + 0.5 for n, s in shapes.items()}
    return {n: x.to(dtype).requires_grad_() for n, x in made.items()}


def gradients(
    kernel: maskdsl.Kernel, x: tuple[torch.Tensor, ...], inputs: dict[str, torch.Tensor]
) -> list[torch.Tensor]:
    """Of a fixed function of out and lse, by q, k, v and the float inputs."""
    out, lse = kernel(*x, return_lse=True, **inputs)
    g = torch.Generator().manual_seed(2)
    weights = torch.randn(out.shape, generator=g, dtype=torch.float64)
    more = torch.randn(lse.shape, generator=g, dtype=torch.float64)
    loss = (out.double() * weights).sum() + (lse.double().masked_fill(lse.isinf(), 0) * more).sum()
    leaves = [*x, *(i for i in inputs.values() if i.requires_grad)]
    found = torch.autograd.grad(loss, leaves, allow_unused=True)
    return [torch.zeros_like(y) if f is None else f for f, y in zip(found, leaves, strict=True)]


def check(
    mask: maskdsl.Mask, q_tile: Any = None, kv_tile: Any = None, inputs: Any = None,
    batch: int = 2, dtype: torch.dtype = torch.float64, tolerance: float = 1e-10,
) -> None:  # fmt: skip
    """Gradients are those of the reference backend, which differentiates dense attention."""
    inputs = inputs or {}
    x = tensors(mask, batch, 6, 5, dtype)
    ours, theirs = (
        gradients(
            maskdsl.compile(
                mask, 6, dtype, value_dim=5, backend=backend, q_tile=q_tile, kv_tile=kv_tile
            ),
            x,
            inputs,
        )
        for backend in ("torch", "reference")
    )
    for a, b in zip(ours, theirs, strict=True):
        assert a.dtype == b.dtype
        torch.testing.assert_close(a, b, atol=tolerance, rtol=tolerance)


# float64 runs in plain operations, float32 compiled.
BOTH = pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-4)]
)


@BOTH
@pytest.mark.parametrize("name", CASES)
def test_gradients_are_those_of_dense_attention(
    name: str, dtype: torch.dtype, tolerance: float
) -> None:
    text, q_tile, kv_tile, values = CASES[name]
    mask = maskdsl.parse("pattern f " + text).bind(**values)
    check(mask, q_tile, kv_tile, dtype=dtype, tolerance=tolerance)


@BOTH
@pytest.mark.parametrize("name", WITH_INPUTS)
def test_gradients_of_inputs_are_those_of_dense_attention(
    name: str, dtype: torch.dtype, tolerance: float
) -> None:
    text, tile, values, shapes = WITH_INPUTS[name]
    q_tile, kv_tile = tile if name == "bias of pairs" else (tile, tile)
    mask, inputs = maskdsl.parse("pattern f " + text).bind(**values), inputs_of(shapes, dtype)
    check(mask, q_tile, kv_tile, inputs, dtype=dtype, tolerance=tolerance)
    fixed = {name: x.detach() for name, x in inputs.items()}
    check(mask, q_tile, kv_tile, fixed, dtype=dtype, tolerance=tolerance)


@pytest.mark.parametrize("fast", [True, pytest.param(False, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", WITH_INPUTS)
def test_gradcheck(name: str, fast: bool) -> None:
    """Along random directions (fast), or along every one."""
    text, tile, values, shapes = WITH_INPUTS[name]
    mask = maskdsl.parse("pattern f " + text).bind(**values)
    q_tile, kv_tile = tile if name == "bias of pairs" else (tile, tile)
    kernel = maskdsl.compile(mask, 3, torch.float64, value_dim=2, q_tile=q_tile, kv_tile=kv_tile)
    inputs = inputs_of(shapes)
    batch = 2 if "batch" in text else 1

    def run(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *given: torch.Tensor) -> Any:
        named = dict(zip(inputs, given, strict=True))
        out, lse = kernel(q, k, v, return_lse=True, **named)
        return out, lse.masked_fill(lse.isinf(), 0)

    torch.manual_seed(5)
    assert torch.autograd.gradcheck(
        run, (*tensors(mask, batch, 3, 2, torch.float64), *inputs.values()), fast_mode=fast
    )


@BOTH
@pytest.mark.parametrize("seed", range(1100, 1140))
def test_gradients_of_random_patterns(seed: int, dtype: torch.dtype, tolerance: float) -> None:
    case = random_case(seed, odd=seed % 2 == 0)
    check(case.mask(), case.q_tile, case.kv_tile, batch=1, dtype=dtype, tolerance=tolerance)


def test_gradients_over_segments_and_residues() -> None:
    mask = maskdsl.parse(VIDEO_TEXT).bind(t=3, h=5, w=7, n=11, window=[3, 3, 5], heads=2)
    check(mask, [(1, 4, 4), 8], [(1, 4, 4), 8])
    mask = maskdsl.parse("pattern f over (n) keep dilated(n, 5, 4)").bind(n=97, heads=4, kv_heads=2)
    check(mask, Tile(8, 4), Tile(4, 4, 3))


def test_gradients_where_inputs_decide() -> None:
    text = """pattern f over (n) input doc[batch, n]: int input slope[heads]: float
    keep causal(n) and doc[batch, q.n] == doc[batch, k.n]
    score logit - slope[head] * (q.n - k.n)"""
    mask = maskdsl.parse(text).bind(n=59, heads=2)
    doc = torch.arange(59).repeat(2, 1) // torch.tensor([[13], [29]])
    check(mask, 8, 8, {**inputs_of({"slope": (2,)}), "doc": doc})


def test_gradients_of_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("maskdsl.runtime.torch_walk.LEAST_KEYS", 24)
    monkeypatch.setattr("maskdsl.runtime.torch_walk.BUDGET", 64)
    for name in ("causal", "window, GQA", "per head", "alibi", "softcap"):
        text, q_tile, kv_tile, values = CASES[name]
        check(maskdsl.parse("pattern f " + text).bind(**values), q_tile, kv_tile)


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float32, 1e-4), (torch.bfloat16, 4e-2), (torch.float16, 6e-3)],
)
def test_gradients_in_other_types(dtype: torch.dtype, tolerance: float) -> None:
    text, tile, values, shapes = WITH_INPUTS["sink and score"]
    mask = maskdsl.parse("pattern f " + text).bind(**{**values, "n": 8})
    check(mask, tile, tile, inputs_of(shapes, torch.float32), dtype=dtype, tolerance=tolerance)


def poisoned(
    kernel: maskdsl.Kernel, hidden: torch.Tensor, row: slice, **inputs: torch.Tensor
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Gradients of q, k and v of some rows' outputs as they are, and where hidden keys are huge."""
    q, k, v = (x.detach() for x in tensors(kernel.mask, 1, 8, 8, torch.float32))
    found = []
    for huge in (None, 3e38):
        k2, v2 = k.clone(), v.clone()
        if huge is not None:
            k2[0, 0, hidden], v2[0, 0, hidden] = huge, huge
        leaves = [x.requires_grad_() for x in (q.clone(), k2, v2)]
        found.append(torch.autograd.grad(kernel(*leaves, **inputs)[0, 0, row].sum(), leaves))
    return list(zip(*found, strict=True))


def test_forbidden_keys_do_not_touch_gradients() -> None:
    """Huge finite keys and values that a query may not see leave its gradient as it is."""
    mask = maskdsl.parse("pattern f over (n) keep causal(n) and q.n - k.n < 9").bind(n=40)
    kernel = maskdsl.compile(mask, 8, q_tile=16, kv_tile=16)
    for row in (0, 21, 39):
        hidden = torch.from_numpy(~mask.dense()[row])
        plain, huge = poisoned(kernel, hidden, slice(row, row + 1))[0]
        assert torch.equal(plain[0, 0, row], huge[0, 0, row])


def test_keys_that_no_query_sees_do_not_touch_gradients() -> None:
    """They are visited, for only the call knows who sees them."""
    text = "pattern f over (n) input seen[n]: bool keep causal(n) and seen[k.n]"
    mask = maskdsl.parse(text).bind(n=40)
    seen = torch.arange(40) % 3 > 0
    kernel = maskdsl.compile(mask, 8, q_tile=16, kv_tile=16)
    for plain, huge in poisoned(kernel, ~seen, slice(None), seen=seen):
        assert torch.equal(plain, huge)
    _, (dk, _), (dv, _) = poisoned(kernel, ~seen, slice(None), seen=seen)
    assert not dk[0, 0, ~seen].any() and not dv[0, 0, ~seen].any() and dv[0, 0, seen].any()


def test_scores_without_a_value_at_forbidden_pairs() -> None:
    """log(q - k) has none above the diagonal, and its slope there is infinite."""
    text = """pattern f over (n) input w[heads]: float keep k.n < q.n
    score logit + w[head] * log(q.n - k.n) * logit"""
    mask = maskdsl.parse(text).bind(n=33)
    kernel = maskdsl.compile(mask, 8, torch.float64, q_tile=16, kv_tile=16)
    x = tensors(mask, 1, 8, 8, torch.float64)
    w = torch.tensor([0.3], dtype=torch.float64, requires_grad=True)
    for g in torch.autograd.grad(kernel(*x, w=w).square().sum(), [*x, w]):
        assert g.isfinite().all() and g.any()


def test_gradients_of_gradients_are_refused() -> None:
    mask = maskdsl.parse("pattern f over (n) keep causal(n)").bind(n=16)
    x = tensors(mask, 1, 8, 8, torch.float32)
    (g,) = torch.autograd.grad(maskdsl.compile(mask, 8)(*x).sum(), x[0], create_graph=True)
    with pytest.raises(maskdsl.CompileError, match="gradients of gradients"):
        g.sum().backward()


def test_only_what_is_asked_for_gets_gradients() -> None:
    text = "pattern f over (n) input s[heads]: float keep causal(n) score logit * s[head]"
    mask = maskdsl.parse(text).bind(n=16)
    q, k, v = (x.detach() for x in tensors(mask, 1, 8, 8, torch.float32))
    s = torch.ones(1)
    kernel = maskdsl.compile(mask, 8)
    assert not kernel(q, k, v, s=s).requires_grad
    kernel(q, k.requires_grad_(), v, s=s).sum().backward()
    assert k.grad is not None and q.grad is None and s.grad is None
