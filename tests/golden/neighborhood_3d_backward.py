# Gradients of attention for the pattern `natten`, emitted by MaskDSL.
#
#     # Each token sees the 6 x 8 x 8 tokens around it.
#     pattern natten(window: int[3])
#     over (t, h, w)
#     keep neighborhood(t, window[0])
#          and neighborhood(h, window[1])
#          and neighborhood(w, window[2])
#
# problem   24 head(s), 30 x 48 x 81 queries, 30 x 48 x 81 keys, head_dim 128, bfloat16
# tiles     2x4x8 queries by 2x8x8 keys
# pairs     1,584 full, 931,392 partial, 46,111,824 empty tiles
# walk      no full tiles; runs of partial tiles
# proved    32 bits hold every int of the pattern, every query keeps a key
# target    sm_90, 8 warps, 2 stages

import torch
import triton
import triton.language as tl

BLOCK_Q = tl.constexpr(64)  # queries of a tile: 2 t x 4 h x 8 w
BLOCK_K = tl.constexpr(128)  # keys of a tile: 2 t x 8 h x 8 w
ROWS = tl.constexpr(1980)  # tiles of queries
COLUMNS = tl.constexpr(990)  # tiles of keys
QUERIES = tl.constexpr(116640)
HEADS = tl.constexpr(24)
LOG2E = tl.constexpr(1.4426950408889634)

# Types of the kernels' pointers, for compilation ahead of time.
POINTERS = {
    "q_ptr": "*bf16",
    "k_ptr": "*bf16",
    "v_ptr": "*bf16",
    "out_ptr": "*bf16",
    "do_ptr": "*bf16",
    "dq_ptr": "*bf16",
    "lse_ptr": "*fp32",
    "grad_lse_ptr": "*fp32",
    "delta_ptr": "*fp32",
    "partial_offsets": "*i32",
    "partial_runs": "*i32",
    "dk_ptr": "*bf16",
    "dv_ptr": "*bf16",
    "key_rows": "*i32",
    "key_partial_offsets": "*i32",
    "key_partial_runs": "*i32",
}
OPTIONS = {"num_warps": 8, "num_stages": 2}


@triton.jit
def natten_dq(
    q_ptr,
    k_ptr,
    v_ptr,
    out_ptr,
    do_ptr,
    dq_ptr,
    lse_ptr,
    grad_lse_ptr,
    delta_ptr,
    q_strides,
    k_strides,
    v_strides,
    out_strides,
    do_strides,
    dq_strides,
    scale,
    partial_offsets,
    partial_runs,
    OFFSETS: tl.constexpr,
):
    # a tile of queries of one head: one head after the other
    program = tl.program_id(0)
    row = program % ROWS
    batch_head = program // ROWS
    batch = batch_head // HEADS
    head = batch_head % HEADS
    tile = row

    # the queries of this tile
    q_lane = tl.arange(0, BLOCK_Q)
    q_t = tile // 132 * 2 + q_lane // 32
    q_h = tile // 11 % 12 * 4 + q_lane // 8 % 4
    q_w = tile % 11 * 8 + q_lane % 8
    q_inside = q_w < 81
    q_token = ((q_t * 48 + q_h) * 81 + q_w).to(tl.int64)
    dims = tl.arange(0, 128).to(OFFSETS)
    q_base = q_ptr + batch.to(tl.int64) * q_strides[0] + head.to(tl.int64) * q_strides[1]
    q_offsets = q_token[:, None] * q_strides[2] + dims[None, :] * q_strides[3]
    q = tl.load(q_base + q_offsets, mask=q_inside[:, None], other=0.0)
    do_base = do_ptr + batch.to(tl.int64) * do_strides[0] + head.to(tl.int64) * do_strides[1]
    do_offsets = q_token[:, None] * do_strides[2] + dims[None, :] * do_strides[3]
    do = tl.load(do_base + do_offsets, mask=q_inside[:, None], other=0.0)
    out_base = out_ptr + batch.to(tl.int64) * out_strides[0] + head.to(tl.int64) * out_strides[1]
    out_offsets = q_token[:, None] * out_strides[2] + dims[None, :] * out_strides[3]
    out = tl.load(out_base + out_offsets, mask=q_inside[:, None], other=0.0)

    # what the pattern needs to know of each query
    row0 = tl.minimum(tl.maximum(0, q_t - 3), 24)
    row1 = row0 + 5
    row2 = tl.minimum(40, tl.maximum(0, q_h - 4))
    row3 = row2 + 7
    row4 = tl.minimum(73, tl.maximum(q_w - 4, 0))
    row5 = row4 + 7

    # of each query: its log-sum-exp (base 2), and what the softmax takes from all its gradients
    lse_row = batch_head.to(tl.int64) * QUERIES + q_token
    lse = tl.load(lse_ptr + lse_row, mask=q_inside, other=0.0) * LOG2E
    delta = tl.sum(do.to(tl.float32) * out.to(tl.float32), 1)
    delta -= tl.load(grad_lse_ptr + lse_row, mask=q_inside, other=0.0)
    tl.store(delta_ptr + lse_row, delta, mask=q_inside)

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

    dq = tl.zeros([BLOCK_Q, 128], tl.float32)
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
            weights = tl.exp2(s * scale_log2 - lse[:, None])
            dp = tl.dot(do, tl.trans(values))
            ds = weights * (dp - delta[:, None])
            ds = tl.where(keep, ds, 0.0)
            dq = tl.dot(ds.to(keys.dtype), keys, dq)
            k_tile += k_step
            v_tile += v_step
            k_w_first += 8

    dq_base = dq_ptr + batch.to(tl.int64) * dq_strides[0] + head.to(tl.int64) * dq_strides[1]
    dq_offsets = q_token[:, None] * dq_strides[2] + dims[None, :] * dq_strides[3]
    dq = (dq * scale).to(dq_ptr.dtype.element_ty)
    tl.store(dq_base + dq_offsets, dq, mask=q_inside[:, None])


@triton.jit
def natten_dkv(
    q_ptr,
    k_ptr,
    v_ptr,
    do_ptr,
    dk_ptr,
    dv_ptr,
    lse_ptr,
    delta_ptr,
    q_strides,
    k_strides,
    v_strides,
    do_strides,
    dk_strides,
    dv_strides,
    scale,
    batch_heads,
    heads_at_once,
    key_rows,
    key_partial_offsets,
    key_partial_runs,
    OFFSETS: tl.constexpr,
):
    # a tile of keys of one head: the longest rows first, for as many heads as the L2 cache holds
    program = tl.program_id(0)
    first_head = program // (COLUMNS * heads_at_once) * heads_at_once
    heads_here = tl.minimum(heads_at_once, batch_heads - first_head)
    row = (program - first_head * COLUMNS) // heads_here
    batch_head = first_head + (program - first_head * COLUMNS) % heads_here
    batch = batch_head // HEADS
    head = batch_head % HEADS
    tile = tl.load(key_rows + row)

    # the keys of this tile
    k_lane = tl.arange(0, BLOCK_K)
    k_t = tile // 66 * 2 + k_lane // 64
    k_h = tile // 11 % 6 * 8 + k_lane // 8 % 8
    k_w = tile % 11 * 8 + k_lane % 8
    k_inside = k_w < 81
    k_token = ((k_t * 48 + k_h) * 81 + k_w).to(tl.int64)
    dims = tl.arange(0, 128).to(OFFSETS)
    k_base = k_ptr + batch.to(tl.int64) * k_strides[0] + head.to(tl.int64) * k_strides[1]
    k_offsets = k_token[:, None] * k_strides[2] + dims[None, :] * k_strides[3]
    keys = tl.load(k_base + k_offsets, mask=k_inside[:, None], other=0.0)
    v_base = v_ptr + batch.to(tl.int64) * v_strides[0] + head.to(tl.int64) * v_strides[1]
    v_offsets = k_token[:, None] * v_strides[2] + dims[None, :] * v_strides[3]
    values = tl.load(v_base + v_offsets, mask=k_inside[:, None], other=0.0)

    # queries and gradients of the output: addresses of a tile's lanes from its first one
    q_lane = tl.arange(0, BLOCK_Q)
    q_lane_t = q_lane // 32
    q_lane_h = q_lane // 8 % 4
    q_lane_w = q_lane % 8
    lane_token = ((q_lane_t * 48 + q_lane_h) * 81 + q_lane_w).to(OFFSETS)
    q_offsets = lane_token[:, None] * q_strides[2] + dims[None, :] * q_strides[3]
    do_offsets = lane_token[:, None] * do_strides[2] + dims[None, :] * do_strides[3]
    q_base = q_ptr + batch.to(tl.int64) * q_strides[0] + head.to(tl.int64) * q_strides[1]
    do_base = do_ptr + batch.to(tl.int64) * do_strides[0] + head.to(tl.int64) * do_strides[1]
    q_step = tl.full((), 8, tl.int64) * q_strides[2]  # from one tile of a run to the next
    do_step = tl.full((), 8, tl.int64) * do_strides[2]

    dk = tl.zeros([BLOCK_K, 128], tl.float32)
    dv = tl.zeros([BLOCK_K, 128], tl.float32)
    scale_log2 = scale * LOG2E
    lse_row = lse_ptr + batch_head.to(tl.int64) * QUERIES
    delta_row = delta_ptr + batch_head.to(tl.int64) * QUERIES

    # partial tiles, run by run
    for run in range(tl.load(key_partial_offsets + row), tl.load(key_partial_offsets + row + 1)):
        first = tl.load(key_partial_runs + 2 * run)
        count = tl.load(key_partial_runs + 2 * run + 1)
        q_t_first = first // 132 * 2
        q_h_first = first // 11 % 12 * 4
        q_w_first = first % 11 * 8
        token = ((q_t_first * 48 + q_h_first) * 81 + q_w_first).to(tl.int64)
        q_tile = q_base + token * q_strides[2]
        do_tile = do_base + token * do_strides[2]
        q_t = q_t_first + q_lane_t
        q_h = q_h_first + q_lane_h
        run0 = tl.minimum(tl.maximum(0, q_t - 3), 24)
        run1 = run0 + 5
        run2 = tl.minimum(40, tl.maximum(0, q_h - 4))
        run3 = run2 + 7
        for _ in range(count):
            q_w = q_w_first + q_lane_w
            q_inside = q_w < 81
            queries_inside = q_inside[:, None]
            q = tl.load(q_tile + q_offsets, mask=queries_inside, other=0.0)
            do = tl.load(do_tile + do_offsets, mask=queries_inside, other=0.0)
            lse = tl.load(lse_row + token + lane_token, mask=q_inside, other=0.0) * LOG2E
            delta = tl.load(delta_row + token + lane_token, mask=q_inside, other=0.0)
            s = tl.dot(keys, tl.trans(q))
            row0 = tl.minimum(73, tl.maximum(q_w - 4, 0))
            row1 = row0 + 7
            keep = run0[None, :] <= k_t[:, None]
            keep &= k_t[:, None] <= run1[None, :]
            keep &= run2[None, :] <= k_h[:, None]
            keep &= k_h[:, None] <= run3[None, :]
            keep &= row0[None, :] <= k_w[:, None]
            keep &= k_w[:, None] <= row1[None, :]
            keep &= q_inside[None, :]
            s = tl.where(keep, s, float("-inf"))
            weights = tl.exp2(s * scale_log2 - lse[None, :])
            dv = tl.dot(weights.to(do.dtype), do, dv)
            dp = tl.dot(values, tl.trans(do))
            ds = weights * (dp - delta[None, :])
            ds = tl.where(keep, ds, 0.0)
            dk = tl.dot(ds.to(q.dtype), q, dk)
            q_tile += q_step
            do_tile += do_step
            token += 8
            q_w_first += 8

    dk_base = dk_ptr + batch.to(tl.int64) * dk_strides[0] + head.to(tl.int64) * dk_strides[1]
    dk_offsets = k_token[:, None] * dk_strides[2] + dims[None, :] * dk_strides[3]
    dk = (dk * scale).to(dk_ptr.dtype.element_ty)
    tl.store(dk_base + dk_offsets, dk, mask=k_inside[:, None])
    dv_base = dv_ptr + batch.to(tl.int64) * dv_strides[0] + head.to(tl.int64) * dv_strides[1]
    dv_offsets = k_token[:, None] * dv_strides[2] + dims[None, :] * dv_strides[3]
    dv = dv.to(dv_ptr.dtype.element_ty)
    tl.store(dv_base + dv_offsets, dv, mask=k_inside[:, None])


def backward(q, k, v, out, lse, do, grad_lse, scale, walk, inputs):
    """Gradients of attention, given those of its output and of its log-sum-exp.

    q, k, v, out, do: (batch, heads, tokens, dim), any strides. lse, grad_lse: float32 (batch,
    heads, queries), contiguous.
    walk: tensors by name, int32, on q's device. inputs: the pattern's, by name.
    Gives dq, dk, dv like q, k, v; delta, float32 (batch, heads, queries), the sum of do * out over
    each row, less grad_lse; and gradients of inputs by name, float32.
    """
    batch = q.shape[0]
    dq, dk, dv = (torch.empty_like(x) for x in (q, k, v))
    delta = torch.empty_like(lse)
    grads = {}
    if batch == 0:
        return dq, dk, dv, delta, grads
    tensors = (q, k, v, out, do, dq, dk, dv)
    reach = max(4462 * x.stride(2) + 127 * x.stride(3) for x in tensors)
    offsets = tl.int32 if reach < 2**31 else tl.int64
    tensors = (q, k, v, out, do, dq)
    natten_dq[(batch * HEADS.value * ROWS.value,)](
        *tensors,
        lse,
        grad_lse,
        delta,
        *(x.stride() for x in tensors),
        scale,
        walk["partial_offsets"],
        walk["partial_runs"],
        OFFSETS=offsets,
        **OPTIONS,
    )
    # as many heads at once as have what they walk in the L2 cache
    head_bytes = 116640 * 256 * k.element_size()
    heads_at_once = min(batch * HEADS.value, max(1, 33554432 // head_bytes))
    tensors = (q, k, v, do, dk, dv)
    natten_dkv[(batch * HEADS.value * COLUMNS.value,)](
        *tensors,
        lse,
        delta,
        *(x.stride() for x in tensors),
        scale,
        batch * HEADS.value,
        heads_at_once,
        walk["key_rows"],
        walk["key_partial_offsets"],
        walk["key_partial_runs"],
        OFFSETS=offsets,
        **OPTIONS,
    )
    return dq, dk, dv, delta, grads
