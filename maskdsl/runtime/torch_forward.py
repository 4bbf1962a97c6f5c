"""Attention of one strip: softmax of its rows, piece after piece of their keys."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from maskdsl.runtime.torch_product import careful_values, products, stretches
from maskdsl.runtime.torch_walk import Laid, Part, exp_less_, shift


def attend(laid: Laid, sink: torch.Tensor | None, out: torch.Tensor, lse: torch.Tensor) -> None:
    """Write the rows of a strip.

    out: (kv heads, heads each, tokens, value_dim). lse: (kv heads, heads each, tokens), natural.
    sink: the sink's logit of each head, (kv heads, heads each).
    """
    found = _softmax(laid, thorough=False)
    if laid.group.partial and bool(found.top.isnan().any()):
        found = _softmax(laid, thorough=True)
    empty = found.total == 0
    l = (shift(found.top) + torch.log(found.total)).masked_fill_(empty, -math.inf)
    o = found.values.div_(found.total.masked_fill_(empty, 1))
    if sink is not None:
        logit = sink[:, None, :, None].expand(-1, laid.shape[1], -1, laid.size)
        total = torch.logaddexp(l, logit.reshape(l.shape))
        o *= torch.exp(l - total).nan_to_num(nan=0)
        l = total
    laid.put(out, o)
    laid.put(lse[..., None], l)


@dataclass(frozen=True)
class Softmax:
    """Of all rows of a strip, (kv heads * rows, queries, ...): the greatest logit, the sum of
    weights relative to its, their sum of values.
    """

    top: torch.Tensor
    total: torch.Tensor
    values: torch.Tensor


def _softmax(laid: Laid, thorough: bool) -> Softmax:
    """The online softmax of Milakov and Gimelshein, arXiv 1805.02867.

    thorough: as of `forbid`.
    """
    q = laid.rows(laid.walk.q) * laid.walk.scale
    top, total = (q.new_empty((*q.shape[:2], 1)) for _ in range(2))
    found = Softmax(top, total, q.new_empty((*q.shape[:2], laid.v.shape[2])))
    careful = laid.walk.careful
    q = stretches(q) if careful else q
    for part, pieces in laid.parts():
        own = Softmax(top[part.flat], total[part.flat], found.values[part.flat])
        rows = q[:, part.flat] if careful else q[part.flat]
        for columns in pieces:
            _add(laid, rows, part, columns, thorough, own)
    return found


def _add(
    laid: Laid, q: torch.Tensor, part: Part, columns: slice, thorough: bool, found: Softmax
) -> None:
    """Add a piece of the keys."""
    s, _, _, _ = laid.logits(q, part, columns, thorough)
    v = laid.window(laid.v, part, columns)
    first = columns.start == 0
    new = torch.amax(s, -1, keepdim=True)
    if not first:
        torch.maximum(found.top, new, out=new)
    p = exp_less_(s, shift(new))
    values = careful_values(p, v) if laid.walk.careful else products(p, v.mT)
    total = p.sum(-1, keepdim=True)
    if not first:
        less = torch.exp(found.top - shift(new))
        values.addcmul_(found.values, less)
        total.addcmul_(found.total, less)
    found.top.copy_(new)
    found.total.copy_(total)
    found.values.copy_(values)
