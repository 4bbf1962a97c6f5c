"""Attention over the union of disjoint key sets, from what each of them gave."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from maskdsl.errors import BindError


def merge(
    parts: Sequence[tuple[torch.Tensor, torch.Tensor]], layout: str = "bhnd"
) -> tuple[torch.Tensor, torch.Tensor]:
    """(out, lse) over all keys, from (out, lse) over disjoint sets of them.

    out: (batch, heads, tokens, dim), or (batch, tokens, heads, dim) for layout "bnhd".
    lse: natural, (batch, heads, tokens). The result has the types of the first part; a query for
    which no part keeps a key gives zeros and minus infinity. Differentiable. Raises BindError for
    shapes that differ.

    The weights are those of the online softmax (Milakov and Gimelshein, arXiv 1805.02867).
    """
    if layout not in ("bhnd", "bnhd"):
        raise BindError(f"a layout is 'bhnd' or 'bnhd', not {layout!r}")
    if not isinstance(parts, Sequence) or not parts or not all(map(_is_part, parts)):
        raise BindError("merge takes a sequence of (out, lse) pairs of float tensors")
    first, first_lse = parts[0]
    wanted = first.shape[:-1] if layout == "bhnd" else first.transpose(1, 2).shape[:-1]
    for out, lse in parts:
        if out.shape != first.shape or lse.shape != wanted:
            raise BindError(
                f"every part has out {tuple(first.shape)} and lse {tuple(wanted)}, "
                f"not {tuple(out.shape)} and {tuple(lse.shape)}"
            )
    lses = torch.stack([lse for _, lse in parts])
    empty = (lses == -math.inf).all(0)
    lses = lses.masked_fill(empty, 0.0)
    total = torch.logsumexp(lses, 0)
    weights = torch.exp(lses - total).masked_fill(empty, 0.0)[..., None]
    if layout == "bnhd":
        weights = weights.transpose(2, 3)
    outs = torch.stack([out.to(lses.dtype) for out, _ in parts])
    merged = torch.where(weights == 0, 0, weights * outs).sum(0).to(first.dtype)
    return merged, total.masked_fill(empty, -math.inf).to(first_lse.dtype)


def _is_part(part: Any) -> bool:
    return (
        isinstance(part, (tuple, list))
        and len(part) == 2
        and all(isinstance(x, torch.Tensor) and x.is_floating_point() for x in part)
    )
