# Gradients of keys and values for the pattern `natten`, emitted by MaskDSL.
#
#     # Each token sees the 6 x 8 x 8 tokens around it.
#     pattern natten(window: int[3])
#     over (t, h, w)
#     keep neighborhood(t, window[0])
#          and neighborhood(h, window[1])
#          and neighborhood(w, window[2])
#
# problem   24 head(s), 30 x 48 x 81 queries, 30 x 48 x 81 keys, head_dim 128, bfloat16
# tiles     2x4x8 queries by 2x8x8 keys
# pairs     1,584 full, 931,392 partial, 46,111,824 empty tiles
# walk      partial tiles from a list
# proved    32 bits hold every int of the pattern, every query keeps a key
# target    sm_90, 8 warps, 2 stages

import math

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

BLOCK_Q = tl.constexpr(64)  # queries of a tile: 2 t x 4 h x 8 w
BLOCK_K = tl.constexpr(128)  # keys of a tile: 2 t x 8 h x 8 w
COLUMNS = tl.constexpr(990)  # tiles of keys
QUERIES = tl.constexpr(116640)
HEADS = tl.constexpr(24)
LOG2E = tl.constexpr(1.4426950408889634)

# Types of the kernels' pointers and descriptors, and the launch options.
TYPES = {
    "q_desc": "tensordesc<bf16[1, 2, 4, 8, 128]>", "k_desc": "tensordesc<bf16[1, 2, 8, 8, 128]>",
    "v_desc": "tensordesc<bf16[1, 2, 8, 8, 128]>", "do_desc": "tensordesc<bf16[1, 2, 4, 8, 128]>",
    "dk_desc": "tensordesc<bf16[1, 2, 8, 8, 128]>", "dv_desc": "tensordesc<bf16[1, 2, 8, 8, 128]>",
    "lse_ptr": "*fp32", "delta_ptr": "*fp32", "key_rows": "*i32", "key_partial_starts": "*i32",
    "key_partial_tiles": "*i32",
}  # fmt: skip
OPTIONS = {"num_warps": 8, "num_stages": 2}


@triton.jit
def natten_dkv(
    q_desc, k_desc, v_desc, do_desc, dk_desc, dv_desc, lse_ptr, delta_ptr, scale, batch_heads,
    heads_at_once, key_rows, key_partial_starts, key_partial_tiles,
):  # fmt: skip
    # a tile of keys of one head: the longest rows first, for as many heads as the L2 cache holds
    program = tl.program_id(0)
    first_head = program // (COLUMNS * heads_at_once) * heads_at_once
    heads_here = tl.minimum(heads_at_once, batch_heads - first_head)
    row = (program - first_head * COLUMNS) // heads_here
    batch_head = first_head + (program - first_head * COLUMNS) % heads_here
    tile = tl.load(key_rows + row)

    # the keys of this tile
    k_t_first = tile // 66 * 2
    k_h_first = tile // 11 % 6 * 8
    k_w_first = tile % 11 * 8
    k_lane = tl.arange(0, BLOCK_K)
    k_t = k_t_first + k_lane // 64
    k_h = k_h_first + k_lane // 8 % 8
    k_w = k_w_first + k_lane % 8
    keys = k_desc.load([batch_head, k_t_first, k_h_first, k_w_first, 0]).reshape(BLOCK_K, 128)
    values = v_desc.load([batch_head, k_t_first, k_h_first, k_w_first, 0]).reshape(BLOCK_K, 128)

    # queries and gradients of the output
    q_lane = tl.arange(0, BLOCK_Q)
    q_lane_t = q_lane // 32
    q_lane_h = q_lane // 8 % 4
    q_lane_w = q_lane % 8
    lane_token = (q_lane_t * 48 + q_lane_h) * 81 + q_lane_w

    dk = tl.zeros([BLOCK_K, 128], tl.float32)
    dv = tl.zeros([BLOCK_K, 128], tl.float32)
    scale_log2 = scale * LOG2E
    lse_row = lse_ptr + batch_head.to(tl.int64) * QUERIES
    delta_row = delta_ptr + batch_head.to(tl.int64) * QUERIES

    # partial tiles in order
    for at in range(tl.load(key_partial_starts + row), tl.load(key_partial_starts + row + 1)):
        q_first = tl.load(key_partial_tiles + at)
        q_t_first = q_first >> 13
        q_h_first = q_first >> 7 & 63
        q_w_first = q_first & 127
        q_t = q_t_first + q_lane_t
        q_h = q_h_first + q_lane_h
        q_w = q_w_first + q_lane_w
        q_inside = q_w < 81
        token = tl.cast((q_t_first * 48 + q_h_first) * 81 + q_w_first, tl.int64)
        q = q_desc.load([batch_head, q_t_first, q_h_first, q_w_first, 0]).reshape(BLOCK_Q, 128)
        do = do_desc.load([batch_head, q_t_first, q_h_first, q_w_first, 0]).reshape(BLOCK_Q, 128)
        lse = tl.load(lse_row + token + lane_token, mask=q_inside, other=0.0) * LOG2E
        delta = tl.load(delta_row + token + lane_token, mask=q_inside, other=0.0)
        s = tl.dot(keys, tl.trans(q))
        run0 = tl.minimum(tl.maximum(0, q_t - 3), 24)
        run1 = run0 + 5
        run2 = tl.minimum(40, tl.maximum(0, q_h - 4))
        run3 = run2 + 7
        row0 = tl.minimum(73, tl.maximum(q_w - 4, 0))
        row1 = row0 + 7
        keep = run0[None, :] <= k_t[:, None]
        keep &= k_t[:, None] <= run1[None, :]
        keep &= run2[None, :] <= k_h[:, None]
        keep &= k_h[:, None] <= run3[None, :]
        keep &= row0[None, :] <= k_w[:, None]
        keep &= k_w[:, None] <= row1[None, :]
        keep &= q_inside[None, :]
        s = tl.where(keep, s, float("-inf"))
        weights = tl.exp2(s * scale_log2 - lse[None, :])
        dv = tl.dot(weights.to(do.dtype), do, dv)
        dp = tl.dot(values, tl.trans(do))
        ds = weights * (dp - delta[None, :])
        ds = tl.where(keep, ds, 0.0)
        dk = tl.dot(ds.to(q.dtype), q, dk)

    dk = (dk * scale).to(dk_desc.dtype).reshape(1, 2, 8, 8, 128)
    dk_desc.store([batch_head, k_t_first, k_h_first, k_w_first, 0], dk)

    dv = dv.to(dv_desc.dtype).reshape(1, 2, 8, 8, 128)
    dv_desc.store([batch_head, k_t_first, k_h_first, k_w_first, 0], dv)


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
    natten_dkv[(batch * HEADS.value * COLUMNS.value,)](
        boxes(q, (30, 48, 81), (2, 4, 8, 128)), boxes(k, (30, 48, 81), (2, 8, 8, 128)),
        boxes(v, (30, 48, 81), (2, 8, 8, 128)), boxes(do, (30, 48, 81), (2, 4, 8, 128)),
        boxes(dk, (30, 48, 81), (2, 8, 8, 128)), boxes(dv, (30, 48, 81), (2, 8, 8, 128)), lse,
        delta, scale, batch * HEADS.value, heads_at_once, walk["key_rows"],
        walk["key_partial_starts"], walk["key_partial_tiles"], **OPTIONS,
    )  # fmt: skip
    return dk, dv, grads
