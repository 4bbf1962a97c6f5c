"""Gradients of emitted kernels under Triton's interpreter against autograd over the dense
definition in float64.
"""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from kernels import CASES, random_plan

import maskdsl
from maskdsl import CompileError, Tile
from maskdsl.codegen import Spec
from maskdsl.planner import Plan
from maskdsl.runtime.boundary import Call
from maskdsl.runtime.reference import Reference
from maskdsl.runtime.triton_attention import TritonAttention

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

Inputs = Mapping[str, torch.Tensor]
TOLERANCE = {torch.float32: 1e-4, torch.float16: 2e-3}  # of the largest gradient
SOME = ("causal", "some_see_nothing", "packed", "soft_cap", "neighborhood_1d", "window")


class Run:
    """A call, small whole numbers as gradients of what it gives, and the gradients that follow."""

    def __init__(self, plan: Plan, spec: Spec, scale: float = 0.25) -> None:
        self.scale = scale
        self.attention = TritonAttention(plan, lambda _: plan, spec, scale)
        self.reference = Reference(plan.program, scale)

    def of_results(self, q: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(do, gradient of lse)"""
        g = torch.Generator().manual_seed(7)
        do = torch.randint(-2, 3, (*q.shape[:3], v.shape[3]), generator=g).to(q.dtype)
        return do, torch.randint(-2, 3, q.shape[:3], generator=g).float()

    def kernels(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, inputs: Inputs,
        do: torch.Tensor | None = None,
    ) -> list[torch.Tensor]:  # fmt: skip
        """Of q, k, v and the float inputs."""
        call = Call(q, k, v, dict(inputs))
        out, lse = self.attention.forward(call)
        given, of_lse = self.of_results(q, v)
        given = given if do is None else do
        floats = tuple(n for n, x in inputs.items() if x.is_floating_point())
        found = self.attention.gradients(call, out, lse, given, of_lse, floats)
        return [x for x in found if x is not None]

    def dense(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, inputs: Inputs
    ) -> list[torch.Tensor]:
        """The same in float64 by the definition."""
        real = {n: x.double() if x.is_floating_point() else x for n, x in inputs.items()}
        leaves, named = _leaves([q.double(), k.double(), v.double()], real)
        out, lse = self.reference.forward(Call(*leaves[:3], named))
        lse = torch.where(lse == -torch.inf, 0, lse)
        do, of_lse = self.of_results(q, v)
        found = torch.autograd.grad(
            [out, lse], leaves, [do.double(), of_lse.double()], allow_unused=True
        )
        return [x for x in found if x is not None]

    def check(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, inputs: Inputs) -> None:
        found, want = self.kernels(q, k, v, inputs), self.dense(q, k, v, inputs)
        assert len(found) == len(want)
        for x, y in zip(found, want, strict=True):
            assert not x.isnan().any()
            largest = float(y.abs().max())
            torch.testing.assert_close(
                x.double(), y, rtol=0, atol=TOLERANCE[q.dtype] * max(largest, 1e-3)
            )


def _leaves(
    tensors: list[torch.Tensor], inputs: Inputs
) -> tuple[list[torch.Tensor], dict[str, torch.Tensor]]:
    named = {n: x.detach() for n, x in inputs.items()}
    leaves = [x.detach().requires_grad_() for x in tensors]
    return leaves + [x.requires_grad_() for x in named.values() if x.is_floating_point()], named


def bind(text: str, **values: int) -> maskdsl.Mask:
    return maskdsl.parse(text).bind(**values)


def tensors(mask: maskdsl.Mask, batch: int = 1, seed: int = 0) -> tuple[torch.Tensor, ...]:
    """q, k, v of 16 dimensions."""
    heads, queries, keys = mask.shape
    g = torch.Generator().manual_seed(seed)
    shapes = ((heads, queries), (mask.kv_heads, keys), (mask.kv_heads, keys))
    return tuple(torch.randint(-2, 3, (batch, *s, 16), generator=g).float() for s in shapes)


@pytest.mark.parametrize("target", ["sm_90", "sm_80"])  # by descriptors, by pointers
@pytest.mark.parametrize("name", CASES)
def test_gradients(name: str, target: str) -> None:
    case = CASES[name]
    Run(case.plan(), case.spec(target), case.head_dim**-0.5).check(*case.tensors())


UNSEEN = "over a(n) then b(m) keep a -> a: causal(n) keep b -> a: true"
SEGMENTS = """pattern segments
over image(h, w) then text(n)
input slope[heads]: float
input shift[n]: float
keep image -> image: near(h, 2) and near(w, 2)
keep text -> text: causal(n)
keep any -> text: true
score image -> image: logit - slope[head] * abs(q.h - k.h)
score text -> text: logit + shift[k.n]
"""


@pytest.mark.parametrize("target", ["sm_90", "sm_80"])
def test_gradients_across_segments(target: str) -> None:
    mask = maskdsl.parse(SEGMENTS).bind(h=6, w=9, n=21, heads=4, kv_heads=2)
    plan = mask.plan(((4, 4), (16,)), ((4, 4), (16,)))
    g = torch.Generator().manual_seed(3)
    inputs = {"slope": torch.rand(4, generator=g), "shift": torch.rand(21, generator=g)}
    Run(plan, Spec(16, 16, "float32", target)).check(*tensors(mask, batch=2), inputs)


@pytest.mark.parametrize("text", ["over (n) keep q.n > 1000", UNSEEN])
def test_keys_that_no_query_sees(text: str) -> None:
    mask = maskdsl.parse(f"pattern p {text}").bind(
        n=32, heads=2, kv_heads=1, **({"m": 16} if "(m)" in text else {})
    )
    plan = mask.plan((16, 16), (16, 16)) if "(m)" in text else mask.plan(16, 16)
    Run(plan, Spec(16, 16, "float32")).check(*tensors(mask), {})


def test_gradients_of_tiles_that_inputs_decide() -> None:
    """Documents that differ by batch entry: what no query sees may be NaN."""
    mask = maskdsl.load("std/documents").bind(n=203, heads=4, kv_heads=2)
    run = Run(mask.plan(32, 16), Spec(16, 16, "float32"))
    starts = torch.tensor([[0, 64, 150], [0, 33, 40]])
    doc = torch.searchsorted(starts, torch.arange(203).expand(2, -1).contiguous(), right=True)
    q, k, v = tensors(mask, batch=2)
    run.check(q, k, v, {"doc": doc})
    dq, dk, dv = run.kernels(q, k, v, {"doc": doc})
    k[0, :, :64], v[0, :, :64] = torch.nan, torch.nan
    dq2, dk2, dv2 = run.kernels(q, k, v, {"doc": doc})
    for x, y in ((dq, dq2), (dk, dk2), (dv, dv2)):
        assert torch.equal(x[0, :, 64:], y[0, :, 64:])
        assert torch.equal(x[1], y[1])


@pytest.mark.parametrize("odd", [False, True])
@pytest.mark.parametrize("seed", [0, 3, 5, 12, 18, 24])
def test_random_patterns_and_tiles(seed: int, odd: bool) -> None:
    mask, plan = random_plan(seed, odd)
    Run(plan, Spec(16, 16, "float32")).check(*tensors(mask, seed=seed), {})


@pytest.mark.parametrize("name", SOME)
def test_exactly_the_right_pairs(name: str) -> None:
    """Huge finite values where a query may not look, and in the gradients of queries that may not
    see a key, change no bit of a gradient.
    """
    case = CASES[name]
    mask = case.mask()
    q, k, v, inputs = case.tensors()
    run = Run(case.plan(), case.spec())
    dq, dk, dv, *_ = run.kernels(q, k, v, inputs)
    do, _ = run.of_results(q, v)
    group = q.shape[1] // k.shape[1]
    huge = 3e4 if case.dtype == torch.float16 else 3e37
    keep = torch.from_numpy(mask.dense(head=0, batch=0, **inputs))
    for i in (q.shape[2] // 2, q.shape[2] - 1):
        k2, v2 = k.clone(), v.clone()
        k2[0, 0, ~keep[i]] = huge
        v2[0, 0, ~keep[i]] = huge
        again, *_ = run.kernels(q, k2, v2, inputs)
        assert torch.equal(again[0, 0, i], dq[0, 0, i])
    for j in (0, k.shape[2] // 2):
        q2, do2 = q.clone(), do.clone()
        for h in range(group):
            blind = torch.from_numpy(~mask.dense(head=h, batch=0, **inputs)[:, j])
            q2[0, h, blind] = 100 if case.dtype == torch.float16 else 1e15
            do2[0, h, blind] = 100 if case.dtype == torch.float16 else 1e15
        _, dk2, dv2, *_ = run.kernels(q2, k, v, inputs, do2)
        assert torch.equal(dk2[0, 0, j], dk[0, 0, j])
        assert torch.equal(dv2[0, 0, j], dv[0, 0, j])


def test_queries_without_keys_and_keys_without_queries_have_gradients_of_zero() -> None:
    case = CASES["some_see_nothing"]
    q, k, v, _ = case.tensors()
    run = Run(case.plan(), case.spec())
    do, _ = run.of_results(q, v)
    do[:, :, :51] = 3e37  # of outputs that are zeros whatever q, k and v are
    dq, dk, dv = run.kernels(q, k, v, {}, do)
    assert (dq[:, :, :51] == 0).all()
    assert (dk[:, :, 10:] == 0).all()
    assert (dv[:, :, 10:] == 0).all()
    assert (dq[:, :, 51:] != 0).any()
    assert dk.isfinite().all()
    assert dv.isfinite().all()


def test_tiles_that_are_not_visited_are_not_loaded() -> None:
    case = CASES["blocks"]
    q, k, v, _ = case.tensors()
    plan = case.plan()
    seen = {tile for tile, _ in plan.rows(0)[0]}
    seeing = {row for row, visits in enumerate(plan.rows(0)) if any(t == 0 for t, _ in visits)}
    for tile in set(range(plan.kv_tiles)) - seen:
        k[:, :, tile * 16 : tile * 16 + 16] = torch.nan
    for tile in set(range(plan.q_tiles)) - seeing:
        q[:, :, tile * 16 : tile * 16 + 16] = torch.nan
    dq, dk, _ = Run(plan, case.spec()).kernels(q, k, v, {})
    assert not dq[:, :, :16].isnan().any()
    assert not dk[:, :, :16].isnan().any()
    assert dq.isnan().any()


@pytest.mark.parametrize("scale", [-0.3, 0.0, 2.0])
def test_any_scale(scale: float) -> None:
    case = CASES["causal_divisible"]
    Run(case.plan(), case.spec(), scale).check(*case.tensors())


def test_query_heads_of_different_classes_share_a_key_head() -> None:
    text = (
        "pattern p over (n) keep causal(n)"
        " and (head % 2 == 0 or (q.n - k.n) % (head + 1) == 0) and (head < 3 or near(n, 9))"
    )
    mask = bind(text, n=61, heads=6, kv_heads=2)
    plan = mask.plan(16, 16)
    assert len(plan.head_classes) == 5
    Run(plan, Spec(16, 16, "float32")).check(*tensors(mask, batch=2), {})


def test_one_key_head_for_all() -> None:
    text = "pattern p over (n) keep near(n, 5) and k.n % (head + 1) == 0"
    mask = bind(text, n=45, heads=3, kv_heads=1)
    Run(mask.plan(16, 16), Spec(16, 16, "float32")).check(*tensors(mask, batch=2), {})


SCORES = {
    "by_head": "input x[heads]: float keep causal(n) score logit - x[head] * (q.n - k.n)",
    "by_batch": "input x[batch, heads]: float keep causal(n) score logit * x[batch, head]",
    "by_heads": "input x[_]: float keep near(n, 9) score logit * x[head] + x[0] * x[head // 2]",
    "by_query": "input x[heads, n]: float keep near(n, 9) score logit + x[head, q.n] * k.n / 50",
    "by_key": "input x[n]: float keep near(n, 9) score logit + exp(-x[k.n])",
    "by_key_of_a_head": "input x[heads, n]: float keep causal(n) score logit + x[head, k.n]",
    "by_distance": "input x[_]: float keep near(n, 9) score logit + x[q.n - k.n + 9]",
    "by_pair": "input x[n, n]: float keep near(n, 9) score logit * x[q.n, k.n]",
    "twice": "input x[n]: float keep near(n, 9) score logit + x[q.n] * x[k.n] score tanh(logit)",
    "everywhere": "input x[n]: float score logit + x[q.n]",
    "without_the_logit": "input x[n]: float keep near(n, 9) score x[k.n] * q.n / 9",
    "undefined": "input x[heads]: float keep causal(n) score logit + sqrt(abs(x[head] * k.n))",
    "by_blocks": "input x[_]: float keep causal(n) score logit * x[(q.n // 7 + k.n) % 3 + head]",
}
SIZES = {
    "x[heads]": (4,), "x[batch, heads]": (2, 4), "x[heads, n]": (4, 53), "x[n]": (53,),
    "x[_]": (19,), "x[n, n]": (53, 53),
}  # fmt: skip


@pytest.mark.parametrize("name", SCORES)
def test_gradients_of_inputs(name: str) -> None:
    text = SCORES[name]
    mask = bind(f"pattern p over (n) {text}", n=53, heads=4, kv_heads=2)
    shape = next(s for dims, s in SIZES.items() if f"input {dims}:" in text)
    x = torch.rand(shape, generator=torch.Generator().manual_seed(1)) + 0.5
    run = Run(mask.plan(16, 32), Spec(16, 16, "float32"))
    if name == "undefined":  # sqrt has no slope at 0: the language reads 0 there
        q, k, v = tensors(mask, batch=2)
        assert all(g.isfinite().all() for g in run.kernels(q, k, v, {"x": x}))
        return
    run.check(*tensors(mask, batch=2), {"x": x})
    modules = run.attention._kernels.values()
    assert any("atomic" in m.source for m in modules) == (
        name not in ("by_head", "by_heads", "by_batch")
    )


def test_only_kept_pairs_reach_inputs() -> None:
    """Neither huge keys that no query may see nor lanes past the edge, whose weights would be
    infinite.
    """
    text = "pattern p over (n) input x[heads]: float keep k.n < 29 score logit * x[head]"
    mask = bind(text, n=53, heads=2)
    q, k, v = tensors(mask)
    run = Run(mask.plan(16, 16), Spec(16, 16, "float32"))
    x = torch.tensor([0.5, 1.5])
    *_, want = run.kernels(q, k, v, {"x": x})
    k[:, :, 29:] = 3e37
    v[:, :, 29:] = 3e37
    *_, found = run.kernels(q, k, v, {"x": x})
    torch.testing.assert_close(found, want, rtol=1e-6, atol=0)
    mask = bind("pattern p over (n) input x[heads]: float score logit + x[head]", n=53, heads=2)
    run = Run(mask.plan(16, 16), Spec(16, 16, "float32"))
    *_, found = run.kernels(q, q, v.clamp(-2, 2), {"x": torch.tensor([0.5, 3000.0])})
    assert found.isfinite().all()


def test_gradients_of_inputs_on_tiles_that_cross_edges_and_wrap() -> None:
    text = (
        "pattern p over (a, b) input x[a]: float input y[b]: float input z[_]: float"
        " keep near(a, 2) score logit * z[0] + x[q.a] * y[k.b] + y[q.b]"
    )
    mask = bind(text, a=9, b=13)
    tile = Tile((2, 8), (1, 2), (1, 3), (2, 7), (False, True))
    g = torch.Generator().manual_seed(2)
    inputs = {n: torch.rand(s, generator=g) + 0.5 for n, s in (("x", 9), ("y", 13), ("z", 1))}
    Run(mask.plan(tile, tile), Spec(16, 16, "float32")).check(*tensors(mask), inputs)


def test_only_wanted_inputs_cost_anything() -> None:
    case = CASES["packed"]
    q, k, v, inputs = case.tensors()
    run = Run(case.plan(), case.spec())
    call = Call(q, k, v, inputs)
    out, lse = run.attention.forward(call)
    dq, *_ = run.attention.gradients(call, out, lse, out, lse, ())
    assert dq is not None
    assert all("atomic" not in b.source for b in run.attention._kernels.values())


SINKS = {
    "constant": ("sink 0.5", {}),
    "by_head": ("input x[heads]: float sink x[head]", {"x": (4,)}),
    "of_the_score_too": (
        "input x[heads]: float sink x[head] * 2 - 1 score logit - x[head] * (q.n - k.n)",
        {"x": (4,)},
    ),
    "by_batch": ("input x[batch, heads]: float sink tanh(x[batch, head]) * head", {"x": (2, 4)}),
}


@pytest.mark.parametrize("name", SINKS)
def test_sinks(name: str) -> None:
    clause, shapes = SINKS[name]
    text = f"pattern p over (n) keep causal(n) and q.n > 4 {clause}"
    mask = bind(text, n=53, heads=4, kv_heads=2)
    g = torch.Generator().manual_seed(4)
    inputs = {n: torch.rand(s, generator=g) for n, s in shapes.items()}
    q, k, v = tensors(mask, batch=2)
    run = Run(mask.plan(16, 16), Spec(16, 16, "float32"))
    out, lse = run.attention.forward(Call(q, k, v, inputs))
    want, want_lse = run.reference.forward(Call(q.double(), k.double(), v.double(), inputs))
    torch.testing.assert_close(out.double(), want, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(lse.double(), want_lse, rtol=1e-5, atol=1e-5)
    assert (out[:, :, :5] == 0).all()  # no key but the sink
    assert lse is not None
    assert lse[:, :, :5].isfinite().all()
    run.check(q, k, v, inputs)


def test_a_sink_of_minus_infinity_is_none() -> None:
    mask = bind("pattern p over (n) input x[heads]: float keep q.n > 4 sink x[head]", n=53, heads=2)
    run = Run(mask.plan(16, 16), Spec(16, 16, "float32"))
    q, k, v = tensors(mask)
    out, lse = run.attention.forward(Call(q, k, v, {"x": torch.full((2,), -torch.inf)}))
    mask = bind("pattern p over (n) keep q.n > 4", n=53, heads=2)
    bare = Run(mask.plan(16, 16), run.attention.spec)
    want, want_lse = bare.attention.forward(Call(q, k, v, {}))
    torch.testing.assert_close(out, want)
    torch.testing.assert_close(lse, want_lse)


def test_a_kernel_is_differentiable_in_its_layout() -> None:
    mask = bind(
        "pattern p over (n) input x[heads]: float keep causal(n) score logit * x[head]",
        n=40,
        heads=2,
    )
    kernel = maskdsl.compile(mask, 16, backend="triton", layout="bnhd", q_tile=16, kv_tile=16)
    dense = maskdsl.compile(mask, 16, backend="reference", layout="bnhd")
    g = torch.Generator().manual_seed(5)
    given = [torch.randn(2, 40, 2, 16, generator=g) for _ in range(3)]
    given[2] = given[2][:, :1].expand(2, 40, 2, 16)
    found = []
    for run in (kernel, dense):
        leaves = [x.detach().requires_grad_() for x in (*given, torch.tensor([0.5, 2.0]))]
        out, lse = run(*leaves[:3], return_lse=True, x=leaves[3])
        loss = (out * out).sum() + (lse * lse).sum()
        found.append(torch.autograd.grad(loss, leaves))
    for x, y in zip(*found, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-4)


def test_the_same_bits_every_time() -> None:
    case = CASES["causal"]
    q, k, v, _ = case.tensors()
    run = Run(case.plan(), case.spec())
    first, second = run.kernels(q, k, v, {}), run.kernels(q, k, v, {})
    assert all(torch.equal(x, y) for x, y in zip(first, second, strict=True))


def test_an_empty_batch() -> None:
    case = CASES["packed"]
    q, k, v, inputs = case.tensors()
    inputs["doc"] = inputs["doc"][:0]
    found = Run(case.plan(), case.spec()).kernels(q[:0], k[:0], v[:0], inputs)
    assert [x.shape[0] for x in found] == [0, 0, 0, 4]
    assert (found[3] == 0).all()


def test_gradients_of_gradients_are_refused() -> None:
    mask = bind("pattern p over (n) keep causal(n)", n=32)
    kernel = maskdsl.compile(mask, 16, backend="triton", q_tile=16, kv_tile=16)
    q, k, v = tensors(mask)
    out = kernel(q.requires_grad_(), k, v)
    (dq,) = torch.autograd.grad(out.sum(), q, create_graph=True)
    with pytest.raises(CompileError, match="gradients of gradients"):
        dq.sum().backward()


def test_backward_tiles_are_halved_until_they_fit() -> None:
    mask = bind("pattern p over (t, h, w) keep near(t, 1)", t=8, h=32, w=32)
    kernel = maskdsl.compile(
        mask, 128, torch.float16, backend="triton", target="sm_90",
        q_tile=Tile((2, 8, 8), (1, 1, 2), (0, 3, 1)), kv_tile=(2, 8, 8),
    )  # fmt: skip
    dq, dkv = (kernel.plan_of(name) for name in ("dq", "dkv"))
    assert dq.q_tile == Tile((2, 4, 8), (1, 1, 2), (0, 3, 1))
    assert dq.kv_tile == dkv.kv_tile == Tile((2, 8, 8))
    assert dkv.q_tile == Tile((2, 4, 8), (1, 1, 2), (0, 3, 1))
    assert all("BLOCK_Q = tl.constexpr(64)" in kernel.sources[name] for name in ("dq", "dkv"))
    same = maskdsl.compile(mask, 16, backend="triton", q_tile=(1, 4, 4), kv_tile=(1, 4, 4))
    assert same.plan_of("dq") is same.plan
