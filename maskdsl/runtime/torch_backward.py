"""Gradients of attention over one strip: its weights are worked out again from the log-sum-exp."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import torch

from maskdsl.runtime.torch_masks import drop
from maskdsl.runtime.torch_product import products
from maskdsl.runtime.torch_scores import LOG2E, InputGradients
from maskdsl.runtime.torch_walk import Laid, Part


@dataclass(frozen=True)
class Given:
    """What the backward pass is given, for the heads of one class in one batch entry.

    do: (kv heads, heads each, tokens, value_dim). lse, delta: (kv heads, heads each, tokens);
    delta: the sum of do * out over each row, less the gradient of lse.
    """

    do: torch.Tensor
    lse: torch.Tensor
    delta: torch.Tensor


@dataclass(frozen=True)
class Gradients:
    """Sums of gradients: dq (kv heads, heads each, tokens, dim), dk and dv (kv heads, tokens, dim),
    those of inputs.
    """

    dq: torch.Tensor
    dk: torch.Tensor
    dv: torch.Tensor
    inputs: InputGradients


def gather_gradients(laid: Laid, given: Given, found: Gradients) -> None:
    """Add what the rows of a strip give."""
    walk = laid.walk
    q = laid.rows(walk.q) * walk.factor
    do = laid.rows(given.do)
    lse = laid.rows(given.lse[..., None]) * LOG2E
    lse = lse.masked_fill(lse == -math.inf, math.inf)  # a row without keys has no weights
    delta = laid.rows(given.delta[..., None])
    dq = torch.zeros_like(q)
    # by dimension and key: products are faster so
    dk, dv = (x.new_zeros(x.shape[0], x.shape[2], x.shape[1]) for x in (laid.k, laid.v))
    for part, pieces in laid.parts(apart=True):
        own = (part.heads, part.rows)
        q_, do_, lse_, delta_ = (x[own].flatten(0, 1) for x in (q, do, lse, delta))
        for columns in pieces:
            k, v = (laid.window(x, part, columns) for x in (laid.k, laid.v))
            s, natural, limits, pairs = laid.logits(q_, part, columns)
            p = torch.exp2(s.sub_(lse_), out=s)
            _add(dv, products(do_.mT, p.mT), laid, part, columns)
            ds = products(do_, v)
            drop(laid.over_pairs(ds, part), limits)
            ds.sub_(delta_).mul_(p)
            if pairs is not None and walk.scores.any:
                over = walk.scores.backward(
                    laid.over_pairs(ds, part), natural, pairs, walk.space, found.inputs,
                    partial(drop, limits=limits),
                )  # fmt: skip
                ds = over.reshape(ds.shape)
            dq[own] += products(ds, k.mT).view(dq[own].shape)
            _add(dk, products(q_.mT, ds.mT), laid, part, columns)
    laid.queries.add(found.dq, laid.flat(dq * (walk.factor / walk.scores.unit)))
    laid.keys.add(found.dk, dk.mT / walk.scores.unit)
    laid.keys.add(found.dv, dv.mT)


def _add(total: torch.Tensor, value: torch.Tensor, laid: Laid, part: Part, columns: slice) -> None:
    """Add (count, dim, keys) to (kv heads, dim, strip keys), where the rows of a part see them."""
    window = laid.window(total.mT, part, columns).mT
    window += value
