# Forward attention for the pattern `swin`, emitted by MaskDSL.
#
#     # Windows of `size` along one axis, moved on by `shift`; nothing wraps. A window that covers
#     # the axis is not moved.
#     def shifted_window(a: axis, size: int, shift: int)
#     let s = if size < a.size then shift else 0
#     return (q.a - s) // size == (k.a - s) // size
#
#     # Swin (arXiv 2103.14030): windows after a shift of 0 .. window - 1. The repository rolls the
#     # image and then forbids pairs of different regions, which leaves this: the windows at the
#     # ends are cut off, and none joins the two ends. Extents need not be multiples: the last
#     # window is short (the detection code and torchvision pad, with tokens that are seen).
#     pattern swin(window: int[2], shift: int[2])
#     over (y, x)
#     keep shifted_window(y, window[0], shift[0]) and shifted_window(x, window[1], shift[1])
#
# problem   4 head(s), 256 x 256 queries, 256 x 256 keys, head_dim 32, bfloat16
# tiles     8x16 origin 4,4 queries by 8x16 origin 4,4 keys
# pairs     132 full, 2,112 partial, 1,256,640 empty tiles
# walk      partial tiles in one run a row
# proved    32 bits hold every int of the pattern, every query keeps a key
# target    sm_90, 8 warps, 3 stages

import math

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

BLOCK_Q = tl.constexpr(128)  # queries of a tile: 8 y x 16 x
BLOCK_K = tl.constexpr(128)  # keys of a tile: 8 y x 16 x
ROWS = tl.constexpr(561)  # tiles of queries
QUERIES = tl.constexpr(65536)
HEADS = tl.constexpr(4)
LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
LOWEST = tl.constexpr(-3.4028234663852886e38)  # of float32: no logit lies lower, and it is finite

# Types of the kernels' pointers and descriptors, and the launch options.
TYPES = {
    "q_desc": "tensordesc<bf16[1, 1, 8, 16, 32]>", "k_desc": "tensordesc<bf16[1, 1, 8, 16, 32]>",
    "v_desc": "tensordesc<bf16[1, 1, 8, 16, 32]>", "out_desc": "tensordesc<bf16[1, 1, 8, 16, 32]>",
    "lse_ptr": "*fp32", "partial_runs": "*i32",
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
def swin_forward(
    q_desc, k_desc, v_desc, out_desc, lse_ptr, scale, partial_runs,
):  # fmt: skip
    # a tile of queries of one head: one head after the other
    program = tl.program_id(0)
    row = program % ROWS
    batch_head = program // ROWS
    batch = batch_head // HEADS
    head = batch_head % HEADS
    tile = row

    # the queries of this tile
    q_y_first = tile // 17 * 8 - 4
    q_x_first = tile % 17 * 16 - 12
    q_lane = tl.arange(0, BLOCK_Q)
    q_y = q_y_first + q_lane // 16
    q_x = q_x_first + q_lane % 16
    q_inside = (q_y >= 0) & (q_y < 256) & (q_x >= 0) & (q_x < 256)
    q_token = (q_y * 256 + q_x).to(tl.int64)
    q = q_desc.load([batch, head, q_y_first, q_x_first, 0]).reshape(BLOCK_Q, 32)

    # what the pattern needs to know of each query
    row0 = (q_y + 4) // 8
    row1 = (q_x + 4) // 8

    # keys and values
    k_lane = tl.arange(0, BLOCK_K)
    k_lane_y = k_lane // 16
    k_lane_x = k_lane % 16

    # online softmax: the largest logit (base 2), the sum of weights and the weighted values so far
    peak = tl.full([BLOCK_Q], LOWEST, tl.float32)
    total = tl.zeros([BLOCK_Q], tl.float32)
    acc = tl.zeros([BLOCK_Q, 32], tl.float32)
    scale_log2 = scale * LOG2E

    # partial tiles, one run
    k_y_first = (tl.load(partial_runs + 3 * row)) - 4
    run_low = tl.load(partial_runs + 3 * row + 1)
    run_high = tl.load(partial_runs + 3 * row + 2)
    k_y = k_y_first + k_lane_y
    run_inside = (k_y >= 0) & (k_y < 256)
    run0 = (k_y + 4) // 8
    for k_x_first in range(run_low, run_high, 16):
        k_x = k_x_first + k_lane_x
        k_inside = run_inside & ((k_x >= 0) & (k_x < 256))
        keys = k_desc.load([batch, head, k_y_first, k_x_first, 0]).reshape(BLOCK_K, 32)
        values = v_desc.load([batch, head, k_y_first, k_x_first, 0]).reshape(BLOCK_K, 32)
        s = tl.dot(q, tl.trans(keys))
        key0 = (k_x + 4) // 8
        keep = (row0[:, None] == run0[None, :]) & (key0[None, :] == row1[:, None])
        keep &= k_inside[None, :]
        s = tl.where(keep, s, float("-inf"))
        peak, total, acc = softmax_step(s, values, peak, total, acc, scale_log2)

    acc = acc / total[:, None]
    out = acc.to(out_desc.dtype).reshape(1, 1, 8, 16, 32)
    out_desc.store([batch, head, q_y_first, q_x_first, 0], out)
    lse = (peak + tl.log2(total)) * LN2
    lse_row = lse_ptr + batch_head.to(tl.int64) * QUERIES
    tl.store(lse_row + q_token, lse, mask=q_inside)


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
    out = q.new_empty([*(shape[i] for i in order), 32])
    out = out.permute(*(order.index(i) for i in range(3)), 3)
    lse = q.new_empty(shape, dtype=torch.float32)
    if batch == 0:
        return out, lse
    swin_forward[(batch * HEADS.value * ROWS.value,)](
        boxes(q, (256, 256), (8, 16, 32)), boxes(k, (256, 256), (8, 16, 32)),
        boxes(v, (256, 256), (8, 16, 32)), boxes(out, (256, 256), (8, 16, 32)), lse, scale,
        walk["partial_runs"], **OPTIONS,
    )  # fmt: skip
    return out, lse
