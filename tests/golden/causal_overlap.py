# Forward attention for the pattern `causal`, emitted by MaskDSL.
#
#     pattern causal over (n) keep causal(n)
#
# problem   16 head(s), 16,384 queries, 16,384 keys, head_dim 128, bfloat16
# tiles     128 queries by 128 keys
# pairs     130,048 full, 2,048 partial, 130,048 empty tiles
# walk      full and partial tiles worked out from the tile's number
# proved    tiles divide the extents, 32 bits hold every int of the pattern, every query keeps a key
# target    sm_90, 8 warps, 2 stages

import math

import torch
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia import hopper
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, tma
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

BLOCK_Q = gl.constexpr(128)  # queries of a tile
BLOCK_K = gl.constexpr(128)  # keys of a tile
ROWS = gl.constexpr(128)  # tiles of queries
STAGES = gl.constexpr(2)  # tiles of keys in shared memory
QUERIES = gl.constexpr(16384)
HEADS = gl.constexpr(16)
LOG2E = gl.constexpr(1.4426950408889634)
LN2 = gl.constexpr(0.6931471805599453)
LOWEST = gl.constexpr(-3.4028234663852886e38)  # of float32: no logit lies lower, and it is finite

# Types of the kernels' pointers and descriptors, and the launch options.
TYPES = {
    "q_desc": "tensordesc<bf16[1, 1, 128, 128],NVMMASharedLayout(128, 16, rank=4)>",
    "k_desc": "tensordesc<bf16[1, 1, 128, 128],NVMMASharedLayout(128, 16, rank=4)>",
    "v_desc": "tensordesc<bf16[1, 1, 128, 128],NVMMASharedLayout(128, 16, rank=4)>",
    "out_desc": "tensordesc<bf16[1, 1, 128, 128],NVMMASharedLayout(128, 16, rank=4)>",
    "lse_ptr": "*fp32",
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
    k_n_first = number * 128
    return k_n_first


@gluon.jit
def copy(desc, ring, copied, number, visits, batch, head):
    """Start the copy of the row's tile of this number, if there is one, into its slot."""
    k_n_first = key_tile(number, visits)
    slot, wanted = number % STAGES, number < visits[0]
    place = [batch, head, k_n_first, 0]
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
    (q_n,) = known
    k_n_first = key_tile(number, visits)
    # keys and values
    k_lane = gl.arange(0, BLOCK_K, layout=OF_KEYS)
    k_n = k_n_first + k_lane
    keep = k_n[None, :] <= q_n[:, None]
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
def causal_forward(
    q_desc, k_desc, v_desc, out_desc, lse_ptr, scale, batch_heads, heads_at_once,
):  # fmt: skip
    # a tile of queries of one head: the longest rows first, for as many heads as the L2 cache holds
    program = gl.program_id(0)
    first_head = program // (ROWS * heads_at_once) * heads_at_once
    heads_here = gl.minimum(heads_at_once, batch_heads - first_head)
    row = (program - first_head * ROWS) // heads_here
    batch_head = first_head + (program - first_head * ROWS) % heads_here
    batch = batch_head // HEADS
    head = batch_head % HEADS
    tile = ROWS - 1 - row

    # the queries of this tile
    q_n_first = tile * 128
    q_lane = gl.arange(0, BLOCK_Q, layout=OF_QUERIES)
    q_n = q_n_first + q_lane
    q_token = q_n.to(gl.int64)

    # the tiles of keys to visit, by number
    last = tile + 1
    full = tile
    tiles = last
    visits = (tiles,)

    # Rings of STAGES slots: keys are copied STAGES tiles ahead; values, used a turn later, one less
    q_box = gl.allocate_shared_memory(ELEMENT, [1, 1, 128, 128], q_desc.layout)
    keys = gl.allocate_shared_memory(ELEMENT, [STAGES, 1, 1, 128, 128], k_desc.layout)
    values = gl.allocate_shared_memory(ELEMENT, [STAGES, 1, 1, 128, 128], v_desc.layout)
    q_copied = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    keys_copied = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    values_copied = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    mbarrier.init(q_copied, count=1)
    for slot in gl.static_range(STAGES):
        mbarrier.init(keys_copied.index(slot), count=1)
        mbarrier.init(values_copied.index(slot), count=1)
    q_place = [batch, head, q_n_first, 0]
    mbarrier.expect(q_copied, q_desc.block_type.nbytes)
    tma.async_copy_global_to_shared(q_desc, q_place, q_copied, q_box)
    for slot in gl.static_range(STAGES):
        copy(k_desc, keys, keys_copied, slot, visits, batch, head)
        if slot + 1 < STAGES:
            copy(v_desc, values, values_copied, slot, visits, batch, head)

    known = (q_n,)

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
            copy(k_desc, keys, keys_copied, i - 1 + STAGES, visits, batch, head)
            copy(v_desc, values, values_copied, i - 2 + STAGES, visits, batch, head)
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
    shape, strides = (batch, heads, *extents, dim), (x.stride(0), x.stride(1), *steps, 1)
    block = [1, 1, *box]
    layout = gl.NVMMASharedLayout(128, 16, rank=len(block))  # swizzled, 128 bytes at a time
    return TensorDescriptor(x, [*shape], [*strides], block, layout)


def forward(q, k, v, scale, walk, inputs):
    """Attention of q over k and v, (batch, heads, tokens, dim) tensors aligned to 16 bytes.

    walk: int tensors by name, on q's device (none are needed). inputs: the pattern's, by name.
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
    head_bytes = 16384 * 256 * k.element_size()
    heads_at_once = min(batch * HEADS.value, max(1, 33554432 // head_bytes))
    causal_forward[(batch * HEADS.value * ROWS.value,)](
        boxes(q, (16384,), (128, 128)), boxes(k, (16384,), (128, 128)),
        boxes(v, (16384,), (128, 128)), boxes(out, (16384,), (128, 128)), lse, scale,
        batch * HEADS.value, heads_at_once, **OPTIONS,
    )  # fmt: skip
    return out, lse
