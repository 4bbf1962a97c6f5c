# Gradients of attention for the pattern `causal`, emitted by MaskDSL.
#
#     pattern causal
#     over (n)
#     keep causal(n)
#
# problem   32 head(s) on 8 of keys, 16,384 queries, 16,384 keys, head_dim 64, bfloat16
# tiles     64 queries by 128 keys
# pairs     520,192 full, 8,192 partial, 520,192 empty tiles
# walk      one run a row of full tiles; one run a row of partial tiles
# proved    tiles divide the extents, 32 bits hold every int of the pattern, every query keeps a key
# target    sm_90, 8 warps, 2 stages

import torch
import triton
import triton.language as tl

BLOCK_Q = tl.constexpr(64)  # queries of a tile
BLOCK_K = tl.constexpr(128)  # keys of a tile
ROWS = tl.constexpr(256)  # tiles of queries
COLUMNS = tl.constexpr(128)  # tiles of keys
QUERIES = tl.constexpr(16384)
HEADS = tl.constexpr(32)
KV_HEADS = tl.constexpr(8)
GROUP = tl.constexpr(4)  # query heads that share a key head
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
    "rows": "*i32",
    "full_runs": "*i32",
    "partial_runs": "*i32",
    "dk_ptr": "*bf16",
    "dv_ptr": "*bf16",
    "key_full_runs": "*i32",
    "key_partial_runs": "*i32",
}
OPTIONS = {"num_warps": 8, "num_stages": 2}


@triton.jit
def causal_dq(
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
    q_n = tile * 64 + q_lane
    q_token = q_n.to(tl.int64)
    dims = tl.arange(0, 64).to(OFFSETS)
    q_base = q_ptr + batch.to(tl.int64) * q_strides[0] + head.to(tl.int64) * q_strides[1]
    q_offsets = q_token[:, None] * q_strides[2] + dims[None, :] * q_strides[3]
    q = tl.load(q_base + q_offsets)
    do_base = do_ptr + batch.to(tl.int64) * do_strides[0] + head.to(tl.int64) * do_strides[1]
    do_offsets = q_token[:, None] * do_strides[2] + dims[None, :] * do_strides[3]
    do = tl.load(do_base + do_offsets)
    out_base = out_ptr + batch.to(tl.int64) * out_strides[0] + head.to(tl.int64) * out_strides[1]
    out_offsets = q_token[:, None] * out_strides[2] + dims[None, :] * out_strides[3]
    out = tl.load(out_base + out_offsets)

    # of each query: its log-sum-exp (base 2), and what the softmax takes from all its gradients
    lse_row = batch_head.to(tl.int64) * QUERIES + q_token
    lse = tl.load(lse_ptr + lse_row) * LOG2E
    delta = tl.sum(do.to(tl.float32) * out.to(tl.float32), 1)
    delta -= tl.load(grad_lse_ptr + lse_row)
    tl.store(delta_ptr + lse_row, delta)

    # keys and values: addresses of a tile's lanes from its first one
    k_lane = tl.arange(0, BLOCK_K)
    lane_token = k_lane.to(OFFSETS)
    k_offsets = lane_token[:, None] * k_strides[2] + dims[None, :] * k_strides[3]
    v_offsets = lane_token[:, None] * v_strides[2] + dims[None, :] * v_strides[3]
    k_base = k_ptr + batch.to(tl.int64) * k_strides[0] + kv_head.to(tl.int64) * k_strides[1]
    v_base = v_ptr + batch.to(tl.int64) * v_strides[0] + kv_head.to(tl.int64) * v_strides[1]
    k_step = tl.full((), 128, tl.int64) * k_strides[2]  # from one tile of a run to the next
    v_step = tl.full((), 128, tl.int64) * v_strides[2]

    dq = tl.zeros([BLOCK_Q, 64], tl.float32)
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
        weights = tl.exp2(s * scale_log2 - lse[:, None])
        dp = tl.dot(do, tl.trans(values))
        ds = weights * (dp - delta[:, None])
        dq = tl.dot(ds.to(keys.dtype), keys, dq)
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
        weights = tl.exp2(s * scale_log2 - lse[:, None])
        dp = tl.dot(do, tl.trans(values))
        ds = weights * (dp - delta[:, None])
        ds = tl.where(keep, ds, 0.0)
        dq = tl.dot(ds.to(keys.dtype), keys, dq)
        k_tile += k_step
        v_tile += v_step
        k_n_first += 128

    dq_base = dq_ptr + batch.to(tl.int64) * dq_strides[0] + head.to(tl.int64) * dq_strides[1]
    dq_offsets = q_token[:, None] * dq_strides[2] + dims[None, :] * dq_strides[3]
    dq = (dq * scale).to(dq_ptr.dtype.element_ty)
    tl.store(dq_base + dq_offsets, dq)


@triton.jit
def causal_dkv(
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
    key_full_runs,
    key_partial_runs,
    OFFSETS: tl.constexpr,
):
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
    k_lane = tl.arange(0, BLOCK_K)
    k_n = tile * 128 + k_lane
    k_token = k_n.to(tl.int64)
    dims = tl.arange(0, 64).to(OFFSETS)
    k_base = k_ptr + batch.to(tl.int64) * k_strides[0] + kv_head.to(tl.int64) * k_strides[1]
    k_offsets = k_token[:, None] * k_strides[2] + dims[None, :] * k_strides[3]
    keys = tl.load(k_base + k_offsets)
    v_base = v_ptr + batch.to(tl.int64) * v_strides[0] + kv_head.to(tl.int64) * v_strides[1]
    v_offsets = k_token[:, None] * v_strides[2] + dims[None, :] * v_strides[3]
    values = tl.load(v_base + v_offsets)

    # queries and gradients of the output: addresses of a tile's lanes from its first one
    q_lane = tl.arange(0, BLOCK_Q)
    lane_token = q_lane.to(OFFSETS)
    q_offsets = lane_token[:, None] * q_strides[2] + dims[None, :] * q_strides[3]
    do_offsets = lane_token[:, None] * do_strides[2] + dims[None, :] * do_strides[3]
    q_step = tl.full((), 64, tl.int64) * q_strides[2]  # from one tile of a run to the next
    do_step = tl.full((), 64, tl.int64) * do_strides[2]

    dk = tl.zeros([BLOCK_K, 64], tl.float32)
    dv = tl.zeros([BLOCK_K, 64], tl.float32)
    scale_log2 = scale * LOG2E

    # the gradients of a key sum over the heads of queries that share it
    for member in range(GROUP):
        head = kv_head * GROUP + member
        q_base = q_ptr + batch.to(tl.int64) * q_strides[0] + head.to(tl.int64) * q_strides[1]
        do_base = do_ptr + batch.to(tl.int64) * do_strides[0] + head.to(tl.int64) * do_strides[1]
        lse_row = lse_ptr + (batch_head * GROUP + member).to(tl.int64) * QUERIES
        delta_row = delta_ptr + (batch_head * GROUP + member).to(tl.int64) * QUERIES

        # full tiles, one run: nothing to mask
        first = tl.load(key_full_runs + 2 * row)
        count = tl.load(key_full_runs + 2 * row + 1)
        q_n_first = first * 64
        token = q_n_first.to(tl.int64)
        q_tile = q_base + token * q_strides[2]
        do_tile = do_base + token * do_strides[2]
        for _ in range(count):
            q = tl.load(q_tile + q_offsets)
            do = tl.load(do_tile + do_offsets)
            lse = tl.load(lse_row + token + lane_token) * LOG2E
            delta = tl.load(delta_row + token + lane_token)
            s = tl.dot(keys, tl.trans(q))
            weights = tl.exp2(s * scale_log2 - lse[None, :])
            dv = tl.dot(weights.to(do.dtype), do, dv)
            dp = tl.dot(values, tl.trans(do))
            ds = weights * (dp - delta[None, :])
            dk = tl.dot(ds.to(q.dtype), q, dk)
            q_tile += q_step
            do_tile += do_step
            token += 64

        # partial tiles, one run
        first = tl.load(key_partial_runs + 2 * row)
        count = tl.load(key_partial_runs + 2 * row + 1)
        q_n_first = first * 64
        token = q_n_first.to(tl.int64)
        q_tile = q_base + token * q_strides[2]
        do_tile = do_base + token * do_strides[2]
        for _ in range(count):
            q_n = q_n_first + q_lane
            q = tl.load(q_tile + q_offsets)
            do = tl.load(do_tile + do_offsets)
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
            q_tile += q_step
            do_tile += do_step
            token += 64
            q_n_first += 64

    dk_base = dk_ptr + batch.to(tl.int64) * dk_strides[0] + kv_head.to(tl.int64) * dk_strides[1]
    dk_offsets = k_token[:, None] * dk_strides[2] + dims[None, :] * dk_strides[3]
    dk = (dk * scale).to(dk_ptr.dtype.element_ty)
    tl.store(dk_base + dk_offsets, dk)
    dv_base = dv_ptr + batch.to(tl.int64) * dv_strides[0] + kv_head.to(tl.int64) * dv_strides[1]
    dv_offsets = k_token[:, None] * dv_strides[2] + dims[None, :] * dv_strides[3]
    dv = dv.to(dv_ptr.dtype.element_ty)
    tl.store(dv_base + dv_offsets, dv)


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
    reach = max(127 * x.stride(2) + 63 * x.stride(3) for x in tensors)
    offsets = tl.int32 if reach < 2**31 else tl.int64
    # as many heads at once as have what they walk in the L2 cache
    head_bytes = 16384 * 128 * k.element_size()
    heads_at_once = min(batch * HEADS.value, max(1, 33554432 // head_bytes) * 4)
    tensors = (q, k, v, out, do, dq)
    causal_dq[(batch * HEADS.value * ROWS.value,)](
        *tensors,
        lse,
        grad_lse,
        delta,
        *(x.stride() for x in tensors),
        scale,
        batch * HEADS.value,
        heads_at_once,
        walk["rows"],
        walk["full_runs"],
        walk["partial_runs"],
        OFFSETS=offsets,
        **OPTIONS,
    )
    # as many heads at once as have what they walk in the L2 cache
    head_bytes = 65536 * 128 * k.element_size()
    heads_at_once = min(batch * KV_HEADS.value, max(1, 33554432 // head_bytes))
    tensors = (q, k, v, do, dk, dv)
    causal_dkv[(batch * KV_HEADS.value * COLUMNS.value,)](
        *tensors,
        lse,
        delta,
        *(x.stride() for x in tensors),
        scale,
        batch * KV_HEADS.value,
        heads_at_once,
        walk["key_full_runs"],
        walk["key_partial_runs"],
        OFFSETS=offsets,
        **OPTIONS,
    )
    return dq, dk, dv, delta, grads
