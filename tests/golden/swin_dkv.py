# Gradients of keys and values for the pattern `swin`, emitted by MaskDSL.
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
COLUMNS = tl.constexpr(561)  # tiles of keys
QUERIES = tl.constexpr(65536)
HEADS = tl.constexpr(4)
LOG2E = tl.constexpr(1.4426950408889634)

# Types of the kernels' pointers and descriptors, and the launch options.
TYPES = {
    "q_desc": "tensordesc<bf16[1, 1, 8, 8, 32]>", "k_desc": "tensordesc<bf16[1, 1, 8, 16, 32]>",
    "v_desc": "tensordesc<bf16[1, 1, 8, 16, 32]>", "do_desc": "tensordesc<bf16[1, 1, 8, 8, 32]>",
    "dk_desc": "tensordesc<bf16[1, 1, 8, 16, 32]>", "dv_desc": "tensordesc<bf16[1, 1, 8, 16, 32]>",
    "lse_ptr": "*fp32", "delta_ptr": "*fp32", "key_partial_runs": "*i32",
}  # fmt: skip
OPTIONS = {"num_warps": 8, "num_stages": 2}


@triton.jit
def swin_dkv(
    q_desc, k_desc, v_desc, do_desc, dk_desc, dv_desc, lse_ptr, delta_ptr, scale, key_partial_runs,
):  # fmt: skip
    # a tile of keys of one head: one head after the other
    program = tl.program_id(0)
    row = program % COLUMNS
    batch_head = program // COLUMNS
    batch = batch_head // HEADS
    head = batch_head % HEADS
    tile = row

    # the keys of this tile
    k_y_first = tile // 17 * 8 - 4
    k_x_first = tile % 17 * 16 - 12
    k_lane = tl.arange(0, BLOCK_K)
    k_y = k_y_first + k_lane // 16
    k_x = k_x_first + k_lane % 16
    keys = k_desc.load([batch, head, k_y_first, k_x_first, 0]).reshape(BLOCK_K, 32)
    values = v_desc.load([batch, head, k_y_first, k_x_first, 0]).reshape(BLOCK_K, 32)

    # what the pattern needs to know of each key
    key0 = (k_y + 4) // 8
    key1 = (k_x + 4) // 8

    # queries and gradients of the output
    q_lane = tl.arange(0, BLOCK_Q)
    q_lane_y = q_lane // 8
    q_lane_x = q_lane % 8
    lane_token = q_lane_y * 256 + q_lane_x

    dk = tl.zeros([BLOCK_K, 32], tl.float32)
    dv = tl.zeros([BLOCK_K, 32], tl.float32)
    scale_log2 = scale * LOG2E
    lse_row = lse_ptr + batch_head.to(tl.int64) * QUERIES
    delta_row = delta_ptr + batch_head.to(tl.int64) * QUERIES

    # partial tiles, one run
    q_y_first = (tl.load(key_partial_runs + 3 * row)) - 4
    run_low = tl.load(key_partial_runs + 3 * row + 1)
    run_high = tl.load(key_partial_runs + 3 * row + 2)
    q_y = q_y_first + q_lane_y
    run_inside = (q_y >= 0) & (q_y < 256)
    run0 = (q_y + 4) // 8
    for q_x_first in range(run_low, run_high, 8):
        q_x = q_x_first + q_lane_x
        q_inside = run_inside & ((q_x >= 0) & (q_x < 256))
        token = tl.cast(q_y_first * 256 + q_x_first, tl.int64)
        q = q_desc.load([batch, head, q_y_first, q_x_first, 0]).reshape(BLOCK_Q, 32)
        do = do_desc.load([batch, head, q_y_first, q_x_first, 0]).reshape(BLOCK_Q, 32)
        lse = tl.load(lse_row + token + lane_token, mask=q_inside, other=0.0) * LOG2E
        delta = tl.load(delta_row + token + lane_token, mask=q_inside, other=0.0)
        s = tl.dot(keys, tl.trans(q))
        row0 = (q_x + 4) // 8
        keep = (run0[None, :] == key0[:, None]) & (key1[:, None] == row0[None, :])
        keep &= q_inside[None, :]
        s = tl.where(keep, s, float("-inf"))
        weights = tl.exp2(s * scale_log2 - lse[None, :])
        dv = tl.dot(weights.to(do.dtype), do, dv)
        dp = tl.dot(values, tl.trans(do))
        ds = weights * (dp - delta[None, :])
        ds = tl.where(keep, ds, 0.0)
        dk = tl.dot(ds.to(q.dtype), q, dk)

    dk = (dk * scale).to(dk_desc.dtype).reshape(1, 1, 8, 16, 32)
    dk_desc.store([batch, head, k_y_first, k_x_first, 0], dk)

    dv = dv.to(dv_desc.dtype).reshape(1, 1, 8, 16, 32)
    dv_desc.store([batch, head, k_y_first, k_x_first, 0], dv)


def boxes(x, extents, box):
    """A descriptor of x, (batch, heads, tokens, dim), whose tokens fill `extents` row by row."""
    batch, heads, _, dim = x.shape
    steps = [x.stride(2) * math.prod(extents[i + 1 :]) for i in range(len(extents))]
    shape, strides = (batch, heads, *extents, dim), (x.stride(0), x.stride(1), *steps, 1)
    return TensorDescriptor(x, [*shape], [*strides], [1, 1, *box])


def gradients(q, k, v, do, lse, delta, scale, walk, inputs):
    """Of attention by k and v, given that by its output, `do`.

    q, k, v, do: (batch, heads, tokens, dim) aligned to 16 bytes. lse, delta: float32 (batch, heads,
    queries), `delta` as the gradients by q leave it. walk: int tensors by name.
    inputs: the pattern's, by name. Gives dk and dv like k and v, and gradients of inputs by name,
    float32.
    """
    batch = q.shape[0]
    dk, dv = torch.empty_like(k), torch.empty_like(v)
    grads = {}

    if batch == 0:
        return dk, dv, grads
    swin_dkv[(batch * HEADS.value * COLUMNS.value,)](
        boxes(q, (256, 256), (8, 8, 32)), boxes(k, (256, 256), (8, 16, 32)),
        boxes(v, (256, 256), (8, 16, 32)), boxes(do, (256, 256), (8, 8, 32)),
        boxes(dk, (256, 256), (8, 16, 32)), boxes(dv, (256, 256), (8, 16, 32)), lse, delta, scale,
        walk["key_partial_runs"], **OPTIONS,
    )  # fmt: skip
    return dk, dv, grads
