# Gradients of queries for the pattern `natten`, emitted by MaskDSL.
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
ROWS = tl.constexpr(1980)  # tiles of queries
QUERIES = tl.constexpr(116640)
HEADS = tl.constexpr(24)
LOG2E = tl.constexpr(1.4426950408889634)

# Types of the kernels' pointers and descriptors, and the launch options.
TYPES = {
    "q_desc": "tensordesc<bf16[1, 2, 4, 8, 128]>", "k_desc": "tensordesc<bf16[1, 2, 8, 8, 128]>",
    "v_desc": "tensordesc<bf16[1, 2, 8, 8, 128]>", "out_desc": "tensordesc<bf16[1, 2, 4, 8, 128]>",
    "do_desc": "tensordesc<bf16[1, 2, 4, 8, 128]>", "dq_desc": "tensordesc<bf16[1, 2, 4, 8, 128]>",
    "lse_ptr": "*fp32", "grad_lse_ptr": "*fp32", "delta_ptr": "*fp32", "partial_starts": "*i32",
    "partial_tiles": "*i32",
}  # fmt: skip
OPTIONS = {"num_warps": 8, "num_stages": 2}


@triton.jit
def natten_dq(
    q_desc, k_desc, v_desc, out_desc, do_desc, dq_desc, lse_ptr, grad_lse_ptr, delta_ptr, scale,
    partial_starts, partial_tiles,
):  # fmt: skip
    # a tile of queries of one head: one head after the other
    program = tl.program_id(0)
    row = program % ROWS
    batch_head = program // ROWS
    tile = row

    # the queries of this tile
    q_t_first = tile // 132 * 2
    q_h_first = tile // 11 % 12 * 4
    q_w_first = tile % 11 * 8
    q_lane = tl.arange(0, BLOCK_Q)
    q_t = q_t_first + q_lane // 32
    q_h = q_h_first + q_lane // 8 % 4
    q_w = q_w_first + q_lane % 8
    q_inside = q_w < 81
    q_token = ((q_t * 48 + q_h) * 81 + q_w).to(tl.int64)
    q = q_desc.load([batch_head, q_t_first, q_h_first, q_w_first, 0]).reshape(BLOCK_Q, 128)
    do = do_desc.load([batch_head, q_t_first, q_h_first, q_w_first, 0]).reshape(BLOCK_Q, 128)
    out = out_desc.load([batch_head, q_t_first, q_h_first, q_w_first, 0]).reshape(BLOCK_Q, 128)

    # what the pattern needs to know of each query
    row0 = tl.minimum(tl.maximum(0, q_t - 3), 24)
    row1 = row0 + 5
    row2 = tl.minimum(40, tl.maximum(0, q_h - 4))
    row3 = row2 + 7
    row4 = tl.minimum(73, tl.maximum(q_w - 4, 0))
    row5 = row4 + 7

    # of each query: its log-sum-exp (base 2), and what the softmax takes from all its gradients
    lse_row = batch_head.to(tl.int64) * QUERIES + q_token
    lse = tl.load(lse_ptr + lse_row, mask=q_inside, other=0.0) * LOG2E
    delta = tl.sum(do.to(tl.float32) * out.to(tl.float32), 1)
    delta -= tl.load(grad_lse_ptr + lse_row, mask=q_inside, other=0.0)
    tl.store(delta_ptr + lse_row, delta, mask=q_inside)

    # keys and values
    k_lane = tl.arange(0, BLOCK_K)
    k_lane_t = k_lane // 64
    k_lane_h = k_lane // 8 % 8
    k_lane_w = k_lane % 8

    dq = tl.zeros([BLOCK_Q, 128], tl.float32)
    scale_log2 = scale * LOG2E

    # partial tiles in order
    for at in range(tl.load(partial_starts + row), tl.load(partial_starts + row + 1)):
        k_first = tl.load(partial_tiles + at)
        k_t_first = k_first >> 13
        k_h_first = k_first >> 7 & 63
        k_w_first = k_first & 127
        k_t = k_t_first + k_lane_t
        k_h = k_h_first + k_lane_h
        k_w = k_w_first + k_lane_w
        keys = k_desc.load([batch_head, k_t_first, k_h_first, k_w_first, 0]).reshape(BLOCK_K, 128)
        values = v_desc.load([batch_head, k_t_first, k_h_first, k_w_first, 0]).reshape(BLOCK_K, 128)
        s = tl.dot(q, tl.trans(keys))
        keep = row0[:, None] <= k_t[None, :]
        keep &= k_t[None, :] <= row1[:, None]
        keep &= row2[:, None] <= k_h[None, :]
        keep &= k_h[None, :] <= row3[:, None]
        keep &= row4[:, None] <= k_w[None, :]
        keep &= k_w[None, :] <= row5[:, None]
        s = tl.where(keep, s, float("-inf"))
        weights = tl.exp2(s * scale_log2 - lse[:, None])
        dp = tl.dot(do, tl.trans(values))
        ds = weights * (dp - delta[:, None])
        ds = tl.where(keep, ds, 0.0)
        dq = tl.dot(ds.to(keys.dtype), keys, dq)

    dq = (dq * scale).to(dq_desc.dtype).reshape(1, 2, 4, 8, 128)
    dq_desc.store([batch_head, q_t_first, q_h_first, q_w_first, 0], dq)


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
    natten_dq[(batch * HEADS.value * ROWS.value,)](
        boxes(q, (30, 48, 81), (2, 4, 8, 128)), boxes(k, (30, 48, 81), (2, 8, 8, 128)),
        boxes(v, (30, 48, 81), (2, 8, 8, 128)), boxes(out, (30, 48, 81), (2, 4, 8, 128)),
        boxes(do, (30, 48, 81), (2, 4, 8, 128)), boxes(dq, (30, 48, 81), (2, 4, 8, 128)), lse,
        grad_lse, delta, scale, walk["partial_starts"], walk["partial_tiles"], **OPTIONS,
    )  # fmt: skip
    return dq, delta, grads
