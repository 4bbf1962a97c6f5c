# Gradients of queries for the pattern `streaming`, emitted by MaskDSL.
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
ROWS = tl.constexpr(2048)  # tiles of queries
QUERIES = tl.constexpr(131072)
HEADS = tl.constexpr(16)
LOG2E = tl.constexpr(1.4426950408889634)

# Types of the kernels' pointers and descriptors, and the launch options.
TYPES = {
    "q_desc": "tensordesc<bf16[1, 1, 64, 128]>", "k_desc": "tensordesc<bf16[1, 1, 64, 128]>",
    "v_desc": "tensordesc<bf16[1, 1, 64, 128]>", "out_desc": "tensordesc<bf16[1, 1, 64, 128]>",
    "do_desc": "tensordesc<bf16[1, 1, 64, 128]>", "dq_desc": "tensordesc<bf16[1, 1, 64, 128]>",
    "lse_ptr": "*fp32", "grad_lse_ptr": "*fp32", "delta_ptr": "*fp32", "full_runs": "*i32",
    "partial_starts": "*i32", "partial_tiles": "*i32",
}  # fmt: skip
OPTIONS = {"num_warps": 8, "num_stages": 2}


@triton.jit
def streaming_dq(
    q_desc, k_desc, v_desc, out_desc, do_desc, dq_desc, lse_ptr, grad_lse_ptr, delta_ptr, scale,
    full_runs, partial_starts, partial_tiles,
):  # fmt: skip
    # a tile of queries of one head: one head after the other
    program = tl.program_id(0)
    row = program % ROWS
    batch_head = program // ROWS
    batch = batch_head // HEADS
    head = batch_head % HEADS
    tile = row

    # the queries of this tile
    q_n_first = tile * 64
    q_lane = tl.arange(0, BLOCK_Q)
    q_n = q_n_first + q_lane
    q_token = q_n.to(tl.int64)
    q = q_desc.load([batch, head, q_n_first, 0]).reshape(BLOCK_Q, 128)
    do = do_desc.load([batch, head, q_n_first, 0]).reshape(BLOCK_Q, 128)
    out = out_desc.load([batch, head, q_n_first, 0]).reshape(BLOCK_Q, 128)

    # what the pattern needs to know of each query
    row0 = q_n - 1019

    # of each query: its log-sum-exp (base 2), and what the softmax takes from all its gradients
    lse_row = batch_head.to(tl.int64) * QUERIES + q_token
    lse = tl.load(lse_ptr + lse_row) * LOG2E
    delta = tl.sum(do.to(tl.float32) * out.to(tl.float32), 1)
    delta -= tl.load(grad_lse_ptr + lse_row)
    tl.store(delta_ptr + lse_row, delta)

    # keys and values
    k_lane = tl.arange(0, BLOCK_K)

    dq = tl.zeros([BLOCK_Q, 128], tl.float32)
    scale_log2 = scale * LOG2E

    # full tiles, one run: nothing to mask
    run_low = tl.load(full_runs + 2 * row)
    run_high = tl.load(full_runs + 2 * row + 1)
    for k_n_first in range(run_low, run_high, 64):
        keys = k_desc.load([batch, head, k_n_first, 0]).reshape(BLOCK_K, 128)
        values = v_desc.load([batch, head, k_n_first, 0]).reshape(BLOCK_K, 128)
        s = tl.dot(q, tl.trans(keys))
        weights = tl.exp2(s * scale_log2 - lse[:, None])
        dp = tl.dot(do, tl.trans(values))
        ds = weights * (dp - delta[:, None])
        dq = tl.dot(ds.to(keys.dtype), keys, dq)

    # partial tiles in order
    for at in range(tl.load(partial_starts + row), tl.load(partial_starts + row + 1)):
        k_n_first = tl.load(partial_tiles + at)
        k_n = k_n_first + k_lane
        keys = k_desc.load([batch, head, k_n_first, 0]).reshape(BLOCK_K, 128)
        values = v_desc.load([batch, head, k_n_first, 0]).reshape(BLOCK_K, 128)
        s = tl.dot(q, tl.trans(keys))
        key0 = k_n <= 3
        keep = (k_n[None, :] <= q_n[:, None]) & (key0[None, :] | (row0[:, None] <= k_n[None, :]))
        s = tl.where(keep, s, float("-inf"))
        weights = tl.exp2(s * scale_log2 - lse[:, None])
        dp = tl.dot(do, tl.trans(values))
        ds = weights * (dp - delta[:, None])
        ds = tl.where(keep, ds, 0.0)
        dq = tl.dot(ds.to(keys.dtype), keys, dq)

    dq = (dq * scale).to(dq_desc.dtype).reshape(1, 1, 64, 128)
    dq_desc.store([batch, head, q_n_first, 0], dq)


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
    streaming_dq[(batch * HEADS.value * ROWS.value,)](
        boxes(q, (131072,), (64, 128)), boxes(k, (131072,), (64, 128)),
        boxes(v, (131072,), (64, 128)), boxes(out, (131072,), (64, 128)),
        boxes(do, (131072,), (64, 128)), boxes(dq, (131072,), (64, 128)), lse, grad_lse, delta,
        scale, walk["full_runs"], walk["partial_starts"], walk["partial_tiles"], **OPTIONS,
    )  # fmt: skip
    return dq, delta, grads
