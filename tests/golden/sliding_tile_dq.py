# Gradients of queries for the pattern `sliding_tile`, emitted by MaskDSL.
#
#     # `window` tiles of `size` around the query's own tile, moved inwards at the ends.
#     def tile_window(a: axis, size: int, window: int)
#     let tiles = (a.size + size - 1) // size
#     let start = clamp(q.a // size - window // 2, 0, tiles - window)
#     return start <= k.a // size < start + window
#
#     # Sliding Tile Attention (arXiv 2502.04507, github.com/hao-ai-lab/FastVideo): all queries of a
#     # tile see the same window of whole tiles; windows are counted in tiles, per head, and move
#     # inwards at the ends, so that every tile sees as many. An even window has one tile more
#     # before than after. The last tile may be short (the repository asks for multiples).
#     pattern sliding_tile(window: int[heads, 3], tile: int[3])
#     over (t, y, x)
#     keep tile_window(t, tile[0], window[head, 0])
#         and tile_window(y, tile[1], window[head, 1])
#         and tile_window(x, tile[2], window[head, 2])
#
# problem   24 head(s), 30 x 48 x 80 queries, 30 x 48 x 80 keys, head_dim 128, bfloat16
# tiles     2x4x8 queries by 1x8x8 keys
# pairs     6,998,400 full, 0 partial, 70,761,600 empty tiles
# walk      full tiles from a list
# proved    tiles divide the extents, 32 bits hold every int of the pattern, every query keeps a key
# target    sm_90, 8 warps, 2 stages

import math

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

BLOCK_Q = tl.constexpr(64)  # queries of a tile: 2 t x 4 y x 8 x
BLOCK_K = tl.constexpr(64)  # keys of a tile: 1 t x 8 y x 8 x
ROWS = tl.constexpr(1800)  # tiles of queries
QUERIES = tl.constexpr(115200)
HEADS = tl.constexpr(24)
LOG2E = tl.constexpr(1.4426950408889634)

# Types of the kernels' pointers and descriptors, and the launch options.
TYPES = {
    "q_desc": "tensordesc<bf16[1, 2, 4, 8, 128]>", "k_desc": "tensordesc<bf16[1, 1, 8, 8, 128]>",
    "v_desc": "tensordesc<bf16[1, 1, 8, 8, 128]>", "out_desc": "tensordesc<bf16[1, 2, 4, 8, 128]>",
    "do_desc": "tensordesc<bf16[1, 2, 4, 8, 128]>", "dq_desc": "tensordesc<bf16[1, 2, 4, 8, 128]>",
    "lse_ptr": "*fp32", "grad_lse_ptr": "*fp32", "delta_ptr": "*fp32", "full_starts": "*i32",
    "full_tiles": "*i32",
}  # fmt: skip
OPTIONS = {"num_warps": 8, "num_stages": 2}


@triton.jit
def sliding_tile_dq(
    q_desc, k_desc, v_desc, out_desc, do_desc, dq_desc, lse_ptr, grad_lse_ptr, delta_ptr, scale,
    full_starts, full_tiles,
):  # fmt: skip
    # a tile of queries of one head: one head after the other
    program = tl.program_id(0)
    row = program % ROWS
    batch_head = program // ROWS
    tile = row

    # the queries of this tile
    q_t_first = tile // 120 * 2
    q_y_first = tile // 10 % 12 * 4
    q_x_first = tile % 10 * 8
    q_lane = tl.arange(0, BLOCK_Q)
    q_t = q_t_first + q_lane // 32
    q_y = q_y_first + q_lane // 8 % 4
    q_x = q_x_first + q_lane % 8
    q_token = ((q_t * 48 + q_y) * 80 + q_x).to(tl.int64)
    q = q_desc.load([batch_head, q_t_first, q_y_first, q_x_first, 0]).reshape(BLOCK_Q, 128)
    do = do_desc.load([batch_head, q_t_first, q_y_first, q_x_first, 0]).reshape(BLOCK_Q, 128)
    out = out_desc.load([batch_head, q_t_first, q_y_first, q_x_first, 0]).reshape(BLOCK_Q, 128)

    # of each query: its log-sum-exp (base 2), and what the softmax takes from all its gradients
    lse_row = batch_head.to(tl.int64) * QUERIES + q_token
    lse = tl.load(lse_ptr + lse_row) * LOG2E
    delta = tl.sum(do.to(tl.float32) * out.to(tl.float32), 1)
    delta -= tl.load(grad_lse_ptr + lse_row)
    tl.store(delta_ptr + lse_row, delta)

    dq = tl.zeros([BLOCK_Q, 128], tl.float32)
    scale_log2 = scale * LOG2E

    # full tiles in order: nothing to mask
    for at in range(tl.load(full_starts + row), tl.load(full_starts + row + 1)):
        k_first = tl.load(full_tiles + at)
        k_t_first = k_first >> 13
        k_y_first = k_first >> 7 & 63
        k_x_first = k_first & 127
        keys = k_desc.load([batch_head, k_t_first, k_y_first, k_x_first, 0]).reshape(BLOCK_K, 128)
        values = v_desc.load([batch_head, k_t_first, k_y_first, k_x_first, 0]).reshape(BLOCK_K, 128)
        s = tl.dot(q, tl.trans(keys))
        weights = tl.exp2(s * scale_log2 - lse[:, None])
        dp = tl.dot(do, tl.trans(values))
        ds = weights * (dp - delta[:, None])
        dq = tl.dot(ds.to(keys.dtype), keys, dq)

    dq = (dq * scale).to(dq_desc.dtype).reshape(1, 2, 4, 8, 128)
    dq_desc.store([batch_head, q_t_first, q_y_first, q_x_first, 0], dq)


def boxes(x, extents, box):
    """A descriptor of x, (batch, heads, tokens, dim), whose tokens fill `extents` row by row."""
    batch, heads, _, dim = x.shape
    steps = [x.stride(2) * math.prod(extents[i + 1 :]) for i in range(len(extents))]
    shape, strides = (batch * heads, *extents, dim), (x.stride(1), *steps, 1)
    return TensorDescriptor(x, [*shape], [*strides], [1, *box])


def gradients(q, k, v, out, do, lse, grad_lse, scale, walk, inputs):
    """Of attention by q, given those by its output, `do`, and by its log-sum-exp, `grad_lse`.

    q, k, v, out, do: (batch, heads, tokens, dim) aligned to 16 bytes. lse, grad_lse:
    float32 (batch, heads, queries). walk: int tensors by name. inputs: the
    pattern's, by name.
    Gives dq like q; delta, float32 (batch, heads, queries), the sum of do * out over each row, less
    grad_lse; and gradients of inputs by name, float32.
    """
    batch = q.shape[0]
    dq, delta = torch.empty_like(q), torch.empty_like(lse)
    grads = {}

    if batch == 0:
        return dq, delta, grads
    sliding_tile_dq[(batch * HEADS.value * ROWS.value,)](
        boxes(q, (30, 48, 80), (2, 4, 8, 128)), boxes(k, (30, 48, 80), (1, 8, 8, 128)),
        boxes(v, (30, 48, 80), (1, 8, 8, 128)), boxes(out, (30, 48, 80), (2, 4, 8, 128)),
        boxes(do, (30, 48, 80), (2, 4, 8, 128)), boxes(dq, (30, 48, 80), (2, 4, 8, 128)), lse,
        grad_lse, delta, scale, walk["full_starts"], walk["full_tiles"], **OPTIONS,
    )  # fmt: skip
    return dq, delta, grads
