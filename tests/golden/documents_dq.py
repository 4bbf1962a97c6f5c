# Gradients of queries for the pattern `documents`, emitted by MaskDSL.
#
#     # Packed documents, each causal: the first token of one sees itself only.
#     # `maskdsl.tables.documents` makes `doc` from lengths; padding that shares a number sees
#     # padding. As attn-gym's `document_mask` (github.com/meta-pytorch/attention-gym) and
#     # FlashAttention's varlen calls.
#     pattern documents
#     over (n)
#     input doc[batch, n]: int
#     keep causal(n) and doc[batch, q.n] == doc[batch, k.n]
#
# problem   16 head(s), 65,536 queries, 65,536 keys, head_dim 128, bfloat16
# tiles     64 queries by 64 keys
# pairs     0 full, 8,396,800 partial, 8,380,416 empty tiles
# walk      full and partial tiles as the inputs decide at a call
# proved    tiles divide the extents, every query keeps a key
# target    sm_90, 8 warps, 2 stages

import math

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

BLOCK_Q = tl.constexpr(64)  # queries of a tile
BLOCK_K = tl.constexpr(64)  # keys of a tile
ROWS = tl.constexpr(1024)  # tiles of queries
QUERIES = tl.constexpr(65536)
HEADS = tl.constexpr(16)
LOG2E = tl.constexpr(1.4426950408889634)

# Types of the kernels' pointers and descriptors, and the launch options.
TYPES = {
    "q_desc": "tensordesc<bf16[1, 1, 64, 128]>", "k_desc": "tensordesc<bf16[1, 1, 64, 128]>",
    "v_desc": "tensordesc<bf16[1, 1, 64, 128]>", "out_desc": "tensordesc<bf16[1, 1, 64, 128]>",
    "do_desc": "tensordesc<bf16[1, 1, 64, 128]>", "dq_desc": "tensordesc<bf16[1, 1, 64, 128]>",
    "lse_ptr": "*fp32", "grad_lse_ptr": "*fp32", "delta_ptr": "*fp32", "in_doc": "*i64",
    "input_tiles": "*i32", "input_counts": "*i32",
}  # fmt: skip
OPTIONS = {"num_warps": 8, "num_stages": 2}


@triton.jit
def documents_dq(
    q_desc, k_desc, v_desc, out_desc, do_desc, dq_desc, lse_ptr, grad_lse_ptr, delta_ptr, scale,
    batch_heads, heads_at_once, in_doc, in_doc_strides, input_tiles, input_counts, widest,
):  # fmt: skip
    # a tile of queries of one head: the longest rows first, for as many heads as the L2 cache holds
    program = tl.program_id(0)
    first_head = program // (ROWS * heads_at_once) * heads_at_once
    heads_here = tl.minimum(heads_at_once, batch_heads - first_head)
    row = (program - first_head * ROWS) // heads_here
    batch_head = first_head + (program - first_head * ROWS) % heads_here
    batch = batch_head // HEADS
    head = batch_head % HEADS
    tile = ROWS - 1 - row

    # the queries of this tile
    q_n_first = tile * 64
    q_lane = tl.arange(0, BLOCK_Q)
    q_n = q_n_first + q_lane
    q_token = q_n.to(tl.int64)
    q = q_desc.load([batch, head, q_n_first, 0]).reshape(BLOCK_Q, 128)
    do = do_desc.load([batch, head, q_n_first, 0]).reshape(BLOCK_Q, 128)
    out = out_desc.load([batch, head, q_n_first, 0]).reshape(BLOCK_Q, 128)

    # the same for all queries and keys
    once0 = in_doc + batch.to(tl.int64) * in_doc_strides[0]

    # what the pattern needs to know of each query
    row0 = tl.load(once0 + q_n.to(tl.int64) * in_doc_strides[1])

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

    # full tiles, as the inputs decide: nothing to mask
    line = batch * ROWS + tile
    line_start = line.to(tl.int64) * widest
    partial_count = tl.load(input_counts + 2 * line)
    full_count = tl.load(input_counts + 2 * line + 1)
    for at in range(partial_count, partial_count + full_count):
        k_n_first = tl.load(input_tiles + line_start + at)
        keys = k_desc.load([batch, head, k_n_first, 0]).reshape(BLOCK_K, 128)
        values = v_desc.load([batch, head, k_n_first, 0]).reshape(BLOCK_K, 128)
        s = tl.dot(q, tl.trans(keys))
        weights = tl.exp2(s * scale_log2 - lse[:, None])
        dp = tl.dot(do, tl.trans(values))
        ds = weights * (dp - delta[:, None])
        dq = tl.dot(ds.to(keys.dtype), keys, dq)

    # partial tiles, as the inputs decide
    for at in range(partial_count):
        k_n_first = tl.load(input_tiles + line_start + at)
        k_n = k_n_first + k_lane
        keys = k_desc.load([batch, head, k_n_first, 0]).reshape(BLOCK_K, 128)
        values = v_desc.load([batch, head, k_n_first, 0]).reshape(BLOCK_K, 128)
        s = tl.dot(q, tl.trans(keys))
        key0 = tl.load(once0 + k_n.to(tl.int64) * in_doc_strides[1])
        keep = (k_n[None, :] <= q_n[:, None]) & (row0[:, None] == key0[None, :])
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
    head_bytes = 65536 * 256 * k.element_size()
    heads_at_once = min(batch * HEADS.value, max(1, 33554432 // head_bytes))
    documents_dq[(batch * HEADS.value * ROWS.value,)](
        boxes(q, (65536,), (64, 128)), boxes(k, (65536,), (64, 128)), boxes(v, (65536,), (64, 128)),
        boxes(out, (65536,), (64, 128)), boxes(do, (65536,), (64, 128)),
        boxes(dq, (65536,), (64, 128)), lse, grad_lse, delta, scale, batch * HEADS.value,
        heads_at_once, inputs["doc"], inputs["doc"].stride(), walk["input_tiles"],
        walk["input_counts"], walk["input_tiles"].shape[-1], **OPTIONS,
    )  # fmt: skip
    return dq, delta, grads
