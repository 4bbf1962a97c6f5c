# Gradients of keys and values for the pattern `documents`, emitted by MaskDSL.
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
COLUMNS = tl.constexpr(1024)  # tiles of keys
QUERIES = tl.constexpr(65536)
HEADS = tl.constexpr(16)
LOG2E = tl.constexpr(1.4426950408889634)

# Types of the kernels' pointers and descriptors, and the launch options.
TYPES = {
    "q_desc": "tensordesc<bf16[1, 1, 64, 128]>", "k_desc": "tensordesc<bf16[1, 1, 64, 128]>",
    "v_desc": "tensordesc<bf16[1, 1, 64, 128]>", "do_desc": "tensordesc<bf16[1, 1, 64, 128]>",
    "dk_desc": "tensordesc<bf16[1, 1, 64, 128]>", "dv_desc": "tensordesc<bf16[1, 1, 64, 128]>",
    "lse_ptr": "*fp32", "delta_ptr": "*fp32", "in_doc": "*i64", "key_input_tiles": "*i32",
    "key_input_counts": "*i32",
}  # fmt: skip
OPTIONS = {"num_warps": 8, "num_stages": 2}


@triton.jit
def documents_dkv(
    q_desc, k_desc, v_desc, do_desc, dk_desc, dv_desc, lse_ptr, delta_ptr, scale, batch_heads,
    heads_at_once, in_doc, in_doc_strides, key_input_tiles, key_input_counts, widest,
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

    # the same for all queries and keys
    once0 = in_doc + batch.to(tl.int64) * in_doc_strides[0]

    # what the pattern needs to know of each key
    key0 = tl.load(once0 + k_n.to(tl.int64) * in_doc_strides[1])

    # queries and gradients of the output
    q_lane = tl.arange(0, BLOCK_Q)
    lane_token = q_lane

    dk = tl.zeros([BLOCK_K, 128], tl.float32)
    dv = tl.zeros([BLOCK_K, 128], tl.float32)
    scale_log2 = scale * LOG2E
    lse_row = lse_ptr + batch_head.to(tl.int64) * QUERIES
    delta_row = delta_ptr + batch_head.to(tl.int64) * QUERIES

    # full tiles, as the inputs decide: nothing to mask
    line = batch * COLUMNS + tile
    line_start = line.to(tl.int64) * widest
    partial_count = tl.load(key_input_counts + 2 * line)
    full_count = tl.load(key_input_counts + 2 * line + 1)
    for at in range(partial_count, partial_count + full_count):
        q_n_first = tl.load(key_input_tiles + line_start + at)
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

    # partial tiles, as the inputs decide
    for at in range(partial_count):
        q_n_first = tl.load(key_input_tiles + line_start + at)
        q_n = q_n_first + q_lane
        token = tl.cast(q_n_first, tl.int64)
        q = q_desc.load([batch, head, q_n_first, 0]).reshape(BLOCK_Q, 128)
        do = do_desc.load([batch, head, q_n_first, 0]).reshape(BLOCK_Q, 128)
        lse = tl.load(lse_row + token + lane_token) * LOG2E
        delta = tl.load(delta_row + token + lane_token)
        s = tl.dot(keys, tl.trans(q))
        row0 = tl.load(once0 + q_n.to(tl.int64) * in_doc_strides[1])
        keep = (k_n[:, None] <= q_n[None, :]) & (row0[None, :] == key0[:, None])
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
    head_bytes = 65536 * 256 * k.element_size()
    heads_at_once = min(batch * HEADS.value, max(1, 33554432 // head_bytes))
    documents_dkv[(batch * HEADS.value * COLUMNS.value,)](
        boxes(q, (65536,), (64, 128)), boxes(k, (65536,), (64, 128)), boxes(v, (65536,), (64, 128)),
        boxes(do, (65536,), (64, 128)), boxes(dk, (65536,), (64, 128)),
        boxes(dv, (65536,), (64, 128)), lse, delta, scale, batch * HEADS.value, heads_at_once,
        inputs["doc"], inputs["doc"].stride(), walk["key_input_tiles"], walk["key_input_counts"],
        walk["key_input_tiles"].shape[-1], **OPTIONS,
    )  # fmt: skip
    return dk, dv, grads
