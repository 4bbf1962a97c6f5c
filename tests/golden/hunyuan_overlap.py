# Forward attention for the pattern `v`, emitted by MaskDSL.
#
#     pattern v over (t, h, w) keep neighborhood(t, 18) and neighborhood(h, 24) and neighborhood(w, 24)
#
# problem   24 head(s), 30 x 48 x 80 queries, 30 x 48 x 80 keys, head_dim 128, bfloat16
# tiles     2x8x8 queries by 2x8x8 keys
# pairs     594,432 full, 2,979,072 partial, 15,866,496 empty tiles
# walk      full and partial tiles from a list
# proved    tiles divide the extents, 32 bits hold every int of the pattern, every query keeps a key
# target    sm_90, 8 warps, 2 stages

import math

import torch
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia import hopper
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, tma
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

BLOCK_Q = gl.constexpr(128)  # queries of a tile: 2 t x 8 h x 8 w
BLOCK_K = gl.constexpr(128)  # keys of a tile: 2 t x 8 h x 8 w
ROWS = gl.constexpr(900)  # tiles of queries
STAGES = gl.constexpr(2)  # tiles of keys in shared memory
QUERIES = gl.constexpr(115200)
HEADS = gl.constexpr(24)
LOG2E = gl.constexpr(1.4426950408889634)
LN2 = gl.constexpr(0.6931471805599453)
LOWEST = gl.constexpr(-3.4028234663852886e38)  # of float32: no logit lies lower, and it is finite

# Types of the kernels' pointers and descriptors, and the launch options.
TYPES = {
    "q_desc": "tensordesc<bf16[1, 2, 8, 8, 128],NVMMASharedLayout(128, 16, rank=5)>",
    "k_desc": "tensordesc<bf16[1, 2, 8, 8, 128],NVMMASharedLayout(128, 16, rank=5)>",
    "v_desc": "tensordesc<bf16[1, 2, 8, 8, 128],NVMMASharedLayout(128, 16, rank=5)>",
    "out_desc": "tensordesc<bf16[1, 2, 8, 8, 128],NVMMASharedLayout(128, 16, rank=5)>",
    "lse_ptr": "*fp32", "rows": "*i32", "full_starts": "*i32", "full_tiles": "*i32",
    "partial_starts": "*i32", "partial_tiles": "*i32",
}  # fmt: skip
OPTIONS = {"num_warps": 8}

# How threads hold scores and output, as products give them, and weights, as they take them.
ELEMENT = gl.constexpr(gl.bfloat16)
SCORES = gl.constexpr(gl.NVMMADistributedLayout([3, 0], [8, 1], [16, 128, 16]))
OUTPUT = gl.constexpr(gl.NVMMADistributedLayout([3, 0], [8, 1], [16, 128, 16]))
WEIGHTS = gl.constexpr(gl.DotOperandLayout(0, OUTPUT, k_width=2))
OF_QUERIES = gl.constexpr(gl.SliceLayout(1, SCORES))
OF_KEYS = gl.constexpr(gl.SliceLayout(0, SCORES))


@gluon.jit
def key_tile(number, visits):
    """First coordinates of the row's tile of keys of this number: full tiles, then partial ones."""
    tiles, full, full_tiles, partial_tiles = visits
    at = gl.where(number < full, full_tiles, partial_tiles) + number
    k_first = gl.load(at, mask=number < tiles, other=0)
    k_t_first = k_first >> 13
    k_h_first = k_first >> 7 & 63
    k_w_first = k_first & 127
    return k_t_first, k_h_first, k_w_first


@gluon.jit
def copy(desc, ring, copied, number, visits, batch_head):
    """Start the copy of the row's tile of this number, if there is one, into its slot."""
    k_t_first, k_h_first, k_w_first = key_tile(number, visits)
    slot, wanted = number % STAGES, number < visits[0]
    place = [batch_head, k_t_first, k_h_first, k_w_first, 0]
    mbarrier.expect(copied.index(slot), desc.block_type.nbytes, wanted)
    tma.async_copy_global_to_shared(desc, place, copied.index(slot), ring.index(slot), wanted)


@gluon.jit
def wait(copied, number, visits):
    """Until that tile has come: the slot's barrier turns once for each tile, from phase 0 to 1."""
    phase = number // STAGES & 1
    mbarrier.wait(copied.index(number % STAGES), phase, number < visits[0])


@gluon.jit
def products(q, keys, number):
    """Start the products of queries and a tile of keys."""
    tile = keys.index(number % STAGES).reshape([BLOCK_K, 128]).permute((1, 0))
    zeros = gl.zeros([BLOCK_Q, BLOCK_K], gl.float32, layout=SCORES)
    return hopper.warpgroup_mma(q, tile, zeros, use_acc=False, is_async=True)


@gluon.jit
def weighted(weights, values, number, acc):
    """Start adding a tile's values, weighted, to the output."""
    tile = values.index(number % STAGES).reshape([BLOCK_K, 128])
    return hopper.warpgroup_mma(weights, tile, acc, is_async=True)


@gluon.jit
def masked(s, number, visits, known):
    """The products of a tile, minus infinity where the pattern keeps nothing."""
    row0, row1, row2, row3, row4, row5 = known
    k_t_first, k_h_first, k_w_first = key_tile(number, visits)
    # keys and values
    k_lane = gl.arange(0, BLOCK_K, layout=OF_KEYS)
    k_lane_t = k_lane // 64
    k_lane_h = k_lane // 8 % 8
    k_lane_w = k_lane % 8
    k_t = k_t_first + k_lane_t
    k_h = k_h_first + k_lane_h
    k_w = k_w_first + k_lane_w
    keep = row0[:, None] <= k_t[None, :]
    keep &= k_t[None, :] <= row1[:, None]
    keep &= row2[:, None] <= k_h[None, :]
    keep &= k_h[None, :] <= row3[:, None]
    keep &= row4[:, None] <= k_w[None, :]
    keep &= k_w[None, :] <= row5[:, None]
    return gl.where(keep, s, float("-inf"))


@gluon.jit
def softmax(s, peak, total, scale_log2):
    """The weights of a tile, what shrinks the sums so far, the new largest logit and sum."""
    new = gl.maximum(peak, gl.max(s, 1) * scale_log2)
    weights = gl.exp2(s * scale_log2 - new[:, None])
    shrink = gl.exp2(peak - new)
    total = total * shrink + gl.sum(weights, 1)
    weights = gl.convert_layout(weights.to(ELEMENT), WEIGHTS)
    return weights, gl.convert_layout(shrink, gl.SliceLayout(1, OUTPUT)), new, total


@gluon.jit
def v_forward(
    q_desc, k_desc, v_desc, out_desc, lse_ptr, scale, batch_heads, heads_at_once, rows, full_starts,
    full_tiles, partial_starts, partial_tiles,
):  # fmt: skip
    # a tile of queries of one head: the longest rows first, for as many heads as the L2 cache holds
    program = gl.program_id(0)
    first_head = program // (ROWS * heads_at_once) * heads_at_once
    heads_here = gl.minimum(heads_at_once, batch_heads - first_head)
    row = (program - first_head * ROWS) // heads_here
    batch_head = first_head + (program - first_head * ROWS) % heads_here
    tile = gl.load(rows + row)

    # the queries of this tile
    q_t_first = tile // 60 * 2
    q_h_first = tile // 10 % 6 * 8
    q_w_first = tile % 10 * 8
    q_lane = gl.arange(0, BLOCK_Q, layout=OF_QUERIES)
    q_t = q_t_first + q_lane // 64
    q_h = q_h_first + q_lane // 8 % 8
    q_w = q_w_first + q_lane % 8
    q_token = ((q_t * 48 + q_h) * 80 + q_w).to(gl.int64)

    # the tiles of keys to visit, by number
    full_start = gl.load(full_starts + row)
    full = gl.load(full_starts + row + 1) - full_start
    full_tiles += full_start
    partial_start = gl.load(partial_starts + row)
    partial = gl.load(partial_starts + row + 1) - partial_start
    partial_tiles += partial_start
    partial_tiles -= full
    tiles = full + partial
    visits = (tiles, full, full_tiles, partial_tiles)

    # Rings of STAGES slots: keys are copied STAGES tiles ahead; values, used a turn later, one less
    q_box = gl.allocate_shared_memory(ELEMENT, [1, 2, 8, 8, 128], q_desc.layout)
    keys = gl.allocate_shared_memory(ELEMENT, [STAGES, 1, 2, 8, 8, 128], k_desc.layout)
    values = gl.allocate_shared_memory(ELEMENT, [STAGES, 1, 2, 8, 8, 128], v_desc.layout)
    q_copied = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    keys_copied = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    values_copied = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    mbarrier.init(q_copied, count=1)
    for slot in gl.static_range(STAGES):
        mbarrier.init(keys_copied.index(slot), count=1)
        mbarrier.init(values_copied.index(slot), count=1)
    q_place = [batch_head, q_t_first, q_h_first, q_w_first, 0]
    mbarrier.expect(q_copied, q_desc.block_type.nbytes)
    tma.async_copy_global_to_shared(q_desc, q_place, q_copied, q_box)
    for slot in gl.static_range(STAGES):
        copy(k_desc, keys, keys_copied, slot, visits, batch_head)
        if slot + 1 < STAGES:
            copy(v_desc, values, values_copied, slot, visits, batch_head)

    # what the pattern needs to know of each query
    row0 = gl.minimum(gl.maximum(0, q_t - 9), 12)
    row1 = row0 + 17
    row2 = gl.minimum(gl.maximum(0, q_h - 12), 24)
    row3 = row2 + 23
    row4 = gl.minimum(56, gl.maximum(q_w - 12, 0))
    row5 = row4 + 23
    known = (row0, row1, row2, row3, row4, row5)

    # online softmax: the largest logit (base 2), the sum of weights and the weighted values so far
    peak = gl.full([BLOCK_Q], LOWEST, gl.float32, layout=OF_QUERIES)
    total = gl.zeros([BLOCK_Q], gl.float32, layout=OF_QUERIES)
    acc = gl.zeros([BLOCK_Q, 128], gl.float32, layout=OUTPUT)
    scale_log2 = scale * LOG2E
    mbarrier.wait(q_copied, 0)
    q = q_box.reshape([BLOCK_Q, 128])

    # the first tile's weights; the mask of a full tile keeps all
    wait(keys_copied, 0, visits)
    s = hopper.warpgroup_mma_wait(0, deps=[products(q, keys, 0)])
    s = masked(s, 0, visits, known)
    weights, _, peak, total = softmax(s, peak, total, scale_log2)
    wait(keys_copied, 1, visits)

    # Each turn starts the products of tile i and adds the values of tile i - 1. It waits for the
    # products alone, so that exponentials are taken while the tensor cores add. The wait for the
    # next keys is a branch: across it the compiler does not move the wait for the sum any earlier.
    for MASKED in gl.static_range(2):  # full tiles: nothing to mask; then partial tiles
        low, high = (gl.maximum(full, 1), tiles) if MASKED else (1, full)
        for i in range(low, high):
            scores = products(q, keys, i)
            wait(values_copied, i - 1, visits)
            output = weighted(weights, values, i - 1, acc)
            # the slots of keys i - 1 and of values i - 2, which the turn before has waited for
            copy(k_desc, keys, keys_copied, i - 1 + STAGES, visits, batch_head)
            copy(v_desc, values, values_copied, i - 2 + STAGES, visits, batch_head)
            s = hopper.warpgroup_mma_wait(1, deps=[scores])
            if MASKED:
                s = masked(s, i, visits, known)
            next_weights, shrink, peak, total = softmax(s, peak, total, scale_log2)
            wait(keys_copied, i + 1, visits)
            acc, weights = hopper.warpgroup_mma_wait(0, deps=[output, next_weights])
            acc = acc * shrink[:, None]

    # the last tile's values
    wait(values_copied, tiles - 1, visits)
    acc = hopper.warpgroup_mma_wait(0, deps=[weighted(weights, values, tiles - 1, acc)])

    lse = (peak + gl.log2(total)) * LN2
    lse_row = lse_ptr + batch_head.to(gl.int64) * QUERIES
    gl.store(lse_row + q_token, lse)
    acc = acc / gl.convert_layout(total, gl.SliceLayout(1, OUTPUT))[:, None]
    q.store(acc.to(ELEMENT))  # over the queries, whose products are done
    hopper.fence_async_shared()
    tma.async_copy_shared_to_global(out_desc, q_place, q_box)
    tma.store_wait(0)


def boxes(x, extents, box):
    """A descriptor of x, (batch, heads, tokens, dim), whose tokens fill `extents` row by row."""
    batch, heads, _, dim = x.shape
    steps = [x.stride(2) * math.prod(extents[i + 1 :]) for i in range(len(extents))]
    shape, strides = (batch * heads, *extents, dim), (x.stride(1), *steps, 1)
    block = [1, *box]
    layout = gl.NVMMASharedLayout(128, 16, rank=len(block))  # swizzled, 128 bytes at a time
    return TensorDescriptor(x, [*shape], [*strides], block, layout)


def forward(q, k, v, scale, walk, inputs):
    """Attention of q over k and v, (batch, heads, tokens, dim) tensors aligned to 16 bytes.

    walk: int tensors by name, on q's device. inputs: the pattern's, by name.
    Gives out like q, and the natural log-sum-exp, float32 (batch, heads, queries).
    """
    batch = q.shape[0]
    shape = (batch, HEADS.value, QUERIES.value)
    order = sorted(range(3), key=lambda i: -q.stride(i))  # out lies in memory as q does
    out = q.new_empty([*(shape[i] for i in order), 128])
    out = out.permute(*(order.index(i) for i in range(3)), 3)
    lse = q.new_empty(shape, dtype=torch.float32)
    if batch == 0:
        return out, lse
    # as many heads at once as have what they walk in the L2 cache
    head_bytes = 115200 * 256 * k.element_size()
    heads_at_once = min(batch * HEADS.value, max(1, 33554432 // head_bytes))
    v_forward[(batch * HEADS.value * ROWS.value,)](
        boxes(q, (30, 48, 80), (2, 8, 8, 128)), boxes(k, (30, 48, 80), (2, 8, 8, 128)),
        boxes(v, (30, 48, 80), (2, 8, 8, 128)), boxes(out, (30, 48, 80), (2, 8, 8, 128)), lse,
        scale, batch * HEADS.value, heads_at_once, walk["rows"], walk["full_starts"],
        walk["full_tiles"], walk["partial_starts"], walk["partial_tiles"], **OPTIONS,
    )  # fmt: skip
    return out, lse
