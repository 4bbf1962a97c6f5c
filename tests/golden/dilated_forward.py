# Forward attention for the pattern `dilated`, emitted by MaskDSL.
#
#     # Every `dilation`-th key, `window` steps to either side, so 2 * window + 1 keys; fewer at the
#     # ends (Longformer, arXiv 2004.05150, section 3.1).
#     pattern dilated(window: int, dilation: int)
#     over (n)
#     keep dilated(n, window, dilation)
#
# problem   16 head(s), 32,768 queries, 32,768 keys, head_dim 128, bfloat16
# tiles     128 step 4 queries by 64 step 4 keys
# pairs     223,232 full, 12,288 partial, 1,861,632 empty tiles
# walk      full tiles in one run a row; partial tiles from a list
# proved    tiles divide the extents, 32 bits hold every int of the pattern, every query keeps a key
# target    sm_90, 8 warps, 3 stages

import math

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

BLOCK_Q = tl.constexpr(128)  # queries of a tile
BLOCK_K = tl.constexpr(64)  # keys of a tile
ROWS = tl.constexpr(256)  # tiles of queries
QUERIES = tl.constexpr(32768)
HEADS = tl.constexpr(16)
LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
LOWEST = tl.constexpr(-3.4028234663852886e38)  # of float32: no logit lies lower, and it is finite

# Types of the kernels' pointers and descriptors, and the launch options.
TYPES = {
    "q_desc": "tensordesc<bf16[1, 1, 128, 1, 128]>", "k_desc": "tensordesc<bf16[1, 1, 64, 1, 128]>",
    "v_desc": "tensordesc<bf16[1, 1, 64, 1, 128]>",
    "out_desc": "tensordesc<bf16[1, 1, 128, 1, 128]>", "lse_ptr": "*fp32", "full_runs": "*i32",
    "partial_starts": "*i32", "partial_tiles": "*i32",
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
def dilated_forward(
    q_desc, k_desc, v_desc, out_desc, lse_ptr, scale, full_runs, partial_starts, partial_tiles,
):  # fmt: skip
    # a tile of queries of one head: one head after the other
    program = tl.program_id(0)
    row = program % ROWS
    batch_head = program // ROWS
    batch = batch_head // HEADS
    head = batch_head % HEADS
    tile = row

    # the queries of this tile
    q_n_tile = tile
    q_n_first = q_n_tile // 64 + q_n_tile % 64 * 512
    q_lane = tl.arange(0, BLOCK_Q)
    q_n = q_n_first + q_lane * 4
    q_token = q_n.to(tl.int64)
    q = q_desc.load([batch, head, q_n_first // 4, q_n_first % 4, 0]).reshape(BLOCK_Q, 128)

    # keys and values
    k_lane = tl.arange(0, BLOCK_K)
    k_lane_n = k_lane * 4

    # online softmax: the largest logit (base 2), the sum of weights and the weighted values so far
    peak = tl.full([BLOCK_Q], LOWEST, tl.float32)
    total = tl.zeros([BLOCK_Q], tl.float32)
    acc = tl.zeros([BLOCK_Q, 128], tl.float32)
    scale_log2 = scale * LOG2E

    # full tiles, one run: nothing to mask
    run_low = tl.load(full_runs + 2 * row)
    run_high = tl.load(full_runs + 2 * row + 1)
    for k_n_first in range(run_low, run_high, 256):
        keys = k_desc.load([batch, head, k_n_first // 4, k_n_first % 4, 0]).reshape(BLOCK_K, 128)
        values = v_desc.load([batch, head, k_n_first // 4, k_n_first % 4, 0]).reshape(BLOCK_K, 128)
        s = tl.dot(q, tl.trans(keys))
        peak, total, acc = softmax_step(s, values, peak, total, acc, scale_log2)

    # partial tiles in order
    for at in range(tl.load(partial_starts + row), tl.load(partial_starts + row + 1)):
        k_n_first = tl.load(partial_tiles + at)
        k_n = k_n_first + k_lane_n
        keys = k_desc.load([batch, head, k_n_first // 4, k_n_first % 4, 0]).reshape(BLOCK_K, 128)
        values = v_desc.load([batch, head, k_n_first // 4, k_n_first % 4, 0]).reshape(BLOCK_K, 128)
        s = tl.dot(q, tl.trans(keys))
        keep = tl.abs(k_n[None, :] - q_n[:, None]) <= 8192
        keep &= q_n[:, None] - k_n[None, :] & 3 == 0
        s = tl.where(keep, s, float("-inf"))
        peak, total, acc = softmax_step(s, values, peak, total, acc, scale_log2)

    acc = acc / total[:, None]
    out = acc.to(out_desc.dtype).reshape(1, 1, 128, 1, 128)
    out_desc.store([batch, head, q_n_first // 4, q_n_first % 4, 0], out)
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
    dilated_forward[(batch * HEADS.value * ROWS.value,)](
        boxes(q, (8192, 4), (128, 1, 128)), boxes(k, (8192, 4), (64, 1, 128)),
        boxes(v, (8192, 4), (64, 1, 128)), boxes(out, (8192, 4), (128, 1, 128)), lse, scale,
        walk["full_runs"], walk["partial_starts"], walk["partial_tiles"], **OPTIONS,
    )  # fmt: skip
    return out, lse
