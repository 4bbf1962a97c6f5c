# Forward attention for the pattern `causal`, emitted by MaskDSL.
#
#     pattern causal
#     over (n)
#     keep causal(n)
#
# problem   32 head(s) on 8 of keys, 16,384 queries, 16,384 keys, head_dim 64, bfloat16
# tiles     128 queries by 128 keys
# pairs     260,096 full, 4,096 partial, 260,096 empty tiles
# walk      one run a row of full tiles; one run a row of partial tiles
# proved    tiles divide the extents, 32 bits hold every int of the pattern, every query keeps a key
# target    sm_90, 8 warps, 3 stages

import torch
import triton
import triton.language as tl

BLOCK_Q = tl.constexpr(128)  # queries of a tile
BLOCK_K = tl.constexpr(128)  # keys of a tile
ROWS = tl.constexpr(128)  # tiles of queries
QUERIES = tl.constexpr(16384)
HEADS = tl.constexpr(32)
GROUP = tl.constexpr(4)  # query heads that share a key head
LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
LOWEST = tl.constexpr(-3.4028234663852886e38)  # of float32: no logit lies lower, and it is finite

# Types of the kernel's pointers, for compilation ahead of time.
POINTERS = {
    "q_ptr": "*bf16",
    "k_ptr": "*bf16",
    "v_ptr": "*bf16",
    "out_ptr": "*bf16",
    "lse_ptr": "*fp32",
    "rows": "*i32",
    "full_runs": "*i32",
    "partial_runs": "*i32",
}
OPTIONS = {"num_warps": 8, "num_stages": 3}


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
def causal_forward(
    q_ptr,
    k_ptr,
    v_ptr,
    out_ptr,
    lse_ptr,
    q_strides,
    k_strides,
    v_strides,
    out_strides,
    scale,
    batch_heads,
    heads_at_once,
    rows,
    full_runs,
    partial_runs,
    OFFSETS: tl.constexpr,
):
    # a tile of queries of one head: the longest rows first, for as many heads as the L2 cache holds
    program = tl.program_id(0)
    first_head = program // (ROWS * heads_at_once) * heads_at_once
    heads_here = tl.minimum(heads_at_once, batch_heads - first_head)
    row = (program - first_head * ROWS) // heads_here
    batch_head = first_head + (program - first_head * ROWS) % heads_here
    batch = batch_head // HEADS
    head = batch_head % HEADS
    kv_head = head // GROUP
    tile = tl.load(rows + row)

    # the queries of this tile
    q_lane = tl.arange(0, BLOCK_Q)
    q_n = tile * 128 + q_lane
    q_token = q_n.to(tl.int64)
    dims = tl.arange(0, 64).to(OFFSETS)
    q_base = q_ptr + batch.to(tl.int64) * q_strides[0] + head.to(tl.int64) * q_strides[1]
    q_offsets = q_token[:, None] * q_strides[2] + dims[None, :] * q_strides[3]
    q = tl.load(q_base + q_offsets)

    # keys and values: addresses of a tile's lanes from its first one
    k_lane = tl.arange(0, BLOCK_K)
    lane_token = k_lane.to(OFFSETS)
    k_offsets = lane_token[:, None] * k_strides[2] + dims[None, :] * k_strides[3]
    v_offsets = lane_token[:, None] * v_strides[2] + dims[None, :] * v_strides[3]
    k_base = k_ptr + batch.to(tl.int64) * k_strides[0] + kv_head.to(tl.int64) * k_strides[1]
    v_base = v_ptr + batch.to(tl.int64) * v_strides[0] + kv_head.to(tl.int64) * v_strides[1]
    k_step = tl.full((), 128, tl.int64) * k_strides[2]  # from one tile of a run to the next
    v_step = tl.full((), 128, tl.int64) * v_strides[2]

    # online softmax: the largest logit (base 2), the sum of weights and the weighted values so far
    peak = tl.full([BLOCK_Q], LOWEST, tl.float32)
    total = tl.zeros([BLOCK_Q], tl.float32)
    acc = tl.zeros([BLOCK_Q, 64], tl.float32)
    scale_log2 = scale * LOG2E

    # full tiles, one run: nothing to mask
    first = tl.load(full_runs + 2 * row)
    count = tl.load(full_runs + 2 * row + 1)
    k_n_first = first * 128
    token = k_n_first.to(tl.int64)
    k_tile = k_base + token * k_strides[2]
    v_tile = v_base + token * v_strides[2]
    for _ in range(count):
        keys = tl.load(k_tile + k_offsets)
        values = tl.load(v_tile + v_offsets)
        s = tl.dot(q, tl.trans(keys))
        peak, total, acc = softmax_step(s, values, peak, total, acc, scale_log2)
        k_tile += k_step
        v_tile += v_step

    # partial tiles, one run
    first = tl.load(partial_runs + 2 * row)
    count = tl.load(partial_runs + 2 * row + 1)
    k_n_first = first * 128
    token = k_n_first.to(tl.int64)
    k_tile = k_base + token * k_strides[2]
    v_tile = v_base + token * v_strides[2]
    for _ in range(count):
        k_n = k_n_first + k_lane
        keys = tl.load(k_tile + k_offsets)
        values = tl.load(v_tile + v_offsets)
        s = tl.dot(q, tl.trans(keys))
        keep = k_n[None, :] <= q_n[:, None]
        s = tl.where(keep, s, float("-inf"))
        peak, total, acc = softmax_step(s, values, peak, total, acc, scale_log2)
        k_tile += k_step
        v_tile += v_step
        k_n_first += 128

    acc = acc / total[:, None]
    out_base = out_ptr + batch.to(tl.int64) * out_strides[0] + head.to(tl.int64) * out_strides[1]
    out_offsets = q_token[:, None] * out_strides[2] + dims[None, :] * out_strides[3]
    acc = acc.to(out_ptr.dtype.element_ty)
    tl.store(out_base + out_offsets, acc)
    lse = (peak + tl.log2(total)) * LN2
    lse_row = lse_ptr + batch_head.to(tl.int64) * QUERIES
    tl.store(lse_row + q_token, lse)


def forward(q, k, v, scale, walk, inputs):
    """Attention of q over k and v, (batch, heads, tokens, dim) tensors with any strides.

    walk: tensors by name, int32, on q's device. inputs: the pattern's, by name.
    Gives out like q, and the natural log-sum-exp, float32 (batch, heads, queries).
    """
    batch = q.shape[0]
    shape = (batch, HEADS.value, QUERIES.value, 64)
    if q.stride(1) < q.stride(2):  # heads inside tokens
        out = q.new_empty((shape[0], shape[2], shape[1], shape[3])).transpose(1, 2)
    else:
        out = q.new_empty(shape)
    lse = q.new_empty(shape[:3], dtype=torch.float32)
    if batch == 0:
        return out, lse
    # as many heads at once as have their keys and values in the L2 cache
    head_bytes = 16384 * 128 * k.element_size()
    heads_at_once = min(batch * HEADS.value, max(1, 33554432 // head_bytes) * 4)
    reach = max(127 * x.stride(2) + 63 * x.stride(3) for x in (q, k, v))
    tensors = (q, k, v, out)
    causal_forward[(batch * HEADS.value * ROWS.value,)](
        *tensors,
        lse,
        *(x.stride() for x in tensors),
        scale,
        batch * HEADS.value,
        heads_at_once,
        walk["rows"],
        walk["full_runs"],
        walk["partial_runs"],
        OFFSETS=tl.int32 if reach < 2**31 else tl.int64,
        **OPTIONS,
    )
    return out, lse
