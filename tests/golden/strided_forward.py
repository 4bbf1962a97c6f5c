# Forward attention for the pattern `strided`, emitted by MaskDSL.
#
#     # Sparse Transformer, strided (arXiv 1904.10509; github.com/openai/sparse_attention): even
#     # heads see the last `stride` keys, the query included; odd heads every `stride`-th key back
#     # from the query. Causal, so fewer at the start. (The paper's local set holds one key more, at
#     # distance `stride`, which its other set holds too; the released code counts as here.)
#     pattern strided(stride: int = 128)
#     over (n)
#     keep causal(n) and (if head % 2 == 0 then q.n - k.n < stride else (q.n - k.n) % stride == 0)
#
# problem   16 head(s), 16,384 queries, 16,384 keys, head_dim 128, bfloat16
# tiles     128 queries by 64 keys
# pairs     0 full, 136,176 partial, 388,112 empty tiles
# walk      partial tiles in one run a row; 2 classes of heads
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
    "lse_ptr": "*fp32", "head_class": "*i32", "rows": "*i32", "partial_runs": "*i32",
}  # fmt: skip
OPTIONS = {"num_warps": 8, "num_stages": 3}


@triton.jit
def softmax_step(s, values, peak, total, acc, scale_log2):
    """Take in the products `s` of one tile; the scale rides on the exponential's subtraction."""
    new = tl.maximum(peak, tl.max(s, 1) * scale_log2)
    weights = tl.exp2(s * scale_log2 - new[:, None])
    shrink = tl.exp2(peak - new)
    total = total * shrink + tl.sum(weights, 1)
    acc = tl.dot(weights.to(values.dtype), values, acc * shrink[:, None])
    return new, total, acc


@triton.jit
def strided_forward(
    q_desc, k_desc, v_desc, out_desc, lse_ptr, scale, batch_heads, heads_at_once, head_class, rows,
    partial_runs,
):  # fmt: skip
    # a tile of queries of one head: the longest rows first, for as many heads as the L2 cache holds
    program = tl.program_id(0)
    first_head = program // (ROWS * heads_at_once) * heads_at_once
    heads_here = tl.minimum(heads_at_once, batch_heads - first_head)
    row = (program - first_head * ROWS) // heads_here
    batch_head = first_head + (program - first_head * ROWS) % heads_here
    batch = batch_head // HEADS
    head = batch_head % HEADS
    row += tl.load(head_class + head) * ROWS
    tile = tl.load(rows + row)

    # the queries of this tile
    q_n_first = tile * 128
    q_lane = tl.arange(0, BLOCK_Q)
    q_n = q_n_first + q_lane
    q_token = q_n.to(tl.int64)
    q = q_desc.load([batch, head, q_n_first, 0]).reshape(BLOCK_Q, 128)

    # the same for all queries and keys
    once0 = head % 2 == 0
    once1 = ~once0

    # what the pattern needs to know of each query
    row0 = q_n - 127

    # keys and values
    k_lane = tl.arange(0, BLOCK_K)

    # online softmax: the largest logit (base 2), the sum of weights and the weighted values so far
    peak = tl.full([BLOCK_Q], LOWEST, tl.float32)
    total = tl.zeros([BLOCK_Q], tl.float32)
    acc = tl.zeros([BLOCK_Q, 128], tl.float32)
    scale_log2 = scale * LOG2E

    # partial tiles, one run
    run_low = tl.load(partial_runs + 2 * row)
    run_high = tl.load(partial_runs + 2 * row + 1)
    for k_n_first in range(run_low, run_high, 64):
        k_n = k_n_first + k_lane
        keys = k_desc.load([batch, head, k_n_first, 0]).reshape(BLOCK_K, 128)
        values = v_desc.load([batch, head, k_n_first, 0]).reshape(BLOCK_K, 128)
        s = tl.dot(q, tl.trans(keys))
        pair0 = once0 & (row0[:, None] <= k_n[None, :])
        pair0 |= once1 & (q_n[:, None] - k_n[None, :] & 127 == 0)
        keep = (k_n[None, :] <= q_n[:, None]) & pair0
        s = tl.where(keep, s, float("-inf"))
        peak, total, acc = softmax_step(s, values, peak, total, acc, scale_log2)

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

    walk: int tensors by name, on q's device. inputs: the pattern's, by name.
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
    strided_forward[(batch * HEADS.value * ROWS.value,)](
        boxes(q, (16384,), (128, 128)), boxes(k, (16384,), (64, 128)),
        boxes(v, (16384,), (64, 128)), boxes(out, (16384,), (128, 128)), lse, scale,
        batch * HEADS.value, heads_at_once, walk["head_class"], walk["rows"], walk["partial_runs"],
        **OPTIONS,
    )  # fmt: skip
    return out, lse
