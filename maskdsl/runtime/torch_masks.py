"""Masks of the pairs that a row computes but does not keep."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch

from maskdsl.ir.nodes import Node
from maskdsl.runtime.groups import Group
from maskdsl.runtime.torch_pairs import Pairs

Keeps = tuple[tuple[Node, ...], ...]
Limits = list[tuple[slice, torch.Tensor]]


class Masks:
    """Of one group at one call. What forbidden pairs hold is never read, be it infinite or NaN."""

    def __init__(
        self, group: Group, keeps: Keeps, device: torch.device, dtype: torch.dtype
    ) -> None:
        self._group = group
        self._keeps = keeps
        self._device, self._dtype = device, dtype
        self._known: dict[tuple[int, int], torch.Tensor] = {}

    def limits(self, columns: slice, pairs: Pairs | None) -> Limits:
        """(which of these columns, what their logits may be at most): plus infinity where a pair is
        kept, minus infinity where it is not, of a shape that broadcasts to the pairs'.

        pairs: those of the columns, where the call decides any.
        """
        return [
            (slice(a - columns.start, b - columns.start), self._limit(pairs, a, b))
            for a, b in self._ranges(columns)
        ]

    def _ranges(self, columns: slice) -> Iterator[tuple[int, int]]:
        for part in self._group.partial:
            first, end = max(part.start, columns.start), min(part.stop, columns.stop)
            if first < end:
                yield first, end

    def _limit(self, pairs: Pairs | None, first: int, end: int) -> torch.Tensor:
        if pairs is not None and self._group.open(slice(first, end)):
            start = pairs.columns.start
            return self._as_limit(pairs.kept(self._keeps, slice(first - start, end - start)))
        if (first, end) not in self._known:
            kept = torch.from_numpy(self._group.kept(slice(first, end))).to(self._device)
            self._known[first, end] = self._as_limit(kept)
        return self._known[first, end]

    def _as_limit(self, kept: torch.Tensor) -> torch.Tensor:
        return kept.to(self._dtype).sub_(0.5).mul_(math.inf).contiguous()


def forbid(s: torch.Tensor, limits: Limits, thorough: bool) -> None:
    """Logits over pairs become minus infinity where the pair is not kept.

    thorough: also where they are NaN, which otherwise stay.
    """
    for part, limit in limits:
        x = s[..., part]
        if thorough:
            torch.nan_to_num(x, nan=math.inf, posinf=math.inf, neginf=-math.inf, out=x)
        torch.minimum(x, limit, out=x)


def drop(gradient: torch.Tensor, limits: Limits) -> None:
    """Gradients over pairs become zero where the pair is not kept."""
    for part, limit in limits:
        x = gradient[..., part]
        x.copy_(torch.where(limit > 0, x, 0.0))
