# Forward attention for the pattern `natten3d`, emitted by MaskDSL.
#
#     # NATTEN's neighborhood attention over a video (Generalized Neighborhood Attention,
#     # github.com/SHI-Labs/NATTEN). At the ends a window shifts inwards, so that every query sees
#     # the same number of keys.
#     pattern natten3d(window: int[3], stride: int[3], dilation: int[3], causal: bool[3])
#     over (t, y, x)
#     keep neighborhood(t, window[0], stride[0], dilation[0], causal[0])
#         and neighborhood(y, window[1], stride[1], dilation[1], causal[1])
#         and neighborhood(x, window[2], stride[2], dilation[2], causal[2])
#
# problem   24 head(s), 30 x 48 x 81 queries, 30 x 48 x 81 keys, head_dim 128, bfloat16
# tiles     8x4x4 queries by 4x4x4 keys
# pairs     0 full, 708,288 partial, 48,062,784 empty tiles
# walk      partial tiles from a list
# proved    32 bits hold every int of the pattern, every query keeps a key
# target    sm_90, 8 warps, 3 stages

import math

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

BLOCK_Q = tl.constexpr(128)  # queries of a tile: 8 t x 4 y x 4 x
BLOCK_K = tl.constexpr(64)  # keys of a tile: 4 t x 4 y x 4 x
ROWS = tl.constexpr(1008)  # tiles of queries
QUERIES = tl.constexpr(116640)
HEADS = tl.constexpr(24)
LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
LOWEST = tl.constexpr(-3.4028234663852886e38)  # of float32: no logit lies lower, and it is finite

# Types of the kernels' pointers and descriptors, and the launch options.
TYPES = {
    "q_desc": "tensordesc<bf16[1, 8, 4, 4, 128]>", "k_desc": "tensordesc<bf16[1, 4, 4, 4, 128]>",
    "v_desc": "tensordesc<bf16[1, 4, 4, 4, 128]>", "out_desc": "tensordesc<bf16[1, 8, 4, 4, 128]>",
    "lse_ptr": "*fp32", "partial_starts": "*i32", "partial_tiles": "*i32",
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
def natten3d_forward(
    q_desc, k_desc, v_desc, out_desc, lse_ptr, scale, partial_starts, partial_tiles,
):  # fmt: skip
    # a tile of queries of one head: one head after the other
    program = tl.program_id(0)
    row = program % ROWS
    batch_head = program // ROWS
    tile = row

    # the queries of this tile
    q_t_first = tile // 252 * 8
    q_y_first = tile // 21 % 12 * 4
    q_x_first = tile % 21 * 4
    q_lane = tl.arange(0, BLOCK_Q)
    q_t = q_t_first + q_lane // 16
    q_y = q_y_first + q_lane // 4 % 4
    q_x = q_x_first + q_lane % 4
    q_inside = (q_t < 30) & (q_x < 81)
    q_token = ((q_t * 48 + q_y) * 81 + q_x).to(tl.int64)
    q = q_desc.load([batch_head, q_t_first, q_y_first, q_x_first, 0]).reshape(BLOCK_Q, 128)

    # what the pattern needs to know of each query
    row0 = tl.minimum(tl.maximum(0, q_t - 3), 24)
    row1 = row0 + 5
    row2 = tl.minimum(40, tl.maximum(q_y - 4, 0))
    row3 = row2 + 7
    row4 = tl.minimum(73, tl.maximum(0, q_x - 4))
    row5 = row4 + 7

    # keys and values
    k_lane = tl.arange(0, BLOCK_K)
    k_lane_t = k_lane // 16
    k_lane_y = k_lane // 4 % 4
    k_lane_x = k_lane % 4

    # online softmax: the largest logit (base 2), the sum of weights and the weighted values so far
    peak = tl.full([BLOCK_Q], LOWEST, tl.float32)
    total = tl.zeros([BLOCK_Q], tl.float32)
    acc = tl.zeros([BLOCK_Q, 128], tl.float32)
    scale_log2 = scale * LOG2E

    # partial tiles in order
    for at in range(tl.load(partial_starts + row), tl.load(partial_starts + row + 1)):
        k_first = tl.load(partial_tiles + at)
        k_t_first = k_first >> 13
        k_y_first = k_first >> 7 & 63
        k_x_first = k_first & 127
        k_t = k_t_first + k_lane_t
        k_y = k_y_first + k_lane_y
        k_x = k_x_first + k_lane_x
        keys = k_desc.load([batch_head, k_t_first, k_y_first, k_x_first, 0]).reshape(BLOCK_K, 128)
        values = v_desc.load([batch_head, k_t_first, k_y_first, k_x_first, 0]).reshape(BLOCK_K, 128)
        s = tl.dot(q, tl.trans(keys))
        keep = row0[:, None] <= k_t[None, :]
        keep &= k_t[None, :] <= row1[:, None]
        keep &= row2[:, None] <= k_y[None, :]
        keep &= k_y[None, :] <= row3[:, None]
        keep &= row4[:, None] <= k_x[None, :]
        keep &= k_x[None, :] <= row5[:, None]
        s = tl.where(keep, s, float("-inf"))
        peak, total, acc = softmax_step(s, values, peak, total, acc, scale_log2)

    acc = acc / total[:, None]
    out = acc.to(out_desc.dtype).reshape(1, 8, 4, 4, 128)
    out_desc.store([batch_head, q_t_first, q_y_first, q_x_first, 0], out)
    lse = (peak + tl.log2(total)) * LN2
    lse_row = lse_ptr + batch_head.to(tl.int64) * QUERIES
    tl.store(lse_row + q_token, lse, mask=q_inside)


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
    natten3d_forward[(batch * HEADS.value * ROWS.value,)](
        boxes(q, (30, 48, 81), (8, 4, 4, 128)), boxes(k, (30, 48, 81), (4, 4, 4, 128)),
        boxes(v, (30, 48, 81), (4, 4, 4, 128)), boxes(out, (30, 48, 81), (8, 4, 4, 128)), lse,
        scale, walk["partial_starts"], walk["partial_tiles"], **OPTIONS,
    )  # fmt: skip
    return out, lse
