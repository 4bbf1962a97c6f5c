# Forward attention for the pattern `natten`, emitted by MaskDSL.
#
#     # Each token sees the 6 x 8 x 8 tokens around it.
#     pattern natten(window: int[3])
#     over (t, h, w)
#     keep neighborhood(t, window[0])
#          and neighborhood(h, window[1])
#          and neighborhood(w, window[2])
#
# problem   24 head(s), 30 x 48 x 81 queries, 30 x 48 x 81 keys, head_dim 128, bfloat16
# tiles     2x8x8 queries by 2x8x8 keys
# pairs     0 full, 678,528 partial, 22,843,872 empty tiles
# walk      no full tiles; runs of partial tiles
# proved    32 bits hold every int of the pattern, every query keeps a key
# target    sm_90, 8 warps, 2 stages

import torch
import triton
import triton.language as tl

BLOCK_Q = tl.constexpr(128)  # queries of a tile: 2 t x 8 h x 8 w
BLOCK_K = tl.constexpr(128)  # keys of a tile: 2 t x 8 h x 8 w
ROWS = tl.constexpr(990)  # tiles of queries
QUERIES = tl.constexpr(116640)
HEADS = tl.constexpr(24)
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
    "partial_offsets": "*i32",
    "partial_runs": "*i32",
}
OPTIONS = {"num_warps": 8, "num_stages": 2}


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
def natten_forward(
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
    partial_offsets,
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
    tile = tl.load(rows + row)

    # the queries of this tile
    q_lane = tl.arange(0, BLOCK_Q)
    q_t = tile // 66 * 2 + q_lane // 64
    q_h = tile // 11 % 6 * 8 + q_lane // 8 % 8
    q_w = tile % 11 * 8 + q_lane % 8
    q_inside = q_w < 81
    q_token = ((q_t * 48 + q_h) * 81 + q_w).to(tl.int64)
    dims = tl.arange(0, 128).to(OFFSETS)
    q_base = q_ptr + batch.to(tl.int64) * q_strides[0] + head.to(tl.int64) * q_strides[1]
    q_offsets = q_token[:, None] * q_strides[2] + dims[None, :] * q_strides[3]
    q = tl.load(q_base + q_offsets, mask=q_inside[:, None], other=0.0)

    # what the pattern needs to know of each query
    row0 = tl.minimum(tl.maximum(0, q_t - 3), 24)
    row1 = row0 + 5
    row2 = tl.minimum(40, tl.maximum(0, q_h - 4))
    row3 = row2 + 7
    row4 = tl.minimum(73, tl.maximum(q_w - 4, 0))
    row5 = row4 + 7

    # keys and values: addresses of a tile's lanes from its first one
    k_lane = tl.arange(0, BLOCK_K)
    k_lane_t = k_lane // 64
    k_lane_h = k_lane // 8 % 8
    k_lane_w = k_lane % 8
    lane_token = ((k_lane_t * 48 + k_lane_h) * 81 + k_lane_w).to(OFFSETS)
    k_offsets = lane_token[:, None] * k_strides[2] + dims[None, :] * k_strides[3]
    v_offsets = lane_token[:, None] * v_strides[2] + dims[None, :] * v_strides[3]
    k_base = k_ptr + batch.to(tl.int64) * k_strides[0] + head.to(tl.int64) * k_strides[1]
    v_base = v_ptr + batch.to(tl.int64) * v_strides[0] + head.to(tl.int64) * v_strides[1]
    k_step = tl.full((), 8, tl.int64) * k_strides[2]  # from one tile of a run to the next
    v_step = tl.full((), 8, tl.int64) * v_strides[2]

    # online softmax: the largest logit (base 2), the sum of weights and the weighted values so far
    peak = tl.full([BLOCK_Q], LOWEST, tl.float32)
    total = tl.zeros([BLOCK_Q], tl.float32)
    acc = tl.zeros([BLOCK_Q, 128], tl.float32)
    scale_log2 = scale * LOG2E

    # partial tiles, run by run
    for run in range(tl.load(partial_offsets + row), tl.load(partial_offsets + row + 1)):
        first = tl.load(partial_runs + 2 * run)
        count = tl.load(partial_runs + 2 * run + 1)
        k_t_first = first // 66 * 2
        k_h_first = first // 11 % 6 * 8
        k_w_first = first % 11 * 8
        token = ((k_t_first * 48 + k_h_first) * 81 + k_w_first).to(tl.int64)
        k_tile = k_base + token * k_strides[2]
        v_tile = v_base + token * v_strides[2]
        k_t = k_t_first + k_lane_t
        k_h = k_h_first + k_lane_h
        for _ in range(count):
            k_w = k_w_first + k_lane_w
            k_inside = k_w < 81
            keys_inside = k_inside[:, None]
            keys = tl.load(k_tile + k_offsets, mask=keys_inside, other=0.0)
            values = tl.load(v_tile + v_offsets, mask=keys_inside, other=0.0)
            s = tl.dot(q, tl.trans(keys))
            keep = row0[:, None] <= k_t[None, :]
            keep &= k_t[None, :] <= row1[:, None]
            keep &= row2[:, None] <= k_h[None, :]
            keep &= k_h[None, :] <= row3[:, None]
            keep &= row4[:, None] <= k_w[None, :]
            keep &= k_w[None, :] <= row5[:, None]
            keep &= k_inside[None, :]
            s = tl.where(keep, s, float("-inf"))
            peak, total, acc = softmax_step(s, values, peak, total, acc, scale_log2)
            k_tile += k_step
            v_tile += v_step
            k_w_first += 8

    acc = acc / total[:, None]
    out_base = out_ptr + batch.to(tl.int64) * out_strides[0] + head.to(tl.int64) * out_strides[1]
    out_offsets = q_token[:, None] * out_strides[2] + dims[None, :] * out_strides[3]
    acc = acc.to(out_ptr.dtype.element_ty)
    tl.store(out_base + out_offsets, acc, mask=q_inside[:, None])
    lse = (peak + tl.log2(total)) * LN2
    lse_row = lse_ptr + batch_head.to(tl.int64) * QUERIES
    tl.store(lse_row + q_token, lse, mask=q_inside)


def forward(q, k, v, scale, walk, inputs):
    """Attention of q over k and v, (batch, heads, tokens, dim) tensors with any strides.

    walk: tensors by name, int32, on q's device. inputs: the pattern's, by name.
    Gives out like q, and the natural log-sum-exp, float32 (batch, heads, queries).
    """
    batch = q.shape[0]
    shape = (batch, HEADS.value, QUERIES.value, 128)
    if q.stride(1) < q.stride(2):  # heads inside tokens
        out = q.new_empty((shape[0], shape[2], shape[1], shape[3])).transpose(1, 2)
    else:
        out = q.new_empty(shape)
    lse = q.new_empty(shape[:3], dtype=torch.float32)
    if batch == 0:
        return out, lse
    # as many heads at once as have their keys and values in the L2 cache
    head_bytes = 116640 * 256 * k.element_size()
    heads_at_once = min(batch * HEADS.value, max(1, 33554432 // head_bytes) * 1)
    reach = max(4462 * x.stride(2) + 127 * x.stride(3) for x in (q, k, v))
    tensors = (q, k, v, out)
    natten_forward[(batch * HEADS.value * ROWS.value,)](
        *tensors,
        lse,
        *(x.stride() for x in tensors),
        scale,
        batch * HEADS.value,
        heads_at_once,
        walk["rows"],
        walk["partial_offsets"],
        walk["partial_runs"],
        OFFSETS=tl.int32 if reach < 2**31 else tl.int64,
        **OPTIONS,
    )
    return out, lse
