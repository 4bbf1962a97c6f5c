# Gradients of queries for the pattern `swin`, emitted by MaskDSL.
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
# tiles     8x8 origin 4,4 queries by 8x16 origin 4,4 keys
# pairs     132 full, 4,224 partial, 2,439,360 empty tiles
# walk      partial tiles in one run a row
# proved    32 bits hold every int of the pattern, every query keeps a key
# target    sm_90, 8 warps, 2 stages

import math

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

BLOCK_Q = tl.constexpr(64)  # queries of a tile: 8 y x 8 x
BLOCK_K = tl.constexpr(128)  # keys of a tile: 8 y x 16 x
ROWS = tl.constexpr(1089)  # tiles of queries
QUERIES = tl.constexpr(65536)
HEADS = tl.constexpr(4)
LOG2E = tl.constexpr(1.4426950408889634)

# Types of the kernels' pointers and descriptors, and the launch options.
TYPES = {
    "q_desc": "tensordesc<bf16[1, 1, 8, 8, 32]>", "k_desc": "tensordesc<bf16[1, 1, 8, 16, 32]>",
    "v_desc": "tensordesc<bf16[1, 1, 8, 16, 32]>", "out_desc": "tensordesc<bf16[1, 1, 8, 8, 32]>",
    "do_desc": "tensordesc<bf16[1, 1, 8, 8, 32]>", "dq_desc": "tensordesc<bf16[1, 1, 8, 8, 32]>",
    "lse_ptr": "*fp32", "grad_lse_ptr": "*fp32", "delta_ptr": "*fp32", "partial_runs": "*i32",
}  # fmt: skip
OPTIONS = {"num_warps": 8, "num_stages": 2}


@triton.jit
def swin_dq(
    q_desc, k_desc, v_desc, out_desc, do_desc, dq_desc, lse_ptr, grad_lse_ptr, delta_ptr, scale,
    partial_runs,
):  # fmt: skip
    # a tile of queries of one head: one head after the other
    program = tl.program_id(0)
    row = program % ROWS
    batch_head = program // ROWS
    batch = batch_head // HEADS
    head = batch_head % HEADS
    tile = row

    # the queries of this tile
    q_y_first = tile // 33 * 8 - 4
    q_x_first = tile % 33 * 8 - 4
    q_lane = tl.arange(0, BLOCK_Q)
    q_y = q_y_first + q_lane // 8
    q_x = q_x_first + q_lane % 8
    q_inside = (q_y >= 0) & (q_y < 256) & (q_x >= 0) & (q_x < 256)
    q_token = (q_y * 256 + q_x).to(tl.int64)
    q = q_desc.load([batch, head, q_y_first, q_x_first, 0]).reshape(BLOCK_Q, 32)
    do = do_desc.load([batch, head, q_y_first, q_x_first, 0]).reshape(BLOCK_Q, 32)
    out = out_desc.load([batch, head, q_y_first, q_x_first, 0]).reshape(BLOCK_Q, 32)

    # what the pattern needs to know of each query
    row0 = (q_y + 4) // 8
    row1 = (q_x + 4) // 8

    # of each query: its log-sum-exp (base 2), and what the softmax takes from all its gradients
    lse_row = batch_head.to(tl.int64) * QUERIES + q_token
    lse = tl.load(lse_ptr + lse_row, mask=q_inside, other=0.0) * LOG2E
    delta = tl.sum(do.to(tl.float32) * out.to(tl.float32), 1)
    delta -= tl.load(grad_lse_ptr + lse_row, mask=q_inside, other=0.0)
    tl.store(delta_ptr + lse_row, delta, mask=q_inside)

    # keys and values
    k_lane = tl.arange(0, BLOCK_K)
    k_lane_y = k_lane // 16
    k_lane_x = k_lane % 16

    dq = tl.zeros([BLOCK_Q, 32], tl.float32)
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
        weights = tl.exp2(s * scale_log2 - lse[:, None])
        dp = tl.dot(do, tl.trans(values))
        ds = weights * (dp - delta[:, None])
        ds = tl.where(keep, ds, 0.0)
        dq = tl.dot(ds.to(keys.dtype), keys, dq)

    dq = (dq * scale).to(dq_desc.dtype).reshape(1, 1, 8, 8, 32)
    dq_desc.store([batch, head, q_y_first, q_x_first, 0], dq)


def boxes(x, extents, box):
    """A descriptor of x, (batch, heads, tokens, dim), whose tokens fill `extents` row by row."""
    batch, heads, _, dim = x.shape
    steps = [x.stride(2) * math.prod(extents[i + 1 :]) for i in range(len(extents))]
    shape, strides = (batch, heads, *extents, dim), (x.stride(0), x.stride(1), *steps, 1)
    return TensorDescriptor(x, [*shape], [*strides], [1, 1, *box])


def gradients(q, k, v, out, do, lse, grad_lse, scale, walk, inputs):
    """Of attention by q, given those by its output, `do`, and by its log-sum-exp, `grad_lse`.

    q, k, v, out, do: (batch, heads, tokens, dim) aligned to 16 bytes. lse, grad_lse:
    float32 (batch, heads, queries). walk: int tensors by name. inputs: the
    pattern's, by name.
    Gives dq like q; delta, float32 (batch, heads, queries), the sum of do * out over each row, less
    grad_lse; and gradients of inputs by name, float32.
    """
    batch = q.shape[0]
    dq, delta = torch.empty_like(q), torch.empty_like(lse)
    grads = {}

    if batch == 0:
        return dq, delta, grads
    swin_dq[(batch * HEADS.value * ROWS.value,)](
        boxes(q, (256, 256), (8, 8, 32)), boxes(k, (256, 256), (8, 16, 32)),
        boxes(v, (256, 256), (8, 16, 32)), boxes(out, (256, 256), (8, 8, 32)),
        boxes(do, (256, 256), (8, 8, 32)), boxes(dq, (256, 256), (8, 8, 32)), lse, grad_lse, delta,
        scale, walk["partial_runs"], **OPTIONS,
    )  # fmt: skip
    return dq, delta, grads
