"""Attention of the tiles of one strip, one after the other, as one call.

The functions are scripted, so that cores which run them do not wait for each other at Python's
lock between operations; where torch has no script they run as they are.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

LARGE = 2**20  # multiplications of one product that are worth a call of oneDNN
STRETCH = 16  # terms of one sum in a float32 logit
PIECE, SHORT = 288, 128  # keys whose values a sum adds at once
LOG2E = math.log2(math.e)

F = TypeVar("F", bound=Callable[..., object])


def scripted(function: F) -> F:
    """In TorchScript, which torch 2.13 calls deprecated; as it is where there is none."""
    script = getattr(torch.jit, "script", None)
    if script is None:
        return function
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        found: F = script(function)
    return found


def _has_linear() -> bool:
    """Whether torch has oneDNN's products, which it keeps for its compiled linear layers."""
    known = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return known and hasattr(torch.ops.mkldnn, "_linear_pointwise")


if _has_linear():

    @scripted
    def large_product(a: Tensor, b: Tensor) -> Tensor:
        """a @ b.mT. torch multiplies float32 by MKL, which uses the widest instructions of one
        maker only; oneDNN uses those of all.
        """
        found: Tensor = torch.ops.mkldnn._linear_pointwise(a, b, None, "none", [], "")
        return found

else:

    @scripted
    def large_product(a: Tensor, b: Tensor) -> Tensor:
        return torch.mm(a, b.t())


@scripted
def product(a: Tensor, b: Tensor, least: int = LARGE, stretch: int = STRETCH) -> Tensor:
    """a @ b.mT of matrices (rows, inner) and (columns, inner), without gaps in memory."""
    least = least if a.size(1) > stretch else 2 * least  # results cost as much as multiplications
    large = a.size(0) * a.size(1) * b.size(0) >= least
    if large and a.device.type == "cpu" and a.dtype != torch.float64:
        return large_product(a, b)
    return torch.mm(a, b.t())


@scripted
def logits(q: Tensor, k: Tensor) -> Tensor:
    """(queries, keys), of (stretches, queries, a stretch) and (stretches, keys, a stretch).
    Rounding errors grow with the length of a sum, so stretches are summed by themselves.
    """
    total = product(q[0], k[0])
    if q.size(0) > 1:
        total.add_(product(q[1], k[1]))
    for i in range(2, q.size(0), 2):
        pair = product(q[i], k[i])
        if i + 1 < q.size(0):
            pair.add_(product(q[i + 1], k[i + 1]))
        total.add_(pair)
    return total


@scripted
def batch_logits(q: Tensor, k: Tensor) -> Tensor:
    """`logits` of many tiles, a leading dimension, (count, queries, keys)."""
    if q.size(0) == 1:
        return logits(q[0], k[0])[None]
    total = torch.bmm(q[:, 0], k[:, 0].mT)
    for i in range(1, q.size(1) - 1, 2):
        pair = torch.bmm(q[:, i], k[:, i].mT)
        total.add_(pair.baddbmm_(q[:, i + 1], k[:, i + 1].mT))
    if q.size(1) % 2 == 0:
        total.baddbmm_(q[:, -1], k[:, -1].mT)
    return total


@scripted
def weighted(
    p: Tensor, v: Tensor, careful: bool, piece: int = PIECE, short: int = SHORT, least: int = LARGE
) -> Tensor:
    """p @ v of weights (queries, keys) and values (keys, value_dim). careful: keys are summed in
    pieces, short ones where those cost little.
    """
    keys = p.size(1)
    one_by_one = p.size(0) * piece * v.size(1) >= 4 * least
    piece = piece if one_by_one else short
    pieces = (keys + piece - 1) // piece if careful else 1
    total = product(p[:, : keys // pieces], v[: keys // pieces].t())
    for i in range(1, pieces):
        first, end = keys * i // pieces, keys * (i + 1) // pieces
        if one_by_one:
            total.add_(product(p[:, first:end], v[first:end].t()))
        else:
            total.addmm_(p[:, first:end], v[first:end])
    return total


@scripted
def add_piece(
    s: Tensor, v: Tensor, first: bool, careful: bool, top: Tensor, total: Tensor, values: Tensor,
    log2e: float = LOG2E,
) -> None:  # fmt: skip
    """Add a piece of the keys to the softmax of a tile, as in the online softmax of Milakov and
    Gimelshein, arXiv 1805.02867.

    s: logits (queries, keys), overwritten. v: (keys, value_dim). careful: as of `weighted`. top,
    total: (queries, 1), the greatest logit and the sum of weights relative to its; values:
    (queries, value_dim), their sum of values.
    """
    new = torch.amax(s, -1, keepdim=True)
    if not first:
        new = torch.maximum(top, new)
    off = torch.nan_to_num(new, nan=float("nan"), posinf=float("inf"), neginf=0.0)
    # exp by exp2, which is much faster on a CPU
    p = torch.add(off * -log2e, s, alpha=log2e, out=s).exp2_()
    own, weight = weighted(p, v, careful), p.sum(-1, keepdim=True)
    if not first:
        less = torch.exp(top - off)
        own.addcmul_(values, less)
        weight.addcmul_(total, less)
    top.copy_(new)
    total.copy_(weight)
    values.copy_(own)


@scripted
def overlap(s: Tensor, x: Tensor, start: int, first: int, end: int) -> tuple[Tensor, Tensor]:
    """Where a piece of logits from key `first` to `end` and x from key `start` on overlap: a view
    of each, (heads each, queries, keys).
    """
    a, b = max(start, first), max(min(start + x.size(-1), end), max(start, first))
    rows = s.view(-1, x.size(-2), s.size(1))
    return rows[:, :, a - first : b - first], x[..., a - start : b - start]


@scripted
def attend_rows(
    q: Tensor, k: Tensor, v: Tensor, careful: bool, step: int, pieces: list[int],
    starts: list[int], added: list[Tensor], firsts: list[int], limits: list[Tensor],
    top: Tensor, total: Tensor, values: Tensor,
) -> None:  # fmt: skip
    """Softmax of the rows of a strip.

    q: (heads, rows, stretches, queries, a stretch); k: (heads, stretches, strip keys, a stretch);
    v: (heads, strip keys, value_dim). Row i sees keys from i * step on, in `pieces` that end
    there. careful: as of `weighted`. added: what to add to logits from a key on, (heads, ...,
    queries, keys); limits: their least upper bounds from a key on, (..., queries, keys). top,
    total, values: (heads, rows, queries, 1 or value_dim), written.
    """
    for h in range(q.size(0)):
        for i in range(q.size(1)):
            first = 0
            for end in pieces:
                s = logits(q[h, i], k[h, :, i * step + first : i * step + end])
                for n in range(len(added)):
                    own, x = overlap(s, added[n][h], starts[n], first, end)
                    own.add_(x)
                for n in range(len(limits)):
                    own, x = overlap(s, limits[n], firsts[n], first, end)
                    torch.minimum(own, x, out=own)
                keys = v[h, i * step + first : i * step + end]
                add_piece(s, keys, first == 0, careful, top[h, i], total[h, i], values[h, i])
                first = end
