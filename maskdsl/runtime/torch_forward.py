"""Attention of one strip: softmax of its rows, piece after piece of their keys."""

from __future__ import annotations

import math

import torch

from maskdsl.runtime.torch_product import products
from maskdsl.runtime.torch_walk import Laid, Part, exp_, shift


def attend(laid: Laid, sink: torch.Tensor | None, out: torch.Tensor, lse: torch.Tensor) -> None:
    """Write the rows of a strip.

    out: (kv heads, heads each, tokens, value_dim). lse: (kv heads, heads each, tokens), natural.
    sink: the sink's logit of each head, (kv heads, heads each).
    """
    for part, pieces in laid.parts(apart=False):
        o, l = _softmax(laid, laid.rows(laid.walk.q, part) * laid.walk.scale, part, pieces)
        if sink is not None:
            logit = sink[part.heads, None, :, None].expand(-1, part.count, -1, laid.size)
            total = torch.logaddexp(l, logit.reshape(l.shape))
            o *= torch.exp(l - total).nan_to_num(nan=0)
            l = total
        laid.put(out, part, o)
        laid.put(lse[..., None], part, l)


def _softmax(
    laid: Laid, q: torch.Tensor, part: Part, pieces: list[slice]
) -> tuple[torch.Tensor, torch.Tensor]:
    """(values, log-sum-exp) of (count, queries, dim) queries: (count, queries, value_dim) and
    (count, queries, 1). The online softmax of Milakov and Gimelshein, arXiv 1805.02867.
    """
    top = total = values = torch.empty(0)
    for columns in pieces:
        s, _, _, _ = laid.logits(q, part, columns, careful=True)
        new = s.amax(-1, keepdim=True)
        if columns.start:
            new = torch.maximum(top, new)
        off = shift(new)
        p = exp_(s.sub_(off))
        v = laid.window(laid.v, part, columns)
        if not columns.start:
            total, values = p.sum(-1, keepdim=True), products(p, v.mT)
        else:
            less = torch.exp(top - off)
            total = total * less + p.sum(-1, keepdim=True)
            values = values * less + products(p, v.mT)
        top = new
    empty = total == 0
    lse = shift(top) + torch.log(total)
    return values / total.masked_fill(empty, 1), lse.masked_fill(empty, -math.inf)
