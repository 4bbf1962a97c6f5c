# Forward attention for the pattern `radial`, emitted by MaskDSL.
#
#     # Video attention that thins out as frames grow apart, after the Radial Attention code (arXiv
#     # 2506.19852, github.com/mit-han-lab/radial-attention). Windows inside a frame are cut off at
#     # its ends. The published masks are this one coarsened to blocks of 128 tokens by a vote.
#     pattern radial(decay: float = 1.0, anchor: bool = true)
#     over (t, s)  # frame, token inside the frame
#     let gap = abs(q.t - k.t)
#     let share = 2 ** bit_length(s.size) / 2 ** bit_length(gap)
#     let reach = if gap <= 1 then s.size else max(share * decay, 128)
#     let every = if share >= 128 then 1 else int(128 / share)
#     keep abs(q.s - k.s) <= reach and gap % every == 0
#     keep anchor and k.t == 0  # every frame sees the first
#
# problem   1 head(s), 30 x 3,840 queries, 30 x 3,840 keys, head_dim 128, bfloat16
# tiles     1x128 queries by 1x64 keys
# pairs     400,344 full, 116,504 partial, 1,103,152 empty tiles
# walk      full and partial tiles from a list
# proved    tiles divide the extents, 32 bits hold every int of the pattern, every query keeps a key
# target    sm_90, 8 warps, 3 stages

import math

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

BLOCK_Q = tl.constexpr(128)  # queries of a tile: 1 t x 128 s
BLOCK_K = tl.constexpr(64)  # keys of a tile: 1 t x 64 s
ROWS = tl.constexpr(900)  # tiles of queries
QUERIES = tl.constexpr(115200)
HEADS = tl.constexpr(1)
LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
LOWEST = tl.constexpr(-3.4028234663852886e38)  # of float32: no logit lies lower, and it is finite

# Types of the kernels' pointers and descriptors, and the launch options.
TYPES = {
    "q_desc": "tensordesc<bf16[1, 1, 1, 128, 128]>", "k_desc": "tensordesc<bf16[1, 1, 1, 64, 128]>",
    "v_desc": "tensordesc<bf16[1, 1, 1, 64, 128]>",
    "out_desc": "tensordesc<bf16[1, 1, 1, 128, 128]>", "lse_ptr": "*fp32", "full_starts": "*i32",
    "full_tiles": "*i32", "partial_starts": "*i32", "partial_tiles": "*i32", "table0": "*i32",
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
def radial_forward(
    q_desc, k_desc, v_desc, out_desc, lse_ptr, scale, full_starts, full_tiles, partial_starts,
    partial_tiles, table0,
):  # fmt: skip
    # a tile of queries of one head: one head after the other
    program = tl.program_id(0)
    row = program % ROWS
    batch_head = program // ROWS
    batch = batch_head
    tile = row

    # the queries of this tile
    q_t_first = tile // 30
    q_s_first = tile % 30 * 128
    q_lane = tl.arange(0, BLOCK_Q)
    q_t = q_t_first + tl.zeros([BLOCK_Q], tl.int32)
    q_s = q_s_first + q_lane % 128
    q_token = (q_t * 3840 + q_s).to(tl.int64)
    q = q_desc.load([batch, 0, q_t_first, q_s_first, 0]).reshape(BLOCK_Q, 128)

    # keys and values
    k_lane = tl.arange(0, BLOCK_K)
    k_lane_t = tl.zeros([BLOCK_K], tl.int32)
    k_lane_s = k_lane % 64

    # online softmax: the largest logit (base 2), the sum of weights and the weighted values so far
    peak = tl.full([BLOCK_Q], LOWEST, tl.float32)
    total = tl.zeros([BLOCK_Q], tl.float32)
    acc = tl.zeros([BLOCK_Q, 128], tl.float32)
    scale_log2 = scale * LOG2E

    # full tiles in order: nothing to mask
    for at in range(tl.load(full_starts + row), tl.load(full_starts + row + 1)):
        k_first = tl.load(full_tiles + at)
        k_t_first = k_first >> 12
        k_s_first = k_first & 4095
        keys = k_desc.load([batch, 0, k_t_first, k_s_first, 0]).reshape(BLOCK_K, 128)
        values = v_desc.load([batch, 0, k_t_first, k_s_first, 0]).reshape(BLOCK_K, 128)
        s = tl.dot(q, tl.trans(keys))
        peak, total, acc = softmax_step(s, values, peak, total, acc, scale_log2)

    # partial tiles in order
    for at in range(tl.load(partial_starts + row), tl.load(partial_starts + row + 1)):
        k_first = tl.load(partial_tiles + at)
        k_t_first = k_first >> 12
        k_s_first = k_first & 4095
        k_t = k_t_first + k_lane_t
        k_s = k_s_first + k_lane_s
        keys = k_desc.load([batch, 0, k_t_first, k_s_first, 0]).reshape(BLOCK_K, 128)
        values = v_desc.load([batch, 0, k_t_first, k_s_first, 0]).reshape(BLOCK_K, 128)
        s = tl.dot(q, tl.trans(keys))
        run0 = k_t == 0
        pair0 = tl.load(table0 + tl.abs(k_t[None, :] - q_t[:, None]))
        keep = (tl.abs(k_s[None, :] - q_s[:, None]) <= pair0) | run0[None, :]
        s = tl.where(keep, s, float("-inf"))
        peak, total, acc = softmax_step(s, values, peak, total, acc, scale_log2)

    acc = acc / total[:, None]
    out = acc.to(out_desc.dtype).reshape(1, 1, 1, 128, 128)
    out_desc.store([batch, 0, q_t_first, q_s_first, 0], out)
    lse = (peak + tl.log2(total)) * LN2
    lse_row = lse_ptr + batch_head.to(tl.int64) * QUERIES
    tl.store(lse_row + q_token, lse)


def boxes(x, extents, box):
    """A descriptor of x, (batch, heads, tokens, dim), whose tokens fill `extents` row by row."""
    batch, heads, _, dim = x.shape
    steps = [x.stride(2) * math.prod(extents[i + 1 :]) for i in range(len(extents))]
    shape, strides = (batch, heads, *extents, dim), (x.stride(0), x.stride(1), *steps, 1)
    return TensorDescriptor(x, [*shape], [*strides], [1, 1, *box])


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
    radial_forward[(batch * HEADS.value * ROWS.value,)](
        boxes(q, (30, 3840), (1, 128, 128)), boxes(k, (30, 3840), (1, 64, 128)),
        boxes(v, (30, 3840), (1, 64, 128)), boxes(out, (30, 3840), (1, 128, 128)), lse, scale,
        walk["full_starts"], walk["full_tiles"], walk["partial_starts"], walk["partial_tiles"],
        walk["table0"], **OPTIONS,
    )  # fmt: skip
    return out, lse
