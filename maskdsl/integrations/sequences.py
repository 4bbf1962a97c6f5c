"""Where the sequences of a batch stand in its rows: after padding on the left, before padding on
the right, or several packed into one row.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, ClassVar

import torch

from maskdsl.errors import BindError

Span = tuple[int, int]  # first slot and the one after the last


@dataclass
class Tokens:
    """What a layer's queries and keys are, in slots of the rows of a batch.

    first_query, first_key: the slots of the first ones given. spans: per row its sequence, or None
    for an empty row; None where every row is one sequence without padding. packable: whether
    position_ids may tell several sequences in a row.
    """

    first_query: int
    first_key: int
    spans: list[Span | None] | None
    packable: bool
    ndim: ClassVar[int] = 4  # for transformers it is a mask that is made already
    _packed: tuple[Any, list[list[Span]] | None] = field(default=(None, None), repr=False)

    def contiguous(self) -> Tokens:
        """Itself: transformers asks masks for it."""
        return self

    def packed(
        self, position_ids: torch.Tensor | None, bounds: torch.Tensor | None = None
    ) -> list[list[Span]] | None:
        """Per row the sequences packed into it; None: one each.

        position_ids: (batch or 1, tokens); a sequence starts where they do not go on by one.
        bounds: the first slots of the sequences of the only row, and its end, in place of them.
        """
        told = position_ids if bounds is None else bounds
        if not self.packable or told is None or (bounds is None and told.ndim != 2):
            return None
        if self._packed[0] is not told:
            self._packed = told, _runs(told) if bounds is None else [_between(told.tolist())]
        return self._packed[1]


def padded(mask: torch.Tensor) -> list[Span | None] | None:
    """Spans of the true slots of a bool (batch, slots); None where all are true. Raises BindError
    for padding inside a sequence.
    """
    if mask.ndim != 2:
        raise BindError(f"an attention mask of padding is (batch, tokens), not {tuple(mask.shape)}")
    mask = mask.bool()
    slots = mask.shape[1]
    count = mask.sum(1)
    first = mask.int().argmax(1)
    last = slots - mask.flip(1).int().argmax(1)
    rows = torch.stack([count, first, last], 1).tolist()
    if all(n == slots for n, _, _ in rows):
        return None
    if any(n and n != high - low for n, low, high in rows):
        raise BindError("the attention mask has padding inside a sequence: pad one side only")
    return [(low, high) if n else None for n, low, high in rows]


def _runs(position_ids: torch.Tensor) -> list[list[Span]] | None:
    """Spans between the slots where positions do not go on by one; None where all do."""
    starts = (position_ids.diff(dim=1) != 1).cpu()
    if not starts.any():
        return None
    cuts = [(row.nonzero()[:, 0] + 1).tolist() for row in starts]
    return [_between([0, *row, position_ids.shape[1]]) for row in cuts]


def _between(cuts: list[int]) -> list[Span]:
    return list(pairwise(cuts))
