# Gradients of keys and values for the pattern `natten3d`, emitted by MaskDSL.
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
COLUMNS = tl.constexpr(2016)  # tiles of keys
QUERIES = tl.constexpr(116640)
HEADS = tl.constexpr(24)
LOG2E = tl.constexpr(1.4426950408889634)

# Types of the kernels' pointers and descriptors, and the launch options.
TYPES = {
    "q_desc": "tensordesc<bf16[1, 4, 4, 4, 128]>", "k_desc": "tensordesc<bf16[1, 4, 4, 4, 128]>",
    "v_desc": "tensordesc<bf16[1, 4, 4, 4, 128]>", "do_desc": "tensordesc<bf16[1, 4, 4, 4, 128]>",
    "dk_desc": "tensordesc<bf16[1, 4, 4, 4, 128]>", "dv_desc": "tensordesc<bf16[1, 4, 4, 4, 128]>",
    "lse_ptr": "*fp32", "delta_ptr": "*fp32", "key_rows": "*i32", "key_full_starts": "*i32",
    "key_full_tiles": "*i32", "key_partial_starts": "*i32", "key_partial_tiles": "*i32",
}  # fmt: skip
OPTIONS = {"num_warps": 8, "num_stages": 2}


@triton.jit
def natten3d_dkv(
    q_desc, k_desc, v_desc, do_desc, dk_desc, dv_desc, lse_ptr, delta_ptr, scale, batch_heads,
    heads_at_once, key_rows, key_full_starts, key_full_tiles, key_partial_starts, key_partial_tiles,
):  # fmt: skip
    # a tile of keys of one head: the longest rows first, for as many heads as the L2 cache holds
    program = tl.program_id(0)
    first_head = program // (COLUMNS * heads_at_once) * heads_at_once
    heads_here = tl.minimum(heads_at_once, batch_heads - first_head)
    row = (program - first_head * COLUMNS) // heads_here
    batch_head = first_head + (program - first_head * COLUMNS) % heads_here
    tile = tl.load(key_rows + row)

    # the keys of this tile
    k_t_first = tile // 252 * 4
    k_y_first = tile // 21 % 12 * 4
    k_x_first = tile % 21 * 4
    k_lane = tl.arange(0, BLOCK_K)
    k_t = k_t_first + k_lane // 16
    k_y = k_y_first + k_lane // 4 % 4
    k_x = k_x_first + k_lane % 4
    keys = k_desc.load([batch_head, k_t_first, k_y_first, k_x_first, 0]).reshape(BLOCK_K, 128)
    values = v_desc.load([batch_head, k_t_first, k_y_first, k_x_first, 0]).reshape(BLOCK_K, 128)

    # queries and gradients of the output
    q_lane = tl.arange(0, BLOCK_Q)
    q_lane_t = q_lane // 16
    q_lane_y = q_lane // 4 % 4
    q_lane_x = q_lane % 4
    lane_token = (q_lane_t * 48 + q_lane_y) * 81 + q_lane_x

    dk = tl.zeros([BLOCK_K, 128], tl.float32)
    dv = tl.zeros([BLOCK_K, 128], tl.float32)
    scale_log2 = scale * LOG2E
    lse_row = lse_ptr + batch_head.to(tl.int64) * QUERIES
    delta_row = delta_ptr + batch_head.to(tl.int64) * QUERIES

    # full tiles in order: nothing to mask
    for at in range(tl.load(key_full_starts + row), tl.load(key_full_starts + row + 1)):
        q_first = tl.load(key_full_tiles + at)
        q_t_first = q_first >> 13
        q_y_first = q_first >> 7 & 63
        q_x_first = q_first & 127
        token = tl.cast((q_t_first * 48 + q_y_first) * 81 + q_x_first, tl.int64)
        q = q_desc.load([batch_head, q_t_first, q_y_first, q_x_first, 0]).reshape(BLOCK_Q, 128)
        do = do_desc.load([batch_head, q_t_first, q_y_first, q_x_first, 0]).reshape(BLOCK_Q, 128)
        lse = tl.load(lse_row + token + lane_token) * LOG2E
        delta = tl.load(delta_row + token + lane_token)
        s = tl.dot(keys, tl.trans(q))
        weights = tl.exp2(s * scale_log2 - lse[None, :])
        dv = tl.dot(weights.to(do.dtype), do, dv)
        dp = tl.dot(values, tl.trans(do))
        ds = weights * (dp - delta[None, :])
        dk = tl.dot(ds.to(q.dtype), q, dk)

    # partial tiles in order
    for at in range(tl.load(key_partial_starts + row), tl.load(key_partial_starts + row + 1)):
        q_first = tl.load(key_partial_tiles + at)
        q_t_first = q_first >> 13
        q_y_first = q_first >> 7 & 63
        q_x_first = q_first & 127
        q_t = q_t_first + q_lane_t
        q_y = q_y_first + q_lane_y
        q_x = q_x_first + q_lane_x
        q_inside = (q_t < 30) & (q_x < 81)
        token = tl.cast((q_t_first * 48 + q_y_first) * 81 + q_x_first, tl.int64)
        q = q_desc.load([batch_head, q_t_first, q_y_first, q_x_first, 0]).reshape(BLOCK_Q, 128)
        do = do_desc.load([batch_head, q_t_first, q_y_first, q_x_first, 0]).reshape(BLOCK_Q, 128)
        lse = tl.load(lse_row + token + lane_token, mask=q_inside, other=0.0) * LOG2E
        delta = tl.load(delta_row + token + lane_token, mask=q_inside, other=0.0)
        s = tl.dot(keys, tl.trans(q))
        run0 = tl.minimum(tl.maximum(0, q_t - 3), 24)
        run1 = run0 + 5
        run2 = tl.minimum(40, tl.maximum(q_y - 4, 0))
        run3 = run2 + 7
        row0 = tl.minimum(73, tl.maximum(0, q_x - 4))
        row1 = row0 + 7
        keep = run0[None, :] <= k_t[:, None]
        keep &= k_t[:, None] <= run1[None, :]
        keep &= run2[None, :] <= k_y[:, None]
        keep &= k_y[:, None] <= run3[None, :]
        keep &= row0[None, :] <= k_x[:, None]
        keep &= k_x[:, None] <= row1[None, :]
        keep &= q_inside[None, :]
        s = tl.where(keep, s, float("-inf"))
        weights = tl.exp2(s * scale_log2 - lse[None, :])
        dv = tl.dot(weights.to(do.dtype), do, dv)
        dp = tl.dot(values, tl.trans(do))
        ds = weights * (dp - delta[None, :])
        ds = tl.where(keep, ds, 0.0)
        dk = tl.dot(ds.to(q.dtype), q, dk)

    dk = (dk * scale).to(dk_desc.dtype).reshape(1, 4, 4, 4, 128)
    dk_desc.store([batch_head, k_t_first, k_y_first, k_x_first, 0], dk)

    dv = dv.to(dv_desc.dtype).reshape(1, 4, 4, 4, 128)
    dv_desc.store([batch_head, k_t_first, k_y_first, k_x_first, 0], dv)


def boxes(x, extents, box):
    """A descriptor of x, (batch, heads, tokens, dim), whose tokens fill `extents` row by row."""
    batch, heads, _, dim = x.shape
    steps = [x.stride(2) * math.prod(extents[i + 1 :]) for i in range(len(extents))]
    shape, strides = (batch * heads, *extents, dim), (x.stride(1), *steps, 1)
    return TensorDescriptor(x, [*shape], [*strides], [1, *box])


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
    # as many heads at once as have what they walk in the L2 cache
    head_bytes = 116640 * 256 * k.element_size()
    heads_at_once = min(batch * HEADS.value, max(1, 33554432 // head_bytes))
    natten3d_dkv[(batch * HEADS.value * COLUMNS.value,)](
        boxes(q, (30, 48, 81), (4, 4, 4, 128)), boxes(k, (30, 48, 81), (4, 4, 4, 128)),
        boxes(v, (30, 48, 81), (4, 4, 4, 128)), boxes(do, (30, 48, 81), (4, 4, 4, 128)),
        boxes(dk, (30, 48, 81), (4, 4, 4, 128)), boxes(dv, (30, 48, 81), (4, 4, 4, 128)), lse,
        delta, scale, batch * HEADS.value, heads_at_once, walk["key_rows"], walk["key_full_starts"],
        walk["key_full_tiles"], walk["key_partial_starts"], walk["key_partial_tiles"], **OPTIONS,
    )  # fmt: skip
    return dk, dv, grads
