# Forward attention for the pattern `sliding_tile`, emitted by MaskDSL.
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
# tiles     2x8x8 queries by 1x8x8 keys
# pairs     3,499,200 full, 0 partial, 35,380,800 empty tiles
# walk      full tiles from a list
# proved    tiles divide the extents, 32 bits hold every int of the pattern, every query keeps a key
# target    sm_90, 8 warps, 3 stages

import math

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

BLOCK_Q = tl.constexpr(128)  # queries of a tile: 2 t x 8 y x 8 x
BLOCK_K = tl.constexpr(64)  # keys of a tile: 1 t x 8 y x 8 x
ROWS = tl.constexpr(900)  # tiles of queries
QUERIES = tl.constexpr(115200)
HEADS = tl.constexpr(24)
LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
LOWEST = tl.constexpr(-3.4028234663852886e38)  # of float32: no logit lies lower, and it is finite

# Types of the kernels' pointers and descriptors, and the launch options.
TYPES = {
    "q_desc": "tensordesc<bf16[1, 2, 8, 8, 128]>", "k_desc": "tensordesc<bf16[1, 1, 8, 8, 128]>",
    "v_desc": "tensordesc<bf16[1, 1, 8, 8, 128]>", "out_desc": "tensordesc<bf16[1, 2, 8, 8, 128]>",
    "lse_ptr": "*fp32", "full_starts": "*i32", "full_tiles": "*i32",
}  # fmt: skip
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
def sliding_tile_forward(
    q_desc, k_desc, v_desc, out_desc, lse_ptr, scale, full_starts, full_tiles,
):  # fmt: skip
    # a tile of queries of one head: one head after the other
    program = tl.program_id(0)
    row = program % ROWS
    batch_head = program // ROWS
    tile = row

    # the queries of this tile
    q_t_first = tile // 60 * 2
    q_y_first = tile // 10 % 6 * 8
    q_x_first = tile % 10 * 8
    q_lane = tl.arange(0, BLOCK_Q)
    q_t = q_t_first + q_lane // 64
    q_y = q_y_first + q_lane // 8 % 8
    q_x = q_x_first + q_lane % 8
    q_token = ((q_t * 48 + q_y) * 80 + q_x).to(tl.int64)
    q = q_desc.load([batch_head, q_t_first, q_y_first, q_x_first, 0]).reshape(BLOCK_Q, 128)

    # online softmax: the largest logit (base 2), the sum of weights and the weighted values so far
    peak = tl.full([BLOCK_Q], LOWEST, tl.float32)
    total = tl.zeros([BLOCK_Q], tl.float32)
    acc = tl.zeros([BLOCK_Q, 128], tl.float32)
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
        peak, total, acc = softmax_step(s, values, peak, total, acc, scale_log2)

    acc = acc / total[:, None]
    out = acc.to(out_desc.dtype).reshape(1, 2, 8, 8, 128)
    out_desc.store([batch_head, q_t_first, q_y_first, q_x_first, 0], out)
    lse = (peak + tl.log2(total)) * LN2
    lse_row = lse_ptr + batch_head.to(tl.int64) * QUERIES
    tl.store(lse_row + q_token, lse)


def boxes(x, extents, box):
    """A descriptor of x, (batch, heads, tokens, dim), whose tokens fill `extents` row by row."""
    batch, heads, _, dim = x.shape
    steps = [x.stride(2) * math.prod(extents[i + 1 :]) for i in range(len(extents))]
    shape, strides = (batch * heads, *extents, dim), (x.stride(1), *steps, 1)
    return TensorDescriptor(x, [*shape], [*strides], [1, *box])


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
    sliding_tile_forward[(batch * HEADS.value * ROWS.value,)](
        boxes(q, (30, 48, 80), (2, 8, 8, 128)), boxes(k, (30, 48, 80), (1, 8, 8, 128)),
        boxes(v, (30, 48, 80), (1, 8, 8, 128)), boxes(out, (30, 48, 80), (2, 8, 8, 128)), lse,
        scale, walk["full_starts"], walk["full_tiles"], **OPTIONS,
    )  # fmt: skip
    return out, lse
