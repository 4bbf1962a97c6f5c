# Forward attention for the pattern `alibi`, emitted by MaskDSL.
#
#     # ALiBi (arXiv 2108.12409): causal, and a penalty that grows with the distance;
#     # `maskdsl.tables.alibi_slopes` gives the slopes.
#     pattern alibi
#     over (n)
#     input slope[heads]: float
#     keep causal(n)
#     score logit - slope[head] * (q.n - k.n)
#
# problem   16 head(s), 16,384 queries, 16,384 keys, head_dim 128, bfloat16
# tiles     128 queries by 64 keys
# pairs     260,096 full, 4,096 partial, 260,096 empty tiles
# walk      full and partial tiles worked out from the tile's number
# proved    tiles divide the extents, 32 bits hold every int of the pattern, every query keeps a key
# target    sm_90, 8 warps, 3 stages

import math

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

BLOCK_Q = tl.constexpr(128)  # queries of a tile
BLOCK_K = tl.constexpr(64)  # keys of a tile
ROWS = tl.constexpr(128)  # tiles of queries
QUERIES = tl.constexpr(16384)
HEADS = tl.constexpr(16)
LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
LOWEST = tl.constexpr(-3.4028234663852886e38)  # of float32: no logit lies lower, and it is finite

# Types of the kernels' pointers and descriptors, and the launch options.
TYPES = {
    "q_desc": "tensordesc<bf16[1, 1, 128, 128]>", "k_desc": "tensordesc<bf16[1, 1, 64, 128]>",
    "v_desc": "tensordesc<bf16[1, 1, 64, 128]>", "out_desc": "tensordesc<bf16[1, 1, 128, 128]>",
    "lse_ptr": "*fp32", "in_slope": "*fp32",
}  # fmt: skip
OPTIONS = {"num_warps": 8, "num_stages": 3}


@triton.jit
def softmax_step(s, values, peak, total, acc):
    """Take in the logits `s` (base 2) of one tile."""
    new = tl.maximum(peak, tl.max(s, 1))
    weights = tl.exp2(s - new[:, None])
    shrink = tl.exp2(peak - new)
    total = total * shrink + tl.sum(weights, 1)
    acc = tl.dot(weights.to(values.dtype), values, acc * shrink[:, None])
    return new, total, acc


@triton.jit
def alibi_forward(
    q_desc, k_desc, v_desc, out_desc, lse_ptr, scale, batch_heads, heads_at_once, in_slope,
    in_slope_strides,
):  # fmt: skip
    # a tile of queries of one head: the longest rows first, for as many heads as the L2 cache holds
    program = tl.program_id(0)
    first_head = program // (ROWS * heads_at_once) * heads_at_once
    heads_here = tl.minimum(heads_at_once, batch_heads - first_head)
    row = (program - first_head * ROWS) // heads_here
    batch_head = first_head + (program - first_head * ROWS) % heads_here
    batch = batch_head // HEADS
    head = batch_head % HEADS
    tile = ROWS - 1 - row

    # the queries of this tile
    q_n_first = tile * 128
    q_lane = tl.arange(0, BLOCK_Q)
    q_n = q_n_first + q_lane
    q_token = q_n.to(tl.int64)
    q = q_desc.load([batch, head, q_n_first, 0]).reshape(BLOCK_Q, 128)

    # the same for all queries and keys
    once0 = tl.load(in_slope + head.to(tl.int64) * in_slope_strides[0]).to(tl.float32)

    # the tiles of keys to visit
    full_last = 2 * tile
    last = 2 * tile + 2

    # keys and values
    k_lane = tl.arange(0, BLOCK_K)

    # online softmax: the largest logit (base 2), the sum of weights and the weighted values so far
    peak = tl.full([BLOCK_Q], LOWEST, tl.float32)
    total = tl.zeros([BLOCK_Q], tl.float32)
    acc = tl.zeros([BLOCK_Q, 128], tl.float32)

    # full tiles: nothing to mask
    for k_n_first in range(0, full_last * 64, 64):
        k_n = k_n_first + k_lane
        keys = k_desc.load([batch, head, k_n_first, 0]).reshape(BLOCK_K, 128)
        values = v_desc.load([batch, head, k_n_first, 0]).reshape(BLOCK_K, 128)
        s = tl.dot(q, tl.trans(keys))
        logit = s * scale
        s = (logit - once0 * (q_n[:, None] - k_n[None, :]).to(tl.float32)) * LOG2E
        peak, total, acc = softmax_step(s, values, peak, total, acc)

    # partial tiles
    for k_n_first in range(full_last * 64, last * 64, 64):
        k_n = k_n_first + k_lane
        keys = k_desc.load([batch, head, k_n_first, 0]).reshape(BLOCK_K, 128)
        values = v_desc.load([batch, head, k_n_first, 0]).reshape(BLOCK_K, 128)
        s = tl.dot(q, tl.trans(keys))
        logit = s * scale
        s = (logit - once0 * (q_n[:, None] - k_n[None, :]).to(tl.float32)) * LOG2E
        keep = k_n[None, :] <= q_n[:, None]
        s = tl.where(keep, s, float("-inf"))
        peak, total, acc = softmax_step(s, values, peak, total, acc)

    acc = acc / total[:, None]
    out = acc.to(out_desc.dtype).reshape(1, 1, 128, 128)
    out_desc.store([batch, head, q_n_first, 0], out)
    lse = (peak + tl.log2(total)) * LN2
    lse_row = lse_ptr + batch_head.to(tl.int64) * QUERIES
    tl.store(lse_row + q_token, lse)


def boxes(x, extents, box):
    """A descriptor of x, (batch, heads, tokens, dim), whose tokens fill `extents` row by row."""
    batch, heads, _, dim = x.shape
    steps = [x.stride(2) * math.prod(extents[i + 1 :]) for i in range(len(extents))]
    shape, strides = (batch, heads, *extents, dim), (x.stride(0), x.stride(1), *steps, 1)
    return TensorDescriptor(x, [*shape], [*strides], [1, 1, *box])


def forward(q, k, v, scale, walk, inputs):
    """Attention of q over k and v, (batch, heads, tokens, dim) tensors aligned to 16 bytes.

    walk: int tensors by name, on q's device (none are needed). inputs: the pattern's, by name.
    Gives out like q, and the natural log-sum-exp, float32 (batch, heads, queries).
    """
    batch = q.shape[0]
    shape = (batch, HEADS.value, QUERIES.value)
    order = sorted(range(3), key=lambda i: -q.stride(i))  # out lies in memory as q does
    out = q.new_empty([*(shape[i] for i in order), 128])
    out = out.permute(*(order.index(i) for i in range(3)), 3)
    lse = q.new_empty(shape, dtype=torch.float32)
    if batch == 0:
        return out, lse
    # as many heads at once as have what they walk in the L2 cache
    head_bytes = 16384 * 256 * k.element_size()
    heads_at_once = min(batch * HEADS.value, max(1, 33554432 // head_bytes))
    alibi_forward[(batch * HEADS.value * ROWS.value,)](
        boxes(q, (16384,), (128, 128)), boxes(k, (16384,), (64, 128)),
        boxes(v, (16384,), (64, 128)), boxes(out, (16384,), (128, 128)), lse, scale,
        batch * HEADS.value, heads_at_once, inputs["slope"], inputs["slope"].stride(), **OPTIONS,
    )  # fmt: skip
    return out, lse
