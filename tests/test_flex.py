"""FlexAttention from our plans: mask functions against the definition, blocks against torch's own
`create_block_mask`, attention against dense attention in float64.
"""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from grid_cases import CASES
from kernels import PACKED, RADIAL, dense_attention
from library_cases import BATCH
from random_patterns import random_case
from test_library import SCORES, load
from test_segments import VIDEO_TEXT
from torch.nn.attention.flex_attention import (
    BlockMask,
    create_block_mask,
    create_mask,
    flex_attention,
)

import maskdsl
from maskdsl.integrations.flex import score_mod

LISTS = ("kv", "full_kv", "q", "full_q")


@pytest.fixture(autouse=True)
def _torch_is_quiet() -> Iterator[None]:
    """Uncompiled flex_attention warns that it is slow."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="flex_attention called without")
        yield
    torch._dynamo.reset()


def evaluated(mask: maskdsl.Mask, mask_mod: Any, batch: int = 1) -> np.ndarray:
    """Every pair through `vmap`: bool (batch, heads, queries, keys)."""
    heads, queries, keys = mask.shape
    return np.asarray(create_mask(mask_mod, batch, heads, queries, keys, "cpu").numpy())


def definition(mask: maskdsl.Mask, batch: int = 1, **inputs: Any) -> np.ndarray:
    return np.array(
        [[mask.dense(head=h, batch=b, **inputs) for h in range(mask.heads)] for b in range(batch)]
    )


def listed(block_mask: BlockMask, name: str) -> list[list[int]]:
    """The valid part of every line of one of its lists, in order."""
    counts = getattr(block_mask, f"{name}_num_blocks")
    indices = getattr(block_mask, f"{name}_indices")
    assert counts.dtype == indices.dtype == torch.int32
    assert counts.shape == indices.shape[:-1] and counts.is_contiguous()
    lines = indices.flatten(0, -2).tolist()
    return [line[:n] for line, n in zip(lines, counts.flatten().tolist(), strict=True)]


def of_torch(ours: BlockMask, mask_mod: Any, sizes: tuple[int, int]) -> BlockMask:
    batch, heads, queries, keys = ours.shape
    return create_block_mask(mask_mod, batch, heads, queries, keys, "cpu", BLOCK_SIZE=sizes)


def assert_equal_blocks(ours: BlockMask, theirs: BlockMask) -> None:
    assert ours.shape == theirs.shape
    assert ours.seq_lengths == theirs.seq_lengths
    assert ours.BLOCK_SIZE == theirs.BLOCK_SIZE
    for name in LISTS:
        assert listed(ours, name) == listed(theirs, name), name
    assert torch.equal(ours.to_dense(), theirs.to_dense())
    assert ours.sparsity() == theirs.sparsity()


def attend(
    mask: maskdsl.Mask,
    sizes: int | tuple[int, int],
    attention: Callable[..., torch.Tensor] = flex_attention,
    dtype: torch.dtype = torch.float32,
    head_dim: int = 16,
    **inputs: Any,
) -> None:
    """Flex attention with our mask against dense attention in float64."""
    _, block_mask = maskdsl.to_flex(mask, sizes, **inputs)
    heads, queries, keys = mask.shape
    g = torch.Generator().manual_seed(0)
    shapes = (heads, queries), (mask.kv_heads, keys), (mask.kv_heads, keys)
    q, k, v = (torch.randn(BATCH, *s, head_dim, generator=g).to(dtype) for s in shapes)
    scored = any(b.score is not None for b in mask.program.all_blocks)
    out = attention(
        q, k, v,
        score_mod=score_mod(mask, **inputs) if scored else None,
        block_mask=block_mask,
        enable_gqa=heads != mask.kv_heads,
    )  # fmt: skip
    want, _ = dense_attention(mask, q, k, v, head_dim**-0.5, **inputs)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-11
    torch.testing.assert_close(out.double(), want, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("seed", range(4000, 4080))
def test_random_patterns(seed: int) -> None:
    mask = random_case(seed).mask()
    sizes = ((8, 8), (16, 4), (4, 32), (128, 128))[seed % 4]
    mask_mod, block_mask = maskdsl.to_flex(mask, sizes)
    assert np.array_equal(evaluated(mask, mask_mod), definition(mask))
    assert_equal_blocks(block_mask, of_torch(block_mask, mask_mod, sizes))


@pytest.mark.parametrize("name", CASES)
def test_library_entries(name: str) -> None:
    """By random bindings; where inputs decide, at least the blocks that are not empty are listed,
    and as full none that is not.
    """
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    for _ in range(3):
        case = CASES[name](rng)
        mask = load(name).bind(**case.bound)
        mask_mod, ours = maskdsl.to_flex(mask, 8, **case.inputs)
        batch = BATCH if case.inputs else 1
        truth = np.array([[case.truth(h, b) for h in range(mask.heads)] for b in range(batch)])
        assert np.array_equal(evaluated(mask, mask_mod, batch), truth)
        theirs = of_torch(ours, mask_mod, (8, 8))
        if not case.inputs:
            assert_equal_blocks(ours, theirs)
            continue
        assert ours.shape[0] == BATCH
        assert (ours.to_dense() >= theirs.to_dense()).all()
        for mine, its in zip(listed(ours, "full_kv"), listed(theirs, "full_kv"), strict=True):
            assert set(mine) <= set(its)


ATTENDED = (
    "causal", "sliding_window", "dilated", "blocks", "prefix_lm", "streaming", "longformer",
    "power", "strided", "s2_shard", "full:cross", "documents", "tree", "swin", "natten2d", "radial",
)  # fmt: skip


@pytest.mark.parametrize("name", ATTENDED)
def test_attention(name: str) -> None:
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    while True:  # lengths that are ragged, and of several blocks
        case = CASES[name](rng)
        mask = load(name).bind(**case.bound)
        if all(tokens > 16 and tokens % 16 for tokens in mask.shape[1:]):
            break
    attend(mask, 16, **case.inputs)


@pytest.mark.parametrize("name", SCORES)
def test_attention_with_scores(name: str) -> None:
    axes, inputs_of, params, _ = SCORES[name]
    extents = [37] if axes == "n" else [5, 7]
    mask = load(name).bind(heads=2, **params, **dict(zip(axes, extents, strict=True)))
    inputs = inputs_of(np.random.default_rng(7), 2, *extents)
    attend(mask, 16, **inputs)
    attend(mask, (8, 16), dtype=torch.float64, **inputs)


def test_segments() -> None:
    mask = maskdsl.parse(VIDEO_TEXT).bind(t=3, h=5, w=7, n=11, window=[3, 3, 5])
    for sizes in ((16, 16), (8, 32)):
        mask_mod, ours = maskdsl.to_flex(mask, sizes)
        assert np.array_equal(evaluated(mask, mask_mod), definition(mask))
        assert_equal_blocks(ours, of_torch(ours, mask_mod, sizes))
    attend(mask, 16)
    scored = (
        VIDEO_TEXT
        + " score video -> text: logit * 0.5 score any -> any: logit + 1.0 / (1 + q.index)"
    )
    attend(maskdsl.parse(scored).bind(t=2, h=3, w=7, n=5, window=[1, 3, 5]), 16)


def test_segments_of_one_side() -> None:
    text = """pattern f over a(x) then b(y) -> c(z)
    keep a -> c: q.x * 2 >= k.z keep b -> c: (q.y + k.z) % 3 == 0 and q.index > 20"""
    mask = maskdsl.parse(text).bind(x=19, y=23, z=41)
    mask_mod, ours = maskdsl.to_flex(mask, 8)
    assert np.array_equal(evaluated(mask, mask_mod), definition(mask))
    assert_equal_blocks(ours, of_torch(ours, mask_mod, (8, 8)))


def test_heads_share_one_list_where_they_are_the_same() -> None:
    text = "pattern f over (n) keep causal(n) and (head < {} or near(n, 5))"
    for bound, heads in ((4, 1), (2, 4)):
        mask = maskdsl.parse(text.format(bound)).bind(n=50, heads=4, kv_heads=2)
        _, block_mask = maskdsl.to_flex(mask, 16)
        assert block_mask.shape == (1, heads, 50, 50)
        attend(mask, 16)


def test_full_blocks_at_the_edge() -> None:
    """Torch pads a ragged mask with false, so the last block of a full mask is partial."""
    mask = maskdsl.load("std/full").bind(n=40)
    _, block_mask = maskdsl.to_flex(mask, 16)
    assert listed(block_mask, "full_kv") == [[0, 1], [0, 1], []]
    assert listed(block_mask, "kv") == [[2], [2], [0, 1, 2]]
    assert listed(block_mask, "q") == [[2], [2], [0, 1, 2]]


@pytest.mark.parametrize(
    "keep",
    [
        "(if q.n % 2 == 0 then 0.1 else 0.3) <= 0.1 * k.n",  # binary64, not float32
        "(q.n - k.n) // 3 % 4 == (k.n - 40) // -7 % 5",
        "sqrt(q.n * k.n) < 0.3 * k.n + 5 and exp(0.01 * (q.n - k.n)) > 0.9",
        "4000000000 * (q.n + 3) * (k.n + 1) % 1000003 < 500000",  # past 32 bits
        "bit_length(q.n * k.n) == 7 or bit_count(q.n - k.n) == 3",
        "random(7, q.n, k.n) < 0.25",
        "clamp(q.n - 2 * k.n, -3, 8) == 8 or q.n ** 2 < k.n",
        "2 ** (k.n % 9) > q.n and tanh(q.n / 50) < 0.02 * k.n",
        "true",
        "false",
    ],
)
def test_numbers(keep: str) -> None:
    mask = maskdsl.parse(f"pattern f over (n) keep {keep}").bind(n=61)
    mask_mod, ours = maskdsl.to_flex(mask, 16)
    assert np.array_equal(evaluated(mask, mask_mod), definition(mask))
    assert_equal_blocks(ours, of_torch(ours, mask_mod, (16, 16)))


def test_functions_are_those_of_the_definition() -> None:
    """Torch's exp and sqrt differ from numpy's in the last bit here and there."""
    text = """pattern f(e: float[121], r: float[121]) over (n)
    let at = q.n - k.n + 60 keep exp(0.1 * at) == e[at] and sqrt(at) <= r[at]"""
    at = np.arange(121.0)
    mask = maskdsl.parse(text).bind(n=61, e=np.exp(0.1 * at), r=np.sqrt(at))
    mask_mod, _ = maskdsl.to_flex(mask, 16)
    assert mask.dense().all()
    assert evaluated(mask, mask_mod).all()


def test_positions_of_32_bits_do_not_wrap() -> None:
    """Compiled flex_attention hands over 32-bit positions."""
    keep = "4000000000 * (q.n + 3) * (k.n + 1) % 1000003 < 500000"
    mask = maskdsl.parse(f"pattern f over (n) keep {keep}").bind(n=61)
    mask_mod, _ = maskdsl.to_flex(mask, 16)
    zero, at = torch.zeros((), dtype=torch.int32), torch.arange(61, dtype=torch.int32)
    got = mask_mod(zero, zero, at[:, None], at[None, :])
    assert np.array_equal(got.numpy(), mask.dense())


def test_what_inputs_leave_undefined_is_false() -> None:
    text = """pattern f over (n) input at[n]: int input by[n]: int
    input table[_]: float keep table[at[q.n]] > 0.5 or k.n // by[k.n] == 2 or k.n % by[q.n] == 1"""
    mask = maskdsl.parse(text).bind(n=9)
    at = np.array([0, 1, 2, 3, -1, -4, 4, 99, -(2**62)])
    by = np.array([0, 1, 2, 3, 0, -2, 0, 5, -1])
    table = np.array([1.0, 0.0, 1.0, 0.25])
    mask_mod, _ = maskdsl.to_flex(mask, 8, at=at, by=by, table=table)
    read = np.where((at >= 0) & (at < 4), table[np.clip(at, 0, 3)], 0.0) > 0.5
    k = np.arange(9)
    safe = np.where(by == 0, 1, by)
    want = read[:, None] | ((by != 0) & (k // safe == 2))[None, :]
    want |= (by != 0)[:, None] & (k[None, :] % safe[:, None] == 1)
    assert np.array_equal(evaluated(mask, mask_mod)[0, 0], want)


def test_inputs_of_all_kinds() -> None:
    text = "pattern f over (n) input x[batch, n]: float keep x[batch, q.n] <= x[batch, k.n]"
    mask = maskdsl.parse(text).bind(n=20)
    x = np.random.default_rng(0).normal(size=(3, 20))
    for given in (x, x.tolist(), torch.from_numpy(x), x.astype(">f8"), x.astype(np.float16)):
        mask_mod, block_mask = maskdsl.to_flex(mask, 8, x=given)
        assert block_mask.shape == (3, 1, 20, 20)
        got = evaluated(mask, mask_mod, 3)
        assert np.array_equal(got, definition(mask, 3, x=np.asarray(given)))
    ints = maskdsl.parse("pattern f over (n) input i[n]: int keep i[q.n] < k.n").bind(n=20)
    for dtype in (np.uint8, np.int32, np.uint64):
        i = np.arange(20, dtype=dtype)[::-1]
        mask_mod, _ = maskdsl.to_flex(ints, 8, i=i)
        assert np.array_equal(evaluated(ints, mask_mod), definition(ints, i=i))


def test_gradients_reach_inputs_of_scores() -> None:
    mask = load("relative_bias").bind(n=21, heads=2)
    bias = torch.randn(2, 41, requires_grad=True)
    q, k, v = (torch.randn(1, 2, 21, 8) for _ in range(3))
    _, block_mask = maskdsl.to_flex(mask, 16, bias=bias)
    score = score_mod(mask, bias=bias)
    flex_attention(q, k, v, score_mod=score, block_mask=block_mask).square().sum().backward()
    got = bias.grad.clone()
    bias.grad = None
    reference = maskdsl.compile(mask, 8, backend="reference")
    reference(q, k, v, bias=bias).square().sum().backward()
    torch.testing.assert_close(got, bias.grad, atol=1e-5, rtol=1e-5)


def test_the_mask_mod_can_be_compiled() -> None:
    doc = torch.tensor([[0] * 20 + [1] * 30, [0] * 5 + [1] * 45])
    text = """pattern f over (n) input doc[batch, n]: int
    keep doc[batch, q.n] == doc[batch, k.n] and (q.n - 3 * k.n) % 5 < 2"""
    mask = maskdsl.parse(text).bind(n=50)
    mask_mod, _ = maskdsl.to_flex(mask, 16, doc=doc)
    ours = create_block_mask(mask_mod, 2, None, 50, 50, "cpu", BLOCK_SIZE=16)
    compiled = torch.compile(create_block_mask)
    assert_equal_blocks(compiled(mask_mod, 2, None, 50, 50, "cpu", BLOCK_SIZE=16), ours)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["radial", "packed", "segments"])
def test_compiled_attention(name: str) -> None:
    attention = torch.compile(flex_attention)
    doc = torch.tensor([[0] * 70 + [1] * 130, [0] * 150 + [1] * 50])
    if name == "radial":
        mask = maskdsl.parse(RADIAL).bind(t=7, s=43, least=16)
        attend(mask, 128, attention)
    elif name == "packed":
        mask = maskdsl.parse(PACKED).bind(n=200, window=40, heads=2)
        attend(mask, 128, attention, doc=doc, slope=torch.tensor([0.5, 0.25]))
    else:
        mask = maskdsl.parse(VIDEO_TEXT).bind(t=3, h=9, w=7, n=33, window=[3, 3, 5])
        attend(mask, 128, attention)


def test_refusals() -> None:
    text = "pattern f over (n) input doc[batch, n]: int keep doc[batch, q.n] == doc[batch, k.n]"
    mask = maskdsl.parse(text).bind(n=8)
    doc = np.zeros((2, 8), dtype=np.int64)
    two = maskdsl.parse(text.replace("keep", "input x[batch]: int keep x[batch] > 0 and")).bind(n=8)
    sink = maskdsl.parse("pattern f over (n) input s[heads]: float sink s[head]").bind(n=8)
    causal = maskdsl.load("std/causal")
    wrong: list[tuple[Callable[[], Any], type[Exception], str]] = [
        (lambda: maskdsl.to_flex(causal), maskdsl.BindError, "takes a mask, not Pattern"),
        (lambda: maskdsl.to_flex(causal.bind()), maskdsl.BindError, "lacks the extent of n"),
        (lambda: maskdsl.to_flex(causal.bind(n=9), 100), maskdsl.PlanError, "powers of two"),
        (lambda: maskdsl.to_flex(causal.bind(n=9), (8, 8, 8)), maskdsl.BindError, "or a pair"),
        (lambda: maskdsl.to_flex(causal.bind(n=9), 8.0), maskdsl.BindError, "or a pair"),
        (lambda: maskdsl.to_flex(causal.bind(n=9), device="gpu"), maskdsl.BindError, "device"),
        (lambda: maskdsl.to_flex(mask), maskdsl.BindError, "'doc' is missing"),
        (lambda: maskdsl.to_flex(mask, dock=doc), maskdsl.BindError, "did you mean 'doc'"),
        (lambda: maskdsl.to_flex(mask, doc=doc[:, :7]), maskdsl.BindError, "must have shape"),
        (lambda: maskdsl.to_flex(two, doc=doc, x=doc[0]), maskdsl.BindError, "differ in batch"),
        (lambda: maskdsl.to_flex(sink, s=[0.0]), maskdsl.CompileError, "has a sink"),
        (lambda: score_mod(sink, s=[0.0]), maskdsl.CompileError, "has a sink"),
        (lambda: score_mod(mask, doc=doc), maskdsl.BindError, "no score clause"),
    ]
    for call, error, cause in wrong:
        with pytest.raises(error, match=cause) as caught:
            call()
        assert "\n" not in str(caught.value)
