"""Gradients of attention over one strip: its weights are worked out again from the log-sum-exp."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import torch

from maskdsl.runtime.torch_masks import drop
from maskdsl.runtime.torch_product import add_kept_products, add_products, one_by_one, products
from maskdsl.runtime.torch_scores import InputGradients
from maskdsl.runtime.torch_strips import Tokens
from maskdsl.runtime.torch_walk import Laid, exp_less_


@dataclass(frozen=True)
class Given:
    """What the backward pass is given, for the heads of one class in one batch entry.

    do: (kv heads, heads each, tokens, value_dim). lse, delta: (kv heads, heads each, tokens);
    delta: the sum of do * out over each row, less the gradient of lse.
    """

    do: torch.Tensor
    lse: torch.Tensor
    delta: torch.Tensor


class KeySums:
    """Sums over queries of gradients of keys or values, (kv heads, tokens, dim).

    Products are faster by dimension and token, so those of slices are summed that way round.
    """

    def __init__(self, like: torch.Tensor, dtype: torch.dtype) -> None:
        heads, tokens, dim = like.shape
        self._by_dimension = like.new_zeros((heads, dim, tokens), dtype=dtype)
        self._by_token: torch.Tensor | None = None

    def of(self, keys: Tokens) -> torch.Tensor:
        """Where to add those of a strip, (kv heads, dim, strip keys)."""
        if isinstance(keys.where, slice):
            return self._by_dimension[..., keys.where]
        return self._by_dimension.new_zeros((*self._by_dimension.shape[:2], keys.count))

    def take(self, keys: Tokens, own: torch.Tensor) -> None:
        """Take what was added to `of(keys)`."""
        if isinstance(keys.where, slice):
            return
        if self._by_token is None:
            heads, dim, tokens = self._by_dimension.shape
            self._by_token = self._by_dimension.new_zeros((heads, tokens, dim))
        for total, x in zip(self._by_token, own, strict=True):
            total.index_add_(0, keys.where, x.mT.contiguous())

    def total(self) -> torch.Tensor:
        """(kv heads, tokens, dim)"""
        total = self._by_dimension.mT
        return total if self._by_token is None else self._by_token.add_(total)


@dataclass(frozen=True)
class Gradients:
    """Where gradients go: dq (kv heads, heads each, tokens, dim), and sums."""

    dq: torch.Tensor
    dk: KeySums
    dv: KeySums
    inputs: InputGradients


def add_gradients(laid: Laid, given: Given, found: Gradients) -> None:
    """Write dq of the rows of a strip, add the rest."""
    walk = laid.walk
    dk, dv = found.dk.of(laid.keys), found.dv.of(laid.keys)
    narrow = min(laid.k.shape[2], laid.v.shape[2])
    alone = one_by_one(laid.k, laid.shape[2] * laid.strip.length * narrow)
    every_q = laid.rows(walk.q) * walk.scale
    every_do = laid.rows(given.do)
    every_lse = laid.rows(given.lse[..., None])
    # a row without keys has no weights
    every_lse = every_lse.masked_fill(every_lse == -math.inf, math.inf)
    every_delta = laid.rows(given.delta[..., None])
    every_dq = torch.zeros_like(every_q)
    finite = all(bool(x.sum().isfinite()) for x in (every_q, every_do, laid.k, laid.v))
    for part in laid.parts(apart=not alone):
        q, do, lse, delta, dq = (
            x[part.flat] for x in (every_q, every_do, every_lse, every_delta, every_dq)
        )
        for columns in laid.pieces:
            k, v = (laid.window(x, part, columns) for x in (laid.k, laid.v))
            for thorough in (False, True):
                s, unscored, limits, pairs = laid.logits(q, k, part, columns, thorough)
                p = exp_less_(s, lse)
                ds = products(do, v)
                ds.sub_(delta).mul_(p)
                if thorough:
                    drop(laid.over_pairs(p, part), limits)
                    drop(laid.over_pairs(ds, part), limits)
                if not limits or bool(ds.sum().isfinite()):
                    break  # else pairs that are not kept may have been infinite or NaN
            own_dk, own_dv = (laid.window(x.mT, part, columns) for x in (dk, dv))
            if finite:
                add_products(own_dv.mT, do.mT, p.mT)
            else:
                add_kept_products(own_dv, p.mT, do.mT)
            if pairs is not None and walk.scores.any:
                over = laid.over_pairs(ds, part)
                clean = partial(drop, limits=limits)
                over = walk.scores.backward(over, unscored, pairs, walk.space, found.inputs, clean)
                ds = over.reshape(ds.shape)
            if finite:
                add_products(dq, ds, k.mT)
                add_products(own_dk.mT, q.mT, ds.mT)
            else:
                add_kept_products(dq, ds, k.mT)
                add_kept_products(own_dk, ds.mT, q.mT)
    laid.put(found.dq, every_dq.mul_(walk.scale))
    found.dk.take(laid.keys, dk)
    found.dv.take(laid.keys, dv)
