# Gradients of keys and values for the pattern `causal`, emitted by MaskDSL.
#
#     # Every key up to and including the query itself; the first query sees one key ("Attention Is
#     # All You Need", arXiv 1706.03762, the decoder).
#     pattern causal
#     over (n)
#     keep causal(n)
#
# problem   32 head(s) on 8 of keys, 16,384 queries, 16,384 keys, head_dim 64, bfloat16
# tiles     64 queries by 128 keys
# pairs     520,192 full, 8,192 partial, 520,192 empty tiles
# walk      full and partial tiles worked out from the tile's number
# proved    tiles divide the extents, 32 bits hold every int of the pattern, every query keeps a key
# target    sm_90, 8 warps, 2 stages

import math

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

BLOCK_Q = tl.constexpr(64)  # queries of a tile
BLOCK_K = tl.constexpr(128)  # keys of a tile
COLUMNS = tl.constexpr(128)  # tiles of keys
QUERIES = tl.constexpr(16384)
HEADS = tl.constexpr(32)
KV_HEADS = tl.constexpr(8)
GROUP = tl.constexpr(4)  # query heads that share a key head
LOG2E = tl.constexpr(1.4426950408889634)

# Types of the kernels' pointers and descriptors, and the launch options.
TYPES = {
    "q_desc": "tensordesc<bf16[1, 1, 64, 64]>", "k_desc": "tensordesc<bf16[1, 1, 128, 64]>",
    "v_desc": "tensordesc<bf16[1, 1, 128, 64]>", "do_desc": "tensordesc<bf16[1, 1, 64, 64]>",
    "dk_desc": "tensordesc<bf16[1, 1, 128, 64]>", "dv_desc": "tensordesc<bf16[1, 1, 128, 64]>",
    "lse_ptr": "*fp32", "delta_ptr": "*fp32",
}  # fmt: skip
OPTIONS = {"num_warps": 8, "num_stages": 2}


@triton.jit
def causal_dkv(
    q_desc, k_desc, v_desc, do_desc, dk_desc, dv_desc, lse_ptr, delta_ptr, scale, batch_heads,
    heads_at_once,
):  # fmt: skip
    # a tile of keys of one head: the longest rows first, for as many heads as the L2 cache holds
    program = tl.program_id(0)
    first_head = program // (COLUMNS * heads_at_once) * heads_at_once
    heads_here = tl.minimum(heads_at_once, batch_heads - first_head)
    row = (program - first_head * COLUMNS) // heads_here
    batch_head = first_head + (program - first_head * COLUMNS) % heads_here
    batch = batch_head // KV_HEADS
    kv_head = batch_head % KV_HEADS
    tile = row

    # the keys of this tile
    k_n_first = tile * 128
    k_lane = tl.arange(0, BLOCK_K)
    k_n = k_n_first + k_lane
    keys = k_desc.load([batch, kv_head, k_n_first, 0]).reshape(BLOCK_K, 64)
    values = v_desc.load([batch, kv_head, k_n_first, 0]).reshape(BLOCK_K, 64)

    # the tiles of queries to visit
    first = 2 * tile
    full_first = 2 * tile + 2

    # queries and gradients of the output
    q_lane = tl.arange(0, BLOCK_Q)
    lane_token = q_lane

    dk = tl.zeros([BLOCK_K, 64], tl.float32)
    dv = tl.zeros([BLOCK_K, 64], tl.float32)
    scale_log2 = scale * LOG2E

    # the gradients of a key sum over the heads of queries that share it
    for member in range(GROUP):
        head = kv_head * GROUP + member
        lse_row = lse_ptr + (batch_head * GROUP + member).to(tl.int64) * QUERIES
        delta_row = delta_ptr + (batch_head * GROUP + member).to(tl.int64) * QUERIES

        # full tiles: nothing to mask
        for q_n_first in range(full_first * 64, 256 * 64, 64):
            token = tl.cast(q_n_first, tl.int64)
            q = q_desc.load([batch, head, q_n_first, 0]).reshape(BLOCK_Q, 64)
            do = do_desc.load([batch, head, q_n_first, 0]).reshape(BLOCK_Q, 64)
            lse = tl.load(lse_row + token + lane_token) * LOG2E
            delta = tl.load(delta_row + token + lane_token)
            s = tl.dot(keys, tl.trans(q))
            weights = tl.exp2(s * scale_log2 - lse[None, :])
            dv = tl.dot(weights.to(do.dtype), do, dv)
            dp = tl.dot(values, tl.trans(do))
            ds = weights * (dp - delta[None, :])
            dk = tl.dot(ds.to(q.dtype), q, dk)

        # partial tiles
        for q_n_first in range(first * 64, full_first * 64, 64):
            q_n = q_n_first + q_lane
            token = tl.cast(q_n_first, tl.int64)
            q = q_desc.load([batch, head, q_n_first, 0]).reshape(BLOCK_Q, 64)
            do = do_desc.load([batch, head, q_n_first, 0]).reshape(BLOCK_Q, 64)
            lse = tl.load(lse_row + token + lane_token) * LOG2E
            delta = tl.load(delta_row + token + lane_token)
            s = tl.dot(keys, tl.trans(q))
            keep = k_n[:, None] <= q_n[None, :]
            s = tl.where(keep, s, float("-inf"))
            weights = tl.exp2(s * scale_log2 - lse[None, :])
            dv = tl.dot(weights.to(do.dtype), do, dv)
            dp = tl.dot(values, tl.trans(do))
            ds = weights * (dp - delta[None, :])
            ds = tl.where(keep, ds, 0.0)
            dk = tl.dot(ds.to(q.dtype), q, dk)

    dk = (dk * scale).to(dk_desc.dtype).reshape(1, 1, 128, 64)
    dk_desc.store([batch, kv_head, k_n_first, 0], dk)

    dv = dv.to(dv_desc.dtype).reshape(1, 1, 128, 64)
    dv_desc.store([batch, kv_head, k_n_first, 0], dv)


def boxes(x, extents, box):
    """A descriptor of x, (batch, heads, tokens, dim), whose tokens fill `extents` row by row."""
    batch, heads, _, dim = x.shape
    steps = [x.stride(2) * math.prod(extents[i + 1 :]) for i in range(len(extents))]
    shape, strides = (batch, heads, *extents, dim), (x.stride(0), x.stride(1), *steps, 1)
    return TensorDescriptor(x, [*shape], [*strides], [1, 1, *box])


def gradients(q, k, v, do, lse, delta, scale, walk, inputs):
    """Of attention by k and v, given that by its output, `do`.

    q, k, v, do: (batch, heads, tokens, dim) aligned to 16 bytes. lse, delta: float32 (batch, heads,
    queries), `delta` as the gradients by q leave it. walk: int tensors by name (none are needed).
    inputs: the pattern's, by name. Gives dk and dv like k and v, and gradients of inputs by name,
    float32.
    """
    batch = q.shape[0]
    dk, dv = torch.empty_like(k), torch.empty_like(v)
    grads = {}

    if batch == 0:
        return dk, dv, grads
    # as many heads at once as have what they walk in the L2 cache
    head_bytes = 65536 * 128 * k.element_size()
    heads_at_once = min(batch * KV_HEADS.value, max(1, 33554432 // head_bytes))
    causal_dkv[(batch * KV_HEADS.value * COLUMNS.value,)](
        boxes(q, (16384,), (64, 64)), boxes(k, (16384,), (128, 64)), boxes(v, (16384,), (128, 64)),
        boxes(do, (16384,), (64, 64)), boxes(dk, (16384,), (128, 64)),
        boxes(dv, (16384,), (128, 64)), lse, delta, scale, batch * KV_HEADS.value, heads_at_once,
        **OPTIONS,
    )  # fmt: skip
    return dk, dv, grads
