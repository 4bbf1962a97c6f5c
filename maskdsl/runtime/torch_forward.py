"""Attention of one strip in tensor operations."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from maskdsl.runtime.torch_product import kept_products, products
from maskdsl.runtime.torch_walk import Laid, exp_less_

Product = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def attend(laid: Laid, sink: torch.Tensor | None, out: torch.Tensor, lse: torch.Tensor) -> None:
    """Write the rows of a strip.

    out: (kv heads, heads each, tokens, value_dim). lse: (kv heads, heads each, tokens), natural.
    sink: the sink's logit of each head, (kv heads, heads each).
    """
    found = _softmax(laid, products)
    if not found.values.sum().isfinite():
        found = _softmax(laid, kept_products)  # values that nobody sees may be infinite or NaN
    nothing = found.total == 0
    l = _finite(found.top).add_(found.total.log())
    l.masked_fill_(nothing, -math.inf)
    o = found.values.div_(found.total.masked_fill_(nothing, 1))
    if sink is not None:
        logit = sink[:, None, :, None].expand(-1, laid.shape[1], -1, laid.size)
        total = torch.logaddexp(l, logit.reshape(l.shape))
        o *= torch.exp(l - total).nan_to_num(nan=0)
        l = total
    laid.put(out, o)
    laid.put(lse[..., None], l)


def _softmax(laid: Laid, weigh: Product) -> Softmax:
    q = laid.rows(laid.walk.q) * laid.walk.scale
    found = Softmax.empty(laid)
    for part in laid.parts():
        own = found.some(part.flat)
        for columns in laid.pieces:
            k, v = (laid.window(x, part, columns) for x in (laid.k, laid.v))
            s, _, _, _ = laid.logits(q[part.flat], k, part, columns)
            own.add(s, v, columns.start == 0, weigh)
    return found


@dataclass(frozen=True)
class Softmax:
    """Of all rows of a strip, (kv heads * rows, queries, ...): the greatest logit, the sum of
    weights relative to its, their sum of values.
    """

    top: torch.Tensor
    total: torch.Tensor
    values: torch.Tensor

    @staticmethod
    def empty(laid: Laid) -> Softmax:
        heads, rows, queries = laid.shape
        sizes = (1, 1, laid.v.shape[2])
        return Softmax(*(laid.k.new_empty((heads * rows, queries, n)) for n in sizes))

    def some(self, rows: slice) -> Softmax:
        return Softmax(self.top[rows], self.total[rows], self.values[rows])

    def add(self, s: torch.Tensor, v: torch.Tensor, first: bool, weigh: Product) -> None:
        """Add a piece of the keys, as in the online softmax of Milakov and Gimelshein, arXiv
        1805.02867. s: logits (rows, queries, keys), overwritten. v: (rows, keys, value_dim).
        weigh: multiplies weights and values.
        """
        new = torch.amax(s, -1, keepdim=True)
        if not first:
            new = torch.maximum(self.top, new)
        p = exp_less_(s, _finite(new))
        values, weight = weigh(p, v.mT), p.sum(-1, keepdim=True)
        if not first:
            less = torch.exp(self.top - _finite(new))
            values.addcmul_(self.values, less)
            weight.addcmul_(self.total, less)
        self.top.copy_(new)
        self.total.copy_(weight)
        self.values.copy_(values)


def _finite(top: torch.Tensor) -> torch.Tensor:
    """Zero where there is no logit but minus infinity."""
    return torch.nan_to_num(top, nan=math.nan, posinf=math.inf, neginf=0.0)
