"""Emitted kernels under Triton's interpreter against the definition in float64."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from kernels import CASES, RANDOM, Case, dense_attention, random_plan

import maskdsl
from maskdsl import BindError, CompileError, Tile
from maskdsl.codegen import Spec
from maskdsl.runtime.triton_backend import TritonForward

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


LOADS = {"descriptors": "sm_90", "pointers": "sm_80"}


def forward(case: Case, scale: float | None = None, target: str = "sm_90") -> TritonForward:
    scale = case.head_dim**-0.5 if scale is None else scale
    return TritonForward(case.plan(), case.spec(target), scale)


@pytest.mark.parametrize("loads", LOADS)
@pytest.mark.parametrize("name", CASES)
def test_values(name: str, loads: str) -> None:
    case = CASES[name]
    q, k, v, inputs = case.tensors()
    run = forward(case, target=LOADS[loads])
    assert "_desc.load" in run.source or loads == "pointers" or name in WITHOUT_BOXES
    out, lse = run(q, k, v, inputs, return_lse=True)
    assert lse is not None
    want, want_lse = dense_attention(case.mask(), q, k, v, run.scale, **inputs)
    tolerance = 1e-5 if case.dtype == torch.float32 else 2e-3
    assert out.dtype == case.dtype
    assert not out.isnan().any()
    torch.testing.assert_close(out.double(), want, atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(lse.double(), want_lse, atol=1e-5, rtol=1e-5)


# four axes are more than a descriptor has
WITHOUT_BOXES = ("four_axes",)


@pytest.mark.parametrize("loads", LOADS)
@pytest.mark.parametrize("name", CASES)
def test_exactly_the_right_keys(name: str, loads: str) -> None:
    """What a query may not see carries huge finite values and changes nothing, to the last bit."""
    case = CASES[name]
    mask = case.mask()
    q, k, v, inputs = case.tensors()
    run = forward(case, target=LOADS[loads])
    out, _ = run(q, k, v, inputs)
    huge = 3e4 if case.dtype == torch.float16 else 3e37
    asked = {(0, 0): 0, (q.shape[0] - 1, k.shape[1] - 1): q.shape[1] - 1}  # no two share keys
    for i in (0, q.shape[2] // 2, q.shape[2] - 1):
        k2, v2 = k.clone(), v.clone()
        for (b, kv), h in asked.items():
            hidden = torch.from_numpy(~mask.dense(head=h, batch=b, **inputs)[i])
            k2[b, kv, hidden] = huge
            v2[b, kv, hidden] = huge
        again, _ = run(q, k2, v2, inputs)
        for (b, _), h in asked.items():
            assert torch.equal(again[b, h, i], out[b, h, i])


def test_tiles_that_are_not_visited_are_not_loaded() -> None:
    case = CASES["blocks"]
    q, k, v, _ = case.tensors()
    plan = case.plan()
    visited = {tile for tile, _ in plan.rows(0)[0]}
    for tile in set(range(plan.kv_tiles)) - visited:
        k[:, :, tile * 16 : tile * 16 + 16] = torch.nan
        v[:, :, tile * 16 : tile * 16 + 16] = torch.nan
    out, _ = forward(case)(q, k, v, {})
    assert not out[:, :, :16].isnan().any()


def test_tiles_that_inputs_leave_out_are_not_loaded() -> None:
    """Full tiles, partial ones and those past the ragged end, of batch entries that differ."""
    mask = maskdsl.load("std/documents").bind(n=203, heads=2)
    run = TritonForward(mask.plan(32, 16), Spec(16, 16, "float32"), 0.25)
    starts = torch.tensor([[0, 64, 150], [0, 33, 40]])
    doc = torch.searchsorted(starts, torch.arange(203).expand(2, -1).contiguous(), right=True)
    q, k, v = (torch.randn(2, 2, 203, 16) for _ in range(3))
    want, _ = dense_attention(mask, q, k, v, 0.25, doc=doc)
    torch.testing.assert_close(run(q, k, v, {"doc": doc})[0].double(), want, atol=1e-5, rtol=1e-5)
    k[0, :, :64], v[0, :, :64], k[1, :, :32], v[1, :, :32] = (torch.nan,) * 4
    out, _ = run(q, k, v, {"doc": doc})
    torch.testing.assert_close(out[0, :, 64:].double(), want[0, :, 64:], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(out[1, :, 64:].double(), want[1, :, 64:], atol=1e-5, rtol=1e-5)


VIDEO_TEXT = """pattern video_text(window: int[3])
over video(t, h, w) then text(n)
keep video -> video: neighborhood(t, window[0]) and neighborhood(h, window[1])
                     and neighborhood(w, window[2])
keep any -> text, text -> any: true
score video -> video: logit - 0.1 * abs(q.t - k.t)
"""


@pytest.mark.parametrize("loads", LOADS)
def test_segments_share_one_softmax(loads: str) -> None:
    bound = {"t": 3, "h": 5, "w": 8, "n": 21, "window": [2, 3, 4], "heads": 4, "kv_heads": 2}
    mask = maskdsl.parse(VIDEO_TEXT).bind(**bound)
    plan = mask.plan(((1, 4, 4), (16,)), ((1, 4, 8), (16,)))
    run = TritonForward(plan, Spec(16, 32, "float32", LOADS[loads]), 0.25)
    q, k, v = torch.randn(2, 4, 141, 16), torch.randn(2, 2, 141, 16), torch.randn(2, 2, 141, 32)
    out, lse = run(q, k, v, {}, return_lse=True)
    want, want_lse = dense_attention(mask, q, k, v, 0.25)
    assert lse is not None
    torch.testing.assert_close(out.double(), want, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(lse.double(), want_lse, atol=1e-5, rtol=1e-5)


WIDE = {
    "a_product": "keep causal(n) and (doc[q.n] - doc[k.n]) * k.n < 900",
    "a_float": "keep causal(n) and float(doc[q.n] - doc[k.n]) * 0.5 < 30",
    "a_sign": "keep causal(n) and -(doc[q.n] - doc[k.n]) * 3 + k.n > -300",
    "a_score": "keep causal(n) score logit + (doc[q.n] - doc[k.n]) * 0.01",
}


@pytest.mark.parametrize("name", WIDE)
def test_sums_of_inputs_keep_their_brackets(name: str) -> None:
    mask = maskdsl.parse(f"pattern p over (n) input doc[n]: int {WIDE[name]}").bind(n=48)
    run = TritonForward(mask.plan(16, 16), Spec(16, 16, "float32"), 0.25)
    q, k, v = (torch.randn(1, 1, 48, 16) for _ in range(3))
    doc = torch.arange(48) // 8 * 36
    out, _ = run(q, k, v, {"doc": doc})
    want, _ = dense_attention(mask, q, k, v, 0.25, doc=doc)
    torch.testing.assert_close(out.double(), want, atol=1e-5, rtol=1e-5)


OUTSIDE = {
    "powers": (31, "keep 2 ** k.n <= 2 ** q.n", Tile((16,))),
    "overflow": (74, "keep k.n*k.n*k.n*k.n*k.n <= q.n*q.n*q.n*q.n*q.n", Tile((16,))),
    "division": (60, "keep block(n, 4)", Tile((16,), (1,), (5,))),
}


@pytest.mark.parametrize("loads", LOADS)
@pytest.mark.parametrize("name", OUTSIDE)
def test_lanes_outside_count_for_nothing(name: str, loads: str) -> None:
    """Where arithmetic on their coordinates would wrap, or divide otherwise than inside."""
    n, text, tile = OUTSIDE[name]
    mask = maskdsl.parse(f"pattern p over (n) {text}").bind(n=n)
    run = TritonForward(mask.plan(16, tile), Spec(16, 16, "float32", LOADS[loads]), 0.25)
    q, k, v = (torch.randn(1, 1, n, 16) for _ in range(3))
    out, _ = run(q, k, v, {})
    want, _ = dense_attention(mask, q, k, v, 0.25)
    torch.testing.assert_close(out.double(), want, atol=1e-5, rtol=1e-5)


def test_one_key_head_for_all_on_three_axes() -> None:
    """Descriptors then see batch and heads as one axis."""
    mask = maskdsl.parse("pattern p over (t, h, w) keep near(t, 1) and near(w, 2)").bind(
        t=3, h=5, w=8, heads=4, kv_heads=1
    )
    run = TritonForward(mask.plan((1, 4, 4), (1, 4, 8)), Spec(16, 16, "float32"), 0.25)
    q, k, v = torch.randn(2, 4, 120, 16), torch.randn(2, 1, 120, 16), torch.randn(2, 1, 120, 16)
    out, _ = run(q, k, v, {})
    want, _ = dense_attention(mask, q, k, v, 0.25)
    torch.testing.assert_close(out.double(), want, atol=1e-5, rtol=1e-5)


ORDERED = {
    "neighborhood_2d": {"h": 5, "w": 11}, "neighborhood_3d": {"t": 3, "h": 3, "w": 5},
    "causal": {"n": 37},
}  # fmt: skip


@pytest.mark.parametrize("name", ORDERED)
def test_any_order_of_dimensions(name: str) -> None:
    """Descriptors may see batch and heads as one axis; the output lies in memory as q does."""
    case = replace(CASES[name], values={"heads": 2, **CASES[name].values, **ORDERED[name]})
    mask = case.mask()
    heads, n, _ = mask.shape
    run = forward(case)
    for order in ((0, 1, 2), (0, 2, 1), (2, 0, 1), (1, 0, 2), (2, 1, 0)):

        def make(heads: int, order: tuple[int, ...] = order) -> torch.Tensor:
            shape = (2, heads, n)
            x = torch.randn([*(shape[i] for i in order), case.head_dim]).to(case.dtype)
            return x.permute(*(order.index(i) for i in range(3)), 3)

        q, k, v = make(heads), make(mask.kv_heads), make(mask.kv_heads)
        out, _ = run(q, k, v, {})
        want, _ = dense_attention(mask, q, k, v, run.scale)
        torch.testing.assert_close(out.double(), want, atol=3e-3, rtol=3e-3)
        assert out.stride() == q.stride()


def test_tensors_that_no_descriptor_sees() -> None:
    """Strides of odd bytes, elements apart, batch and heads that are not one axis, zero strides."""
    case = CASES["neighborhood_3d"]
    mask = case.mask()
    n = mask.shape[1]
    run = TritonForward(case.plan(), case.spec(), 0.25)
    shape = (2, 1, n, 16)
    aligned = torch.randn(shape)
    odd = torch.randn(2, 1, n, 19)[..., 1:17]
    apart = torch.randn(2, 1, n, 32)[..., ::2]
    heads_inside = torch.randn(2, n, 3, 16).transpose(1, 2)[:, 1:2]
    expanded = torch.randn(1, 1, n, 16).expand(shape)
    calls = ((odd, aligned, aligned), (aligned, apart, odd), (heads_inside, expanded, aligned))
    for q, k, v in calls:
        out, _ = run(q, k, v, {})
        want, _ = dense_attention(mask, q, k, v, 0.25)
        torch.testing.assert_close(out.double(), want, atol=1e-5, rtol=1e-5)
    assert "by_pointers" in vars(run)


SEEDS = [
    pytest.param(seed, odd, marks=() if (seed // 2 + odd) % 2 else pytest.mark.slow)
    for seed in RANDOM
    for odd in (False, True)
]


@pytest.mark.parametrize(("seed", "odd"), SEEDS)
def test_random_patterns_and_tiles(seed: int, odd: bool) -> None:
    """Queries of zeros weigh all kept keys alike: outputs are counts of exactly those keys."""
    mask, plan = random_plan(seed, odd)
    heads, queries, keys = mask.shape
    q, k = torch.zeros(1, heads, queries, 16), torch.randn(1, heads, keys, 16)
    v = torch.randint(0, 2, (keys, 16), generator=torch.Generator().manual_seed(seed)).float()
    target = LOADS["descriptors" if seed % 2 else "pointers"]
    run = TritonForward(plan, Spec(16, 16, "float32", target), 0.25)
    out, lse = run(q, k, v.repeat(1, heads, 1, 1), {}, return_lse=True)
    assert lse is not None
    for h in range(heads):
        keep = torch.from_numpy(mask.dense(head=h)).float()
        count = keep.sum(1)
        torch.testing.assert_close(lse[0, h].exp(), count, atol=1e-2, rtol=0)
        torch.testing.assert_close(out[0, h] * count[:, None], keep @ v, atol=1e-2, rtol=0)


def test_products_of_float32_by_choice() -> None:
    mask = maskdsl.load("std/causal").bind(n=96, heads=2)
    options = {"backend": "triton", "target": "sm_90", "q_tile": 32, "kv_tile": 32}
    ieee = maskdsl.compile(mask, 16, **options)
    tf32 = maskdsl.compile(mask, 16, **options, precision="tf32")
    assert ieee.key != tf32.key
    assert not {"HGMMA", "HMMA"} & ieee.resources().instructions.keys()
    for direction in ("forward", "backward"):
        assert {"HGMMA", "HMMA"} & tf32.resources(direction=direction).instructions.keys()
    q, k, v = (torch.randint(-2, 3, (1, 2, 96, 16)).float() for _ in range(3))
    torch.testing.assert_close(tf32(q, k, v), ieee(q, k, v))
    with pytest.raises(CompileError, match="tf32 products are for float32, not float16"):
        maskdsl.compile(mask, 16, torch.float16, **options, precision="tf32")
    with pytest.raises(CompileError, match="precision is one of ieee, tf32, not 'bf16'"):
        maskdsl.compile(mask, 16, **options, precision="bf16")
    with pytest.raises(BindError, match="the backend is torch"):
        maskdsl.compile(mask, 16, backend="torch", precision="tf32")


@pytest.mark.parametrize("scale", [-0.3, 0.0, 2.0])
def test_any_scale(scale: float) -> None:
    case = CASES["causal"]
    q, k, v, _ = case.tensors()
    out, _ = forward(case, scale)(q, k, v, {})
    want, _ = dense_attention(case.mask(), q, k, v, scale)
    torch.testing.assert_close(out.double(), want, atol=1e-5, rtol=1e-5)


def test_large_logits_and_expanded_tensors() -> None:
    case = CASES["causal_divisible"]
    q, k, v, _ = case.tensors()
    k, v = k[:, :, :1].expand_as(k), v[:, :1].expand_as(v)
    out, _ = forward(case)(q * 1e4, k, v, {})
    want, _ = dense_attention(case.mask(), q * 1e4, k, v, 0.25)
    torch.testing.assert_close(out.double(), want, atol=1e-4, rtol=1e-4)


def test_output_follows_the_layout_of_the_queries() -> None:
    case = CASES["window"]
    q, k, v, _ = case.tensors()
    out, _ = forward(case)(q, k, v, {})
    assert out.transpose(1, 2).is_contiguous()
    assert forward(case)(q[:0], k[:0], v[:0], {})[0].shape == (0, *out.shape[1:])


def test_small_ints_as_inputs() -> None:
    case = CASES["looked_up"]
    q, k, v, inputs = case.tensors()
    out, _ = forward(case)(q, k, v, inputs)
    for kind in (torch.uint8, torch.int8, torch.int32):
        again, _ = forward(case)(q, k, v, {**inputs, "pick": inputs["pick"].to(kind)})
        assert torch.equal(again, out)


def test_bfloat16_is_refused_by_the_interpreter() -> None:
    run = TritonForward(CASES["causal"].plan(), Spec(16, 16, "bfloat16"), 0.25)
    q, k, v, _ = (
        x.bfloat16() if isinstance(x, torch.Tensor) else x for x in CASES["causal"].tensors()
    )
    with pytest.raises(CompileError, match="interpreter multiplies bfloat16 wrongly"):
        run(q, k, v, {})


@pytest.mark.parametrize(
    ("tile", "spec", "message"),
    [
        (8, (16, 16, "float32"), "at least 16 "),
        (64, (512, 16, "float32"), "head_dim of 1 to 256"),
        (64, (16, 16, "float64"), "triton kernels take"),
        (64, (16, 16, "float32", "sm_30"), "no target 'sm_30'"),
        (4096, (256, 256, "float32"), "take smaller"),
    ],
)
def test_what_kernels_cannot_do(tile: int, spec: tuple[int, int, str], message: str) -> None:
    mask = maskdsl.parse("pattern causal over (n) keep causal(n)").bind(n=5000)
    with pytest.raises(CompileError, match=message):
        TritonForward(mask.plan(tile, tile), Spec(*spec), 1.0)


def test_functions_that_cannot_be_exact_are_refused() -> None:
    mask = maskdsl.parse("pattern x over (n) input a[n]: float keep exp(a[q.n]) < k.n").bind(n=64)
    with pytest.raises(CompileError, match=r"exp\(...\) decides which keys are kept"):
        TritonForward(mask.plan(16, 16), Spec(16, 16, "float32"), 1.0)


def test_a_column_of_ones_counts_keys_past_2_to_the_24() -> None:
    """No int wraps: positions are exact where their products need 64 bits."""
    case = CASES["wide"]
    keep = case.mask().dense()
    q, k, v, _ = case.tensors()
    _, lse = forward(case)(q * 0, k, v, {}, return_lse=True)
    assert lse is not None
    np.testing.assert_allclose(lse[0, 0].exp().numpy(), keep.sum(1), rtol=1e-5)
