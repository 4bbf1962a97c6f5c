"""Attention of one strip."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from maskdsl.runtime.torch_tiles import add_piece, attend_rows
from maskdsl.runtime.torch_walk import BUDGET, Laid, stretches


def attend(laid: Laid, sink: torch.Tensor | None, out: torch.Tensor, lse: torch.Tensor) -> None:
    """Write the rows of a strip.

    out: (kv heads, heads each, tokens, value_dim). lse: (kv heads, heads each, tokens), natural.
    sink: the sink's logit of each head, (kv heads, heads each).
    """
    q = laid.rows(laid.walk.q) * laid.walk.scale
    q = stretches(q, laid.walk.stretch)
    found = Softmax.empty(laid)
    if not _static(laid):
        _any_rows(laid, q, found)
    else:
        _equal_rows(laid, q, found)
        if laid.group.partial and bool(found.top.isnan().any()):
            _any_rows(laid, q, found)  # which may have come from pairs that are not kept
    nothing = found.total == 0
    l = (found.top.nan_to_num(nan=math.nan, posinf=math.inf, neginf=0.0)).add_(found.total.log())
    l.masked_fill_(nothing, -math.inf)
    o = found.values.div_(found.total.masked_fill_(nothing, 1))
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

    @staticmethod
    def empty(laid: Laid) -> Softmax:
        heads, rows, queries = laid.shape
        sizes = (1, 1, laid.v.shape[2])
        return Softmax(*(laid.k.new_empty((heads * rows, queries, n)) for n in sizes))


def _static(laid: Laid) -> bool:
    """Whether all rows have one mask, known before the call, and one tensor added to logits."""
    if laid.group.decided or not laid.walk.scores.any:
        return not laid.group.decided
    return laid.even and laid.shape[2] * laid.strip.length <= 2 * BUDGET


def _equal_rows(laid: Laid, q: torch.Tensor, found: Softmax) -> None:
    """q: (kv heads * rows, stretches, queries, a stretch), scaled."""
    heads, rows, _ = laid.shape
    columns = slice(0, laid.strip.length)
    added = laid.added() if laid.walk.scores.any else []
    limits = laid.masks.limits(columns, None)
    attend_rows(
        q.view(heads, rows, *q.shape[1:]), laid.stretches, laid.v,
        laid.walk.careful, laid.strip.step, [x.stop for x in laid.pieces],
        [x.start for x, _ in added], [x for _, x in added],
        [x.start for x, _ in limits], [x for _, x in limits],
        *(x.view(heads, rows, *x.shape[1:]) for x in (found.top, found.total, found.values)),
    )  # fmt: skip


def _any_rows(laid: Laid, q: torch.Tensor, found: Softmax) -> None:
    """The same for rows whose masks and scores differ."""
    k, careful = laid.stretches.transpose(0, 1), laid.walk.careful
    for part in laid.parts():
        top, total, values = (x[part.flat] for x in (found.top, found.total, found.values))
        for columns in laid.pieces:
            keys = laid.window(k, part, columns).transpose(0, 1)
            s, _, _, _ = laid.logits(q[part.flat], keys, part, columns)
            v = laid.window(laid.v, part, columns)
            first = columns.start == 0
            for i in range(len(s)):
                add_piece(s[i], v[i], first, careful, top[i], total[i], values[i])
