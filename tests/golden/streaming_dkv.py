# Gradients of keys and values for the pattern `streaming`, emitted by MaskDSL.
#
#     # The first `sinks` tokens, and the last `window` keys, the query included; causal, so fewer
#     # at the start. StreamingLLM (arXiv 2309.17453): its cache of 4 + 1020 is sinks = 4, window =
#     # 1020.
#     pattern streaming(sinks: int = 4, window: int = 1020)
#     over (n)
#     keep causal(n) and (k.n < sinks or q.n - k.n < window)
#
# problem   16 head(s), 131,072 queries, 131,072 keys, head_dim 128, bfloat16
# tiles     64 queries by 64 keys
# pairs     457,088 full, 130,288 partial, 66,521,488 empty tiles
# walk      full tiles in one run a row; partial tiles from a list
# proved    tiles divide the extents, 32 bits hold every int of the pattern, every query keeps a key
# target    sm_90, 8 warps, 2 stages

import math

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

BLOCK_Q = tl.constexpr(64)  # queries of a tile
BLOCK_K = tl.constexpr(64)  # keys of a tile
COLUMNS = tl.constexpr(2048)  # tiles of keys
QUERIES = tl.constexpr(131072)
HEADS = tl.constexpr(16)
LOG2E = tl.constexpr(1.4426950408889634)

# Types of the kernels' pointers and descriptors, and the launch options.
TYPES = {
    "q_desc": "tensordesc<bf16[1, 1, 64, 128]>", "k_desc": "tensordesc<bf16[1, 1, 64, 128]>",
    "v_desc": "tensordesc<bf16[1, 1, 64, 128]>", "do_desc": "tensordesc<bf16[1, 1, 64, 128]>",
    "dk_desc": "tensordesc<bf16[1, 1, 64, 128]>", "dv_desc": "tensordesc<bf16[1, 1, 64, 128]>",
    "lse_ptr": "*fp32", "delta_ptr": "*fp32", "key_full_runs": "*i32", "key_partial_starts": "*i32",
    "key_partial_tiles": "*i32",
}  # fmt: skip
OPTIONS = {"num_warps": 8, "num_stages": 2}


@triton.jit
def streaming_dkv(
    q_desc, k_desc, v_desc, do_desc, dk_desc, dv_desc, lse_ptr, delta_ptr, scale, batch_heads,
    heads_at_once, key_full_runs, key_partial_starts, key_partial_tiles,
):  # fmt: skip
    # a tile of keys of one head: the longest rows first, for as many heads as the L2 cache holds
    program = tl.program_id(0)
    first_head = program // (COLUMNS * heads_at_once) * heads_at_once
    heads_here = tl.minimum(heads_at_once, batch_heads - first_head)
    row = (program - first_head * COLUMNS) // heads_here
    batch_head = first_head + (program - first_head * COLUMNS) % heads_here
    batch = batch_head // HEADS
    head = batch_head % HEADS
    tile = row

    # the keys of this tile
    k_n_first = tile * 64
    k_lane = tl.arange(0, BLOCK_K)
    k_n = k_n_first + k_lane
    keys = k_desc.load([batch, head, k_n_first, 0]).reshape(BLOCK_K, 128)
    values = v_desc.load([batch, head, k_n_first, 0]).reshape(BLOCK_K, 128)

    # what the pattern needs to know of each key
    key0 = k_n <= 3

    # queries and gradients of the output
    q_lane = tl.arange(0, BLOCK_Q)
    lane_token = q_lane

    dk = tl.zeros([BLOCK_K, 128], tl.float32)
    dv = tl.zeros([BLOCK_K, 128], tl.float32)
    scale_log2 = scale * LOG2E
    lse_row = lse_ptr + batch_head.to(tl.int64) * QUERIES
    delta_row = delta_ptr + batch_head.to(tl.int64) * QUERIES

    # full tiles, one run: nothing to mask
    run_low = tl.load(key_full_runs + 2 * row)
    run_high = tl.load(key_full_runs + 2 * row + 1)
    for q_n_first in range(run_low, run_high, 64):
        token = tl.cast(q_n_first, tl.int64)
        q = q_desc.load([batch, head, q_n_first, 0]).reshape(BLOCK_Q, 128)
        do = do_desc.load([batch, head, q_n_first, 0]).reshape(BLOCK_Q, 128)
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
        q_n_first = tl.load(key_partial_tiles + at)
        q_n = q_n_first + q_lane
        token = tl.cast(q_n_first, tl.int64)
        q = q_desc.load([batch, head, q_n_first, 0]).reshape(BLOCK_Q, 128)
        do = do_desc.load([batch, head, q_n_first, 0]).reshape(BLOCK_Q, 128)
        lse = tl.load(lse_row + token + lane_token) * LOG2E
        delta = tl.load(delta_row + token + lane_token)
        s = tl.dot(keys, tl.trans(q))
        row0 = q_n - 1019
        keep = (k_n[:, None] <= q_n[None, :]) & (key0[:, None] | (row0[None, :] <= k_n[:, None]))
        s = tl.where(keep, s, float("-inf"))
        weights = tl.exp2(s * scale_log2 - lse[None, :])
        dv = tl.dot(weights.to(do.dtype), do, dv)
        dp = tl.dot(values, tl.trans(do))
        ds = weights * (dp - delta[None, :])
        ds = tl.where(keep, ds, 0.0)
        dk = tl.dot(ds.to(q.dtype), q, dk)

    dk = (dk * scale).to(dk_desc.dtype).reshape(1, 1, 64, 128)
    dk_desc.store([batch, head, k_n_first, 0], dk)

    dv = dv.to(dv_desc.dtype).reshape(1, 1, 64, 128)
    dv_desc.store([batch, head, k_n_first, 0], dv)


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
    head_bytes = 131072 * 256 * k.element_size()
    heads_at_once = min(batch * HEADS.value, max(1, 33554432 // head_bytes))
    streaming_dkv[(batch * HEADS.value * COLUMNS.value,)](
        boxes(q, (131072,), (64, 128)), boxes(k, (131072,), (64, 128)),
        boxes(v, (131072,), (64, 128)), boxes(do, (131072,), (64, 128)),
        boxes(dk, (131072,), (64, 128)), boxes(dv, (131072,), (64, 128)), lse, delta, scale,
        batch * HEADS.value, heads_at_once, walk["key_full_runs"], walk["key_partial_starts"],
        walk["key_partial_tiles"], **OPTIONS,
    )  # fmt: skip
    return dk, dv, grads
