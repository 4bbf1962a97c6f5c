"""Attention of one strip: softmax of its rows, piece after piece of their keys."""

from __future__ import annotations

import math

import torch

from maskdsl.runtime.torch_product import products
from maskdsl.runtime.torch_scores import LOG2E
from maskdsl.runtime.torch_walk import Laid, Part, shift


def attend(
    laid: Laid, sink: torch.Tensor | None, out: torch.Tensor, lse: torch.Tensor | None
) -> None:
    """Write the rows of a strip.

    out: (kv heads, heads each, tokens, value_dim). lse: (kv heads, heads each, tokens), natural.
    sink: the sink's logit of each head, (kv heads, heads each).
    """
    q = laid.rows(laid.walk.q) * laid.walk.factor
    o = q.new_empty((*laid.rows_shape, laid.v.shape[2]))
    l = q.new_empty((*laid.rows_shape, 1))
    for part, pieces in laid.parts(apart=False):
        values, sums = _softmax(laid, q[part.heads, part.rows].flatten(0, 1), part, pieces)
        shape = o[part.heads, part.rows].shape
        o[part.heads, part.rows] = values.view(shape)
        l[part.heads, part.rows] = sums.view(*shape[:-1], 1)
    if sink is not None:
        logit = sink[:, None, :, None].expand(*o.shape[:2], -1, laid.size).reshape(l.shape)
        total = torch.logaddexp(l, logit)
        o *= torch.exp(l - total).nan_to_num(nan=0)
        l = total
    laid.queries.put(out, laid.flat(o))
    if lse is not None:
        laid.queries.put(lse[..., None], laid.flat(l))


def _softmax(
    laid: Laid, q: torch.Tensor, part: Part, pieces: list[slice]
) -> tuple[torch.Tensor, torch.Tensor]:
    """(values, log-sum-exp) of (count, queries, dim) queries: (count, queries, value_dim) and
    (count, queries, 1). The online softmax of Milakov and Gimelshein, arXiv 1805.02867.
    """
    top = total = values = torch.empty(0)
    for columns in pieces:
        s, _, _, _ = laid.logits(q, part, columns)
        new = s.amax(-1, keepdim=True)
        if columns.start:
            new = torch.maximum(top, new)
        off = shift(new)
        p = torch.exp2(s.sub_(off), out=s)
        v = laid.window(laid.v, part, columns).mT
        if not columns.start:
            total, values = p.sum(-1, keepdim=True), products(p, v)
        else:
            less = torch.exp2(top - off)
            total = total * less + p.sum(-1, keepdim=True)
            values = values * less + products(p, v)
        top = new
    empty = total == 0
    lse = (shift(top) + torch.log2(total)) / LOG2E
    return values / total.masked_fill(empty, 1), lse.masked_fill(empty, -math.inf)
