# Gradients of keys and values for the pattern `radial`, emitted by MaskDSL.
#
#     # Video attention that thins out as frames grow apart, after the Radial Attention code (arXiv
#     # 2506.19852, github.com/mit-han-lab/radial-attention). Windows inside a frame are cut off at
#     # its ends. The published masks are this one coarsened to blocks of 128 tokens by a vote.
#     pattern radial(decay: float = 1.0, anchor: bool = true)
#     over (t, s)  # frame, token inside the frame
#     let gap = abs(q.t - k.t)
#     let share = 2 ** bit_length(s.size) / 2 ** bit_length(gap)
#     let reach = if gap <= 1 then s.size else max(share * decay, 128)
#     let every = if share >= 128 then 1 else int(128 / share)
#     keep abs(q.s - k.s) <= reach and gap % every == 0
#     keep anchor and k.t == 0  # every frame sees the first
#
# problem   1 head(s), 30 x 3,840 queries, 30 x 3,840 keys, head_dim 128, bfloat16
# tiles     1x64 queries by 1x64 keys
# pairs     844,096 full, 147,368 partial, 2,248,536 empty tiles
# walk      full and partial tiles from a list
# proved    tiles divide the extents, 32 bits hold every int of the pattern, every query keeps a key
# target    sm_90, 8 warps, 2 stages

import math

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

BLOCK_Q = tl.constexpr(64)  # queries of a tile: 1 t x 64 s
BLOCK_K = tl.constexpr(64)  # keys of a tile: 1 t x 64 s
COLUMNS = tl.constexpr(1800)  # tiles of keys
QUERIES = tl.constexpr(115200)
HEADS = tl.constexpr(1)
LOG2E = tl.constexpr(1.4426950408889634)

# Types of the kernels' pointers and descriptors, and the launch options.
TYPES = {
    "q_desc": "tensordesc<bf16[1, 1, 1, 64, 128]>", "k_desc": "tensordesc<bf16[1, 1, 1, 64, 128]>",
    "v_desc": "tensordesc<bf16[1, 1, 1, 64, 128]>", "do_desc": "tensordesc<bf16[1, 1, 1, 64, 128]>",
    "dk_desc": "tensordesc<bf16[1, 1, 1, 64, 128]>",
    "dv_desc": "tensordesc<bf16[1, 1, 1, 64, 128]>", "lse_ptr": "*fp32", "delta_ptr": "*fp32",
    "key_rows": "*i32", "key_full_starts": "*i32", "key_full_tiles": "*i32",
    "key_partial_starts": "*i32", "key_partial_tiles": "*i32", "table0": "*i32",
}  # fmt: skip
OPTIONS = {"num_warps": 8, "num_stages": 2}


@triton.jit
def radial_dkv(
    q_desc, k_desc, v_desc, do_desc, dk_desc, dv_desc, lse_ptr, delta_ptr, scale, batch_heads,
    heads_at_once, key_rows, key_full_starts, key_full_tiles, key_partial_starts, key_partial_tiles,
    table0,
):  # fmt: skip
    # a tile of keys of one head: the longest rows first, for as many heads as the L2 cache holds
    program = tl.program_id(0)
    first_head = program // (COLUMNS * heads_at_once) * heads_at_once
    heads_here = tl.minimum(heads_at_once, batch_heads - first_head)
    row = (program - first_head * COLUMNS) // heads_here
    batch_head = first_head + (program - first_head * COLUMNS) % heads_here
    batch = batch_head
    tile = tl.load(key_rows + row)

    # the keys of this tile
    k_t_first = tile // 60
    k_s_first = tile % 60 * 64
    k_lane = tl.arange(0, BLOCK_K)
    k_t = k_t_first + tl.zeros([BLOCK_K], tl.int32)
    k_s = k_s_first + k_lane % 64
    keys = k_desc.load([batch, 0, k_t_first, k_s_first, 0]).reshape(BLOCK_K, 128)
    values = v_desc.load([batch, 0, k_t_first, k_s_first, 0]).reshape(BLOCK_K, 128)

    # what the pattern needs to know of each key
    key0 = k_t == 0

    # queries and gradients of the output
    q_lane = tl.arange(0, BLOCK_Q)
    q_lane_t = tl.zeros([BLOCK_Q], tl.int32)
    q_lane_s = q_lane % 64
    lane_token = q_lane_s

    dk = tl.zeros([BLOCK_K, 128], tl.float32)
    dv = tl.zeros([BLOCK_K, 128], tl.float32)
    scale_log2 = scale * LOG2E
    lse_row = lse_ptr + batch_head.to(tl.int64) * QUERIES
    delta_row = delta_ptr + batch_head.to(tl.int64) * QUERIES

    # full tiles in order: nothing to mask
    for at in range(tl.load(key_full_starts + row), tl.load(key_full_starts + row + 1)):
        q_first = tl.load(key_full_tiles + at)
        q_t_first = q_first >> 12
        q_s_first = q_first & 4095
        token = tl.cast(q_t_first * 3840 + q_s_first, tl.int64)
        q = q_desc.load([batch, 0, q_t_first, q_s_first, 0]).reshape(BLOCK_Q, 128)
        do = do_desc.load([batch, 0, q_t_first, q_s_first, 0]).reshape(BLOCK_Q, 128)
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
        q_t_first = q_first >> 12
        q_s_first = q_first & 4095
        q_t = q_t_first + q_lane_t
        q_s = q_s_first + q_lane_s
        token = tl.cast(q_t_first * 3840 + q_s_first, tl.int64)
        q = q_desc.load([batch, 0, q_t_first, q_s_first, 0]).reshape(BLOCK_Q, 128)
        do = do_desc.load([batch, 0, q_t_first, q_s_first, 0]).reshape(BLOCK_Q, 128)
        lse = tl.load(lse_row + token + lane_token) * LOG2E
        delta = tl.load(delta_row + token + lane_token)
        s = tl.dot(keys, tl.trans(q))
        pair0 = tl.load(table0 + tl.abs(k_t[:, None] - q_t[None, :]))
        keep = (tl.abs(k_s[:, None] - q_s[None, :]) <= pair0) | key0[:, None]
        s = tl.where(keep, s, float("-inf"))
        weights = tl.exp2(s * scale_log2 - lse[None, :])
        dv = tl.dot(weights.to(do.dtype), do, dv)
        dp = tl.dot(values, tl.trans(do))
        ds = weights * (dp - delta[None, :])
        ds = tl.where(keep, ds, 0.0)
        dk = tl.dot(ds.to(q.dtype), q, dk)

    dk = (dk * scale).to(dk_desc.dtype).reshape(1, 1, 1, 64, 128)
    dk_desc.store([batch, 0, k_t_first, k_s_first, 0], dk)

    dv = dv.to(dv_desc.dtype).reshape(1, 1, 1, 64, 128)
    dv_desc.store([batch, 0, k_t_first, k_s_first, 0], dv)


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
    # as many heads at once as have what they walk in the L2 cache
    head_bytes = 115200 * 256 * k.element_size()
    heads_at_once = min(batch * HEADS.value, max(1, 33554432 // head_bytes))
    radial_dkv[(batch * HEADS.value * COLUMNS.value,)](
        boxes(q, (30, 3840), (1, 64, 128)), boxes(k, (30, 3840), (1, 64, 128)),
        boxes(v, (30, 3840), (1, 64, 128)), boxes(do, (30, 3840), (1, 64, 128)),
        boxes(dk, (30, 3840), (1, 64, 128)), boxes(dv, (30, 3840), (1, 64, 128)), lse, delta, scale,
        batch * HEADS.value, heads_at_once, walk["key_rows"], walk["key_full_starts"],
        walk["key_full_tiles"], walk["key_partial_starts"], walk["key_partial_tiles"],
        walk["table0"], **OPTIONS,
    )  # fmt: skip
    return dk, dv, grads
