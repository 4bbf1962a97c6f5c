# Decoding for the pattern `sliding_window`, emitted by MaskDSL.
#
#     # Causal window: the query itself and the `window - 1` keys before it; fewer at the start. So
#     # count Mistral 7B (arXiv 2310.06825) and Hugging Face; attn-gym's
#     # `generate_sliding_window(w)` and FlashAttention's `(w, 0)` keep w keys before the query: one
#     # more.
#     pattern sliding_window(window: int)
#     over (n)
#     keep 0 <= q.n - k.n < window
#
# problem   32 head(s) on 8 of keys, 131,072 queries, 131,072 keys, head_dim 128, bfloat16
# tiles     16 queries by 64 keys
# pairs     32,251,904 full, 507,904 partial, 504,111,104 empty tiles
# walk      full and partial tiles worked out from the tile's number
# proved    tiles divide the extents, 32 bits hold every int of the pattern, every query keeps a key
# target    sm_90, 4 warps, 3 stages

import math

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

BLOCK_Q = tl.constexpr(64)  # lanes of a tile: 16 queries by 4 heads
BLOCK_K = tl.constexpr(64)  # keys of a tile
ROWS = tl.constexpr(8192)  # tiles of queries
QUERIES = tl.constexpr(131072)
HEADS = tl.constexpr(32)
KV_HEADS = tl.constexpr(8)
GROUP = tl.constexpr(4)  # query heads that share a key head
LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
LOWEST = tl.constexpr(-3.4028234663852886e38)  # of float32: no logit lies lower, and it is finite

# Types of the kernels' pointers and descriptors, and the launch options.
TYPES = {
    "q_ptr": "*bf16", "k_desc": "tensordesc<bf16[1, 1, 64, 128]>",
    "v_desc": "tensordesc<bf16[1, 1, 64, 128]>", "out_ptr": "*bf16", "lse_ptr": "*fp32",
}  # fmt: skip
OPTIONS = {"num_warps": 4, "num_stages": 3}


@triton.jit
def softmax_step(s, values, peak, total, acc, scale_log2):
    """Take in the products `s` of one tile; the scale rides on the exponential's subtraction."""
    new = tl.maximum(peak, tl.max(s, 1) * scale_log2)
    weights = tl.exp2(s * scale_log2 - new[:, None])
    shrink = tl.exp2(peak - new)
    total = total * shrink + tl.sum(weights, 1)
    acc = tl.dot(weights.to(values.dtype), values, acc * shrink[:, None])
    return new, total, acc


@triton.jit
def part_of(low, high, step, split, splits):
    """The ends of what one of `splits` even parts takes of range(low, high, step)."""
    count = tl.maximum((high - low + step - 1) // step, 0)
    each, rest = count // splits, count % splits
    first = low + (split * each + tl.minimum(split, rest)) * step
    return first, first + tl.where(split < rest, each + 1, each) * step


@triton.jit(do_not_specialize=["batches", "position", "count", "first_row", "rows", "splits"])
def sliding_window_decode(
    q_ptr, k_desc, v_desc, out_ptr, lse_ptr, q_strides, out_strides, scale, batches, position,
    count, first_row, rows, splits,
):  # fmt: skip
    # a part of the keys that a tile of queries sees: of one batch, heads that share keys, one split
    program = tl.program_id(0)
    split = program % splits
    tile = first_row + rows - 1 - program // splits % rows
    batch = program // splits // rows // 8
    kv_head = program // splits // rows % 8
    first_head = kv_head * GROUP

    # the queries of this tile, for 4 heads each
    q_lane = tl.arange(0, BLOCK_Q)
    q_n_first = tile * 16
    q_n = q_n_first + q_lane // 4
    q_head = first_head + q_lane % 4
    place = q_n.to(tl.int64) - position  # among those given
    q_inside = (place >= 0) & (place < count)
    dims = tl.arange(0, 128)
    q_row = q_ptr + batch.to(tl.int64) * q_strides[0] + q_head.to(tl.int64) * q_strides[1]
    q_lanes = (q_row + place * q_strides[2])[:, None] + dims[None, :] * q_strides[3]
    q = tl.load(q_lanes, mask=q_inside[:, None], other=0.0)

    # what the pattern needs to know of each query
    row0 = q_n - 8191

    # the tiles of keys to visit
    full_last = (16 * tile + 1) // 64
    first = tl.maximum(full_last - 128, 0)
    end_once2 = (16 * tile + 15) // 64
    full_first = tl.maximum(end_once2 - 127, 0)
    last = end_once2 + 1

    # keys and values
    k_lane = tl.arange(0, BLOCK_K)

    # online softmax: the largest logit (base 2), the sum of weights and the weighted values so far
    peak = tl.full([BLOCK_Q], LOWEST, tl.float32)
    total = tl.zeros([BLOCK_Q], tl.float32)
    acc = tl.zeros([BLOCK_Q, 128], tl.float32)
    scale_log2 = scale * LOG2E

    # full tiles: nothing to mask
    low, high = part_of(full_first * 64, full_last * 64, 64, split, splits)
    for k_n_first in range(low, high, 64):
        keys = k_desc.load([batch, kv_head, k_n_first, 0]).reshape(BLOCK_K, 128)
        values = v_desc.load([batch, kv_head, k_n_first, 0]).reshape(BLOCK_K, 128)
        s = tl.dot(q, tl.trans(keys))
        peak, total, acc = softmax_step(s, values, peak, total, acc, scale_log2)

    # partial tiles, before and after the full ones
    low, high = part_of(first, last - (full_last - full_first), 1, split, splits)
    for at in range(low, high):
        k_n_first = (at + tl.where(at < full_first, 0, full_last - full_first)) * 64
        k_n = k_n_first + k_lane
        keys = k_desc.load([batch, kv_head, k_n_first, 0]).reshape(BLOCK_K, 128)
        values = v_desc.load([batch, kv_head, k_n_first, 0]).reshape(BLOCK_K, 128)
        s = tl.dot(q, tl.trans(keys))
        keep = (k_n[None, :] <= q_n[:, None]) & (row0[:, None] <= k_n[None, :])
        s = tl.where(keep, s, float("-inf"))
        peak, total, acc = softmax_step(s, values, peak, total, acc, scale_log2)

    # where no key is kept, weights of 0: zeros, and a log-sum-exp of minus infinity
    acc = acc / tl.where(total == 0, 1.0, total)[:, None]
    out_row = out_ptr + split.to(tl.int64) * out_strides[0] + batch.to(tl.int64) * out_strides[1]
    out_row += q_head.to(tl.int64) * out_strides[2] + place * out_strides[3]
    out_lanes = out_row[:, None] + dims[None, :] * out_strides[4]
    tl.store(out_lanes, acc.to(out_ptr.dtype.element_ty), mask=q_inside[:, None])
    lse = (peak + tl.log2(total)) * LN2
    lse_row = (split.to(tl.int64) * batches + batch) * HEADS + q_head
    tl.store(lse_ptr + lse_row * count + place, lse, mask=q_inside)


@triton.jit(do_not_specialize=["count", "splits"])
def sliding_window_merge(parts_ptr, part_lse_ptr, out_ptr, lse_ptr, out_strides, count, splits):
    # one query of one head: its output over all keys from those over each part
    row = tl.program_id(0).to(tl.int64)
    split = tl.arange(0, 64)
    at = split.to(tl.int64) * tl.num_programs(0) + row
    lse = tl.load(part_lse_ptr + at, mask=split < splits, other=float("-inf"))
    dims = tl.arange(0, 128)
    there = (split < splits)[:, None]
    parts = tl.load(parts_ptr + (at * 128)[:, None] + dims[None, :], mask=there, other=0.0)
    peak = tl.maximum(tl.max(lse, 0), LOWEST)
    weights = tl.exp(lse - peak)
    total = tl.sum(weights, 0)
    acc = tl.sum(weights[:, None] * parts, 0) / tl.where(total == 0, 1.0, total)
    tl.store(lse_ptr + row, peak + tl.log(total))
    head = row // count
    out_row = out_ptr + head // HEADS * out_strides[0] + head % HEADS * out_strides[1]
    out_row += row % count * out_strides[2]
    tl.store(out_row + dims * out_strides[3], acc.to(out_ptr.dtype.element_ty))


def boxes(x, extents, box):
    """A descriptor of x, (batch, heads, tokens, dim), whose tokens fill `extents` row by row."""
    batch, heads, _, dim = x.shape
    steps = [x.stride(2) * math.prod(extents[i + 1 :]) for i in range(len(extents))]
    shape, strides = (batch, heads, *extents, dim), (x.stride(0), x.stride(1), *steps, 1)
    return TensorDescriptor(x, [*shape], [*strides], [1, 1, *box])


def decode(q, k, v, position, scale, walk, inputs, splits):
    """Attention of q over k and v, (batch, heads, tokens, dim) aligned to 16 bytes.

    position: of the first query. splits: parts that the keys are cut to, at most 64. walk: int
    tensors by name, on q's device (none are needed). inputs: the pattern's, by name.
    Gives out like q, and the natural log-sum-exp, float32 (batch, heads, queries).
    """
    batch, _, count, _ = q.shape
    shape = (batch, HEADS.value, count, 128)
    if q.stride(1) < q.stride(2):  # heads inside tokens
        out = q.new_empty((batch, count, HEADS.value, 128)).transpose(1, 2)
    else:
        out = q.new_empty(shape)
    lse = q.new_empty(shape[:3], dtype=torch.float32)
    if batch == 0:
        return out, lse
    parts, part_lse = out[None], lse
    if splits > 1:
        parts = q.new_empty((splits, *shape), dtype=torch.float32)
        part_lse = q.new_empty((splits, *shape[:3]), dtype=torch.float32)
    first_row = position // 16
    rows = (position + count - 1) // 16 - first_row + 1
    sliding_window_decode[(batch * 8 * rows * splits,)](
        q, boxes(k, (131072,), (64, 128)), boxes(v, (131072,), (64, 128)), parts, part_lse,
        q.stride(), parts.stride(), scale, batch, position, count, first_row, rows, splits,
        **OPTIONS,
    )  # fmt: skip
    if splits > 1:
        sliding_window_merge[(batch * HEADS.value * count,)](
            parts, part_lse, out, lse, out.stride(), count, splits
        )
    return out, lse
