# Gradients of queries for the pattern `causal`, emitted by MaskDSL.
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
ROWS = tl.constexpr(256)  # tiles of queries
QUERIES = tl.constexpr(16384)
HEADS = tl.constexpr(32)
KV_HEADS = tl.constexpr(8)
GROUP = tl.constexpr(4)  # query heads that share a key head
LOG2E = tl.constexpr(1.4426950408889634)

# Types of the kernels' pointers and descriptors, and the launch options.
TYPES = {
    "q_desc": "tensordesc<bf16[1, 1, 64, 64]>", "k_desc": "tensordesc<bf16[1, 1, 128, 64]>",
    "v_desc": "tensordesc<bf16[1, 1, 128, 64]>", "out_desc": "tensordesc<bf16[1, 1, 64, 64]>",
    "do_desc": "tensordesc<bf16[1, 1, 64, 64]>", "dq_desc": "tensordesc<bf16[1, 1, 64, 64]>",
    "lse_ptr": "*fp32", "grad_lse_ptr": "*fp32", "delta_ptr": "*fp32",
}  # fmt: skip
OPTIONS = {"num_warps": 8, "num_stages": 2}


@triton.jit
def causal_dq(
    q_desc, k_desc, v_desc, out_desc, do_desc, dq_desc, lse_ptr, grad_lse_ptr, delta_ptr, scale,
    batch_heads, heads_at_once,
):  # fmt: skip
    # a tile of queries of one head: the longest rows first, for as many heads as the L2 cache holds
    program = tl.program_id(0)
    first_head = program // (ROWS * heads_at_once) * heads_at_once
    heads_here = tl.minimum(heads_at_once, batch_heads - first_head)
    row = (program - first_head * ROWS) // heads_here
    batch_head = first_head + (program - first_head * ROWS) % heads_here
    batch = batch_head // HEADS
    head = batch_head % HEADS
    kv_head = head // GROUP
    tile = ROWS - 1 - row

    # the queries of this tile
    q_n_first = tile * 64
    q_lane = tl.arange(0, BLOCK_Q)
    q_n = q_n_first + q_lane
    q_token = q_n.to(tl.int64)
    q = q_desc.load([batch, head, q_n_first, 0]).reshape(BLOCK_Q, 64)
    do = do_desc.load([batch, head, q_n_first, 0]).reshape(BLOCK_Q, 64)
    out = out_desc.load([batch, head, q_n_first, 0]).reshape(BLOCK_Q, 64)

    # of each query: its log-sum-exp (base 2), and what the softmax takes from all its gradients
    lse_row = batch_head.to(tl.int64) * QUERIES + q_token
    lse = tl.load(lse_ptr + lse_row) * LOG2E
    delta = tl.sum(do.to(tl.float32) * out.to(tl.float32), 1)
    delta -= tl.load(grad_lse_ptr + lse_row)
    tl.store(delta_ptr + lse_row, delta)

    # the tiles of keys to visit
    full_last = (64 * tile + 1) // 128
    last = (64 * tile + 63) // 128 + 1

    # keys and values
    k_lane = tl.arange(0, BLOCK_K)

    dq = tl.zeros([BLOCK_Q, 64], tl.float32)
    scale_log2 = scale * LOG2E

    # full tiles: nothing to mask
    for k_n_first in range(0, full_last * 128, 128):
        keys = k_desc.load([batch, kv_head, k_n_first, 0]).reshape(BLOCK_K, 64)
        values = v_desc.load([batch, kv_head, k_n_first, 0]).reshape(BLOCK_K, 64)
        s = tl.dot(q, tl.trans(keys))
        weights = tl.exp2(s * scale_log2 - lse[:, None])
        dp = tl.dot(do, tl.trans(values))
        ds = weights * (dp - delta[:, None])
        dq = tl.dot(ds.to(keys.dtype), keys, dq)

    # partial tiles
    for k_n_first in range(full_last * 128, last * 128, 128):
        k_n = k_n_first + k_lane
        keys = k_desc.load([batch, kv_head, k_n_first, 0]).reshape(BLOCK_K, 64)
        values = v_desc.load([batch, kv_head, k_n_first, 0]).reshape(BLOCK_K, 64)
        s = tl.dot(q, tl.trans(keys))
        keep = k_n[None, :] <= q_n[:, None]
        s = tl.where(keep, s, float("-inf"))
        weights = tl.exp2(s * scale_log2 - lse[:, None])
        dp = tl.dot(do, tl.trans(values))
        ds = weights * (dp - delta[:, None])
        ds = tl.where(keep, ds, 0.0)
        dq = tl.dot(ds.to(keys.dtype), keys, dq)

    dq = (dq * scale).to(dq_desc.dtype).reshape(1, 1, 64, 64)
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
    float32 (batch, heads, queries). walk: int tensors by name (none are needed). inputs: the
    pattern's, by name.
    Gives dq like q; delta, float32 (batch, heads, queries), the sum of do * out over each row, less
    grad_lse; and gradients of inputs by name, float32.
    """
    batch = q.shape[0]
    dq, delta = torch.empty_like(q), torch.empty_like(lse)
    grads = {}

    if batch == 0:
        return dq, delta, grads
    # as many heads at once as have what they walk in the L2 cache
    head_bytes = 16384 * 128 * k.element_size()
    heads_at_once = min(batch * HEADS.value, max(1, 33554432 // head_bytes) * 4)
    causal_dq[(batch * HEADS.value * ROWS.value,)](
        boxes(q, (16384,), (64, 64)), boxes(k, (16384,), (128, 64)), boxes(v, (16384,), (128, 64)),
        boxes(out, (16384,), (64, 64)), boxes(do, (16384,), (64, 64)),
        boxes(dq, (16384,), (64, 64)), lse, grad_lse, delta, scale, batch * HEADS.value,
        heads_at_once, **OPTIONS,
    )  # fmt: skip
    return dq, delta, grads
