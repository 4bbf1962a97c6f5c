"""Attention of a layer by a pattern, sequence by sequence: with padding, packing and caches."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import groupby
from typing import Any

import torch

from maskdsl.errors import BindError
from maskdsl.integrations.kernels import kernel_for
from maskdsl.integrations.named import Named
from maskdsl.integrations.relative import farthest, relative
from maskdsl.integrations.sequences import Span, Tokens


def attend(
    named: Named,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    tokens: Tokens,
    inputs: Mapping[str, torch.Tensor],
    scale: float | None = None,
    packed: list[list[Span]] | None = None,
) -> torch.Tensor:
    """Attention of q, (batch, heads, tokens, head_dim), over k and v, (batch, kv_heads, slots,
    head_dim); slots past the last query are not looked at.

    Every sequence is attended as if it stood alone, its first token at position 0; tokens of none
    get zeros. packed: the sequences of each row, where they are several. Raises BindError for a
    cache that has dropped what the pattern sees, and what kernels raise.
    """
    end = tokens.first_query + q.shape[2]
    rows: list[list[Span]]
    if packed is not None:
        rows = packed if len(packed) == len(q) else packed * len(q)
    elif tokens.spans is not None:
        rows = [[] if span is None else [span] for span in tokens.spans]
    else:
        rows = [[(0, end)]] * len(q)
    if all(row == [(0, end)] for row in rows):
        return _sequence(named, q, k, v, (0, end), tokens, inputs, scale)
    _check_inputs(named, q.shape[1], k.shape[1])
    out = q.new_zeros((*q.shape[:3], v.shape[3]))
    row = 0
    for spans, same in groupby(rows):
        part = slice(row, row + len(list(same)))
        row = part.stop
        for low, high in spans:
            high = min(high, end)
            first = max(low, tokens.first_query)
            if first < high:
                span = low, high
                found = _sequence(named, q[part], k[part], v[part], span, tokens, inputs, scale)
                out[part, :, first - tokens.first_query : high - tokens.first_query] = found
    return out


def _sequence(
    named: Named,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    span: Span,
    tokens: Tokens,
    inputs: Mapping[str, torch.Tensor],
    scale: float | None,
) -> torch.Tensor:
    """Attention of those tokens of q that lie in the span."""
    low, high = span
    first = max(low, tokens.first_query)
    start = max(low, tokens.first_key)
    if start > low:
        _check_dropped(named, q.shape[1], k.shape[1], high - low, first - start)
    q = q[:, :, first - tokens.first_query : high - tokens.first_query]
    k, v = (x[:, :, start - tokens.first_key : high - tokens.first_key] for x in (k, v))
    if k.shape[2] != high - start:
        raise BindError(f"{k.shape[2]} keys are given for the tokens {start} to {high}")
    named.extents(high - start)  # what does not fit is told in the line's own words
    kernel = kernel_for(named.pattern, named.values, q, k, v, scale=scale)
    out = kernel(q, k, v, **dict[str, Any](inputs))  # the last query stands at the last key
    assert isinstance(out, torch.Tensor)
    return out


def _check_dropped(named: Named, heads: int, kv_heads: int, tokens: int, kept: int) -> None:
    """That no key further back than `kept` is seen, so that those before it may be gone."""
    name = named.pattern.name
    if not relative(named.bind(heads, kv_heads).program):
        raise BindError(
            f"{name} depends on where a sequence starts, which the layer's cache has dropped: "
            "set config.sliding_window=None, or its layer_types to 'full_attention'"
        )
    far = farthest(named, heads, kv_heads, 1 << (tokens - 1).bit_length())
    if far > kept:
        raise BindError(
            f"{name} sees keys {far} tokens back, of which the layer's cache keeps {kept}: "
            "set config.sliding_window to the pattern's"
        )


def _check_inputs(named: Named, heads: int, kv_heads: int) -> None:
    for array in named.bind(heads, kv_heads).program.inputs:
        if not all(isinstance(d, int) for d in array.dims):
            raise BindError(
                f"the input '{array.name}' has dimensions of tokens or batch: "
                "that cannot be padded or packed"
            )
