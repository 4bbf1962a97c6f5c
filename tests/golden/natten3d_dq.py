# Gradients of queries for the pattern `natten3d`, emitted by MaskDSL.
#
#     # NATTEN's neighborhood attention over a video (Generalized Neighborhood Attention,
#     # github.com/SHI-Labs/NATTEN). At the ends a window shifts inwards, so that every query sees
#     # the same number of keys.
#     pattern natten3d(window: int[3], stride: int[3], dilation: int[3], causal: bool[3])
#     over (t, y, x)
#     keep neighborhood(t, window[0], stride[0], dilation[0], causal[0])
#         and neighborhood(y, window[1], stride[1], dilation[1], causal[1])
#         and neighborhood(x, window[2], stride[2], dilation[2], causal[2])
#
# problem   24 head(s), 30 x 48 x 81 queries, 30 x 48 x 81 keys, head_dim 128, bfloat16
# tiles     4x4x4 queries by 4x4x4 keys
# pairs     23,184 full, 1,089,840 partial, 96,429,120 empty tiles
# walk      full and partial tiles from a list
# proved    32 bits hold every int of the pattern, every query keeps a key
# target    sm_90, 8 warps, 2 stages

import math

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

BLOCK_Q = tl.constexpr(64)  # queries of a tile: 4 t x 4 y x 4 x
BLOCK_K = tl.constexpr(64)  # keys of a tile: 4 t x 4 y x 4 x
ROWS = tl.constexpr(2016)  # tiles of queries
QUERIES = tl.constexpr(116640)
HEADS = tl.constexpr(24)
LOG2E = tl.constexpr(1.4426950408889634)

# Types of the kernels' pointers and descriptors, and the launch options.
TYPES = {
    "q_desc": "tensordesc<bf16[1, 4, 4, 4, 128]>", "k_desc": "tensordesc<bf16[1, 4, 4, 4, 128]>",
    "v_desc": "tensordesc<bf16[1, 4, 4, 4, 128]>", "out_desc": "tensordesc<bf16[1, 4, 4, 4, 128]>",
    "do_desc": "tensordesc<bf16[1, 4, 4, 4, 128]>", "dq_desc": "tensordesc<bf16[1, 4, 4, 4, 128]>",
    "lse_ptr": "*fp32", "grad_lse_ptr": "*fp32", "delta_ptr": "*fp32", "full_starts": "*i32",
    "full_tiles": "*i32", "partial_starts": "*i32", "partial_tiles": "*i32",
}  # fmt: skip
OPTIONS = {"num_warps": 8, "num_stages": 2}


@triton.jit
def natten3d_dq(
    q_desc, k_desc, v_desc, out_desc, do_desc, dq_desc, lse_ptr, grad_lse_ptr, delta_ptr, scale,
    full_starts, full_tiles, partial_starts, partial_tiles,
):  # fmt: skip
    # a tile of queries of one head: one head after the other
    program = tl.program_id(0)
    row = program % ROWS
    batch_head = program // ROWS
    tile = row

    # the queries of this tile
    q_t_first = tile // 252 * 4
    q_y_first = tile // 21 % 12 * 4
    q_x_first = tile % 21 * 4
    q_lane = tl.arange(0, BLOCK_Q)
    q_t = q_t_first + q_lane // 16
    q_y = q_y_first + q_lane // 4 % 4
    q_x = q_x_first + q_lane % 4
    q_inside = (q_t < 30) & (q_x < 81)
    q_token = ((q_t * 48 + q_y) * 81 + q_x).to(tl.int64)
    q = q_desc.load([batch_head, q_t_first, q_y_first, q_x_first, 0]).reshape(BLOCK_Q, 128)
    do = do_desc.load([batch_head, q_t_first, q_y_first, q_x_first, 0]).reshape(BLOCK_Q, 128)
    out = out_desc.load([batch_head, q_t_first, q_y_first, q_x_first, 0]).reshape(BLOCK_Q, 128)

    # what the pattern needs to know of each query
    row0 = tl.minimum(tl.maximum(0, q_t - 3), 24)
    row1 = row0 + 5
    row2 = tl.minimum(40, tl.maximum(q_y - 4, 0))
    row3 = row2 + 7
    row4 = tl.minimum(73, tl.maximum(0, q_x - 4))
    row5 = row4 + 7

    # of each query: its log-sum-exp (base 2), and what the softmax takes from all its gradients
    lse_row = batch_head.to(tl.int64) * QUERIES + q_token
    lse = tl.load(lse_ptr + lse_row, mask=q_inside, other=0.0) * LOG2E
    delta = tl.sum(do.to(tl.float32) * out.to(tl.float32), 1)
    delta -= tl.load(grad_lse_ptr + lse_row, mask=q_inside, other=0.0)
    tl.store(delta_ptr + lse_row, delta, mask=q_inside)

    # keys and values
    k_lane = tl.arange(0, BLOCK_K)
    k_lane_t = k_lane // 16
    k_lane_y = k_lane // 4 % 4
    k_lane_x = k_lane % 4

    dq = tl.zeros([BLOCK_Q, 128], tl.float32)
    scale_log2 = scale * LOG2E

    # full tiles in order: nothing to mask
    for at in range(tl.load(full_starts + row), tl.load(full_starts + row + 1)):
        k_first = tl.load(full_tiles + at)
        k_t_first = k_first >> 13
        k_y_first = k_first >> 7 & 63
        k_x_first = k_first & 127
        keys = k_desc.load([batch_head, k_t_first, k_y_first, k_x_first, 0]).reshape(BLOCK_K, 128)
        values = v_desc.load([batch_head, k_t_first, k_y_first, k_x_first, 0]).reshape(BLOCK_K, 128)
        s = tl.dot(q, tl.trans(keys))
        weights = tl.exp2(s * scale_log2 - lse[:, None])
        dp = tl.dot(do, tl.trans(values))
        ds = weights * (dp - delta[:, None])
        dq = tl.dot(ds.to(keys.dtype), keys, dq)

    # partial tiles in order
    for at in range(tl.load(partial_starts + row), tl.load(partial_starts + row + 1)):
        k_first = tl.load(partial_tiles + at)
        k_t_first = k_first >> 13
        k_y_first = k_first >> 7 & 63
        k_x_first = k_first & 127
        k_t = k_t_first + k_lane_t
        k_y = k_y_first + k_lane_y
        k_x = k_x_first + k_lane_x
        keys = k_desc.load([batch_head, k_t_first, k_y_first, k_x_first, 0]).reshape(BLOCK_K, 128)
        values = v_desc.load([batch_head, k_t_first, k_y_first, k_x_first, 0]).reshape(BLOCK_K, 128)
        s = tl.dot(q, tl.trans(keys))
        keep = row0[:, None] <= k_t[None, :]
        keep &= k_t[None, :] <= row1[:, None]
        keep &= row2[:, None] <= k_y[None, :]
        keep &= k_y[None, :] <= row3[:, None]
        keep &= row4[:, None] <= k_x[None, :]
        keep &= k_x[None, :] <= row5[:, None]
        s = tl.where(keep, s, float("-inf"))
        weights = tl.exp2(s * scale_log2 - lse[:, None])
        dp = tl.dot(do, tl.trans(values))
        ds = weights * (dp - delta[:, None])
        ds = tl.where(keep, ds, 0.0)
        dq = tl.dot(ds.to(keys.dtype), keys, dq)

    dq = (dq * scale).to(dq_desc.dtype).reshape(1, 4, 4, 4, 128)
    dq_desc.store([batch_head, q_t_first, q_y_first, q_x_first, 0], dq)


def boxes(x, extents, box):
    """A descriptor of x, (batch, heads, tokens, dim), whose tokens fill `extents` row by row."""
    batch, heads, _, dim = x.shape
    steps = [x.stride(2) * math.prod(extents[i + 1 :]) for i in range(len(extents))]
    shape, strides = (batch * heads, *extents, dim), (x.stride(1), *steps, 1)
    return TensorDescriptor(x, [*shape], [*strides], [1, *box])


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
    natten3d_dq[(batch * HEADS.value * ROWS.value,)](
        boxes(q, (30, 48, 81), (4, 4, 4, 128)), boxes(k, (30, 48, 81), (4, 4, 4, 128)),
        boxes(v, (30, 48, 81), (4, 4, 4, 128)), boxes(out, (30, 48, 81), (4, 4, 4, 128)),
        boxes(do, (30, 48, 81), (4, 4, 4, 128)), boxes(dq, (30, 48, 81), (4, 4, 4, 128)), lse,
        grad_lse, delta, scale, walk["full_starts"], walk["full_tiles"], walk["partial_starts"],
        walk["partial_tiles"], **OPTIONS,
    )  # fmt: skip
    return dq, delta, grads
