"""What the forward and the backward pass share: strips of one head class and batch entry, cut into
few enough pairs at a time, and their logits.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from copy import copy
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise

import torch

from maskdsl.ir.program import Program
from maskdsl.runtime.boundary import Call
from maskdsl.runtime.groups import Group
from maskdsl.runtime.torch_masks import Keeps, Limits, Masks, forbid
from maskdsl.runtime.torch_pairs import Heads, Pairs
from maskdsl.runtime.torch_product import products
from maskdsl.runtime.torch_scores import Scores
from maskdsl.runtime.torch_space import TorchSpace
from maskdsl.runtime.torch_strips import Strip

BUDGET = 2**19  # logits held at a time: 2 MB
LEAST_KEYS = 2**9  # of a piece of a row, however many queries there are


@dataclass(frozen=True)
class Part:
    """Rows of one head, or one row of several heads: what is multiplied at once.

    flat: which they are of all heads' rows, head after head.
    """

    heads: slice
    rows: slice
    flat: slice


class Walk:
    """Some heads of one batch entry. keeps: which keys they keep, per pair of segments."""

    def __init__(
        self, program: Program, heads: tuple[int, ...], keeps: Keeps, scores: Scores, scale: float,
        call: Call, batch: int,
    ) -> None:  # fmt: skip
        q = call.q
        self.program, self.keeps, self.scores = program, keeps, scores
        self.call, self.batch = call, batch
        self.dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
        self.space = TorchSpace(q.device, self.dtype)
        self.heads = Heads.of(heads, program, q.device)
        self.each = self.heads.heads.shape[1]
        self.q = self.heads.queries(q[batch])
        self.k = self.heads.keys(call.k[batch])
        self.v = self.heads.keys(call.v[batch])
        self.scale = scale

    def split(self, most: int) -> list[tuple[slice, Walk]]:
        """At most so many walks of some heads of keys and values each, and which."""
        count = len(self.heads.kv)
        ends = [count * i // min(most, count) for i in range(min(most, count) + 1)]
        return [(slice(a, b), self._some(slice(a, b))) for a, b in pairwise(ends)]

    def _some(self, part: slice) -> Walk:
        walk = copy(self)
        walk.heads = self.heads.some(part)
        walk.q, walk.k, walk.v = self.q[part], self.k[part], self.v[part]
        return walk


class Laid:
    """A strip and its keys and values, ready for products; (kv heads, strip keys, dim)."""

    def __init__(self, walk: Walk, group: Group, strip: Strip, masks: Masks, even: bool) -> None:
        self.walk, self.group, self.strip, self.masks = walk, group, strip, masks
        self.even = even  # whether what scores add is the same in all rows
        device = walk.q.device
        self.queries, self.keys = strip.queries.on(device), strip.keys.on(device)
        self.size = len(group.query_offsets)
        self.shape = (len(walk.heads.kv), strip.rows, walk.each * self.size)
        self._added: dict[tuple[int, int], list[tuple[slice, torch.Tensor]]] = {}

    @cached_property
    def k(self) -> torch.Tensor:
        return self._keys(self.walk.k)

    @cached_property
    def v(self) -> torch.Tensor:
        return self._keys(self.walk.v)

    def _keys(self, x: torch.Tensor) -> torch.Tensor:
        found = self.keys.take(x).to(self.walk.dtype)
        dense = found.stride(2) == 1 and found.stride(1) == found.shape[2]
        return found if dense else found.contiguous()

    @cached_property
    def pieces(self) -> list[slice]:
        """Pieces of a row's keys."""
        length = self.strip.length
        count = round(length / max(LEAST_KEYS, BUDGET // self.shape[2])) or 1
        return [slice(length * i // count, length * (i + 1) // count) for i in range(count)]

    def rows(self, x: torch.Tensor) -> torch.Tensor:
        """(kv heads * rows, heads each * queries, dim) of (kv heads, heads each, tokens, dim)."""
        found = self._over_rows(self.queries.take(x))
        return found.reshape(-1, self.shape[2], x.shape[-1]).to(self.walk.dtype)

    def put(self, x: torch.Tensor, value: torch.Tensor) -> None:
        """Write where `rows` reads."""
        value = value.view(self.shape[0], -1, self.walk.each, self.size, x.shape[-1])
        if isinstance(self.queries.where, slice):
            self._over_rows(self.queries.take(x)).copy_(value)
        else:
            flat = value.transpose(1, 2).reshape(*x.shape[:2], -1, x.shape[-1])
            x.index_copy_(2, self.queries.where, flat.to(x.dtype))

    def _over_rows(self, x: torch.Tensor) -> torch.Tensor:
        """(kv heads, rows, heads each, queries, dim) of (kv heads, heads each, rows * queries,
        dim).
        """
        return x.view(*x.shape[:2], -1, self.size, x.shape[-1]).transpose(1, 2)

    def parts(self, apart: bool = False) -> Iterator[Part]:
        """What to multiply at once. apart: rows of one part share no keys."""
        heads, rows, queries = self.shape
        most = max(1, (BUDGET - 1) // (queries * (self.strip.length // len(self.pieces))))
        turn = self.strip.apart if apart else 1
        if min(-(-rows // turn), most) >= min(heads, most):
            for h in range(heads):
                for first in range(turn):
                    for i in range(first, rows, most * turn):
                        end = min(rows, i + most * turn)
                        own, flat = (slice(x + i, x + end, turn) for x in (0, h * rows))
                        yield Part(slice(h, h + 1), own, flat)
        else:
            for i in range(rows):
                for h in range(0, heads, most):
                    end = min(heads, h + most)
                    flat = slice(h * rows + i, (end - 1) * rows + i + 1, rows)
                    yield Part(slice(h, end), slice(i, i + 1, 1), flat)

    def whole(self, rows: int) -> Part:
        """The first rows of all heads."""
        return Part(slice(None), slice(0, rows, 1), slice(None))

    def window(self, x: torch.Tensor, part: Part, columns: slice) -> torch.Tensor:
        """(..., count, keys, dim) of keys, values or their gradients, from (..., kv heads, strip
        keys, dim): a view.
        """
        *rest, head, key, dim = x.stride()
        step = self.strip.step
        first = part.heads.start * head + (part.rows.start * step + columns.start) * key
        count = len(range(self.shape[0] * self.shape[1])[part.flat])
        turn = head if part.heads.stop - part.heads.start > 1 else part.rows.step * step * key
        size = (*x.shape[:-3], count, columns.stop - columns.start, x.shape[-1])
        return x.as_strided(size, (*rest, turn, key, dim), x.storage_offset() + first)

    def pairs(self, part: Part, columns: slice) -> Pairs:
        """The pairs of a part."""
        walk, strip = self.walk, self.strip
        device = walk.q.device
        queries = self.queries.places.to(device).view(strip.rows, self.size)[part.rows]
        row = torch.arange(strip.rows, device=device)[part.rows] * strip.step
        at = row[:, None] + torch.arange(columns.start, columns.stop, device=device)
        keys = self.keys.places.to(device)[at]
        heads = walk.heads.heads[part.heads]
        return Pairs(walk.program, walk.call, walk.batch, self.group, heads, queries, keys, columns)

    def over_pairs(self, s: torch.Tensor, part: Part) -> torch.Tensor:
        """(kv heads, rows, heads each, queries, keys) of (count, queries, keys)."""
        heads = part.heads.stop - part.heads.start
        return s.view(heads, -1, self.walk.each, self.size, s.shape[-1])

    def logits(
        self, q: torch.Tensor, k: torch.Tensor, part: Part, columns: slice, thorough: bool = True
    ) -> tuple[torch.Tensor, torch.Tensor | None, Limits, Pairs | None]:
        """(scored logits, (count, queries, keys); unscored ones over pairs, where scores do more
        than add; limits; pairs, where anything reads them).

        q: (count, queries, dim), k: (count, keys, dim). thorough: as of `forbid`.
        """
        scores = self.walk.scores
        s = products(q, k)
        unscored = pairs = None
        if scores.any or self.group.decided:
            pairs = self.pairs(part, columns)
        if pairs is not None and not scores.only_add:
            unscored = self.over_pairs(s, part)
            s = scores.shape(unscored, pairs, self.walk.space).view(s.shape)
        elif pairs is not None and scores.any:
            over = self.over_pairs(s, part)
            for own, value in self._what_is_added(part, columns, pairs):
                over[..., own] += value
        limits = self.masks.limits(columns, pairs)
        if limits:
            forbid(self.over_pairs(s, part), limits, thorough)
        return s, unscored, limits, pairs

    def _what_is_added(
        self, part: Part, columns: slice, pairs: Pairs
    ) -> list[tuple[slice, torch.Tensor]]:
        if not self.even:
            return self.walk.scores.added(pairs, self.walk.space)
        key = (part.heads.start, columns.start)
        if key not in self._added:
            if len(self._added) > 1 and part.heads.start != next(iter(self._added))[0]:
                self._added.clear()
            one = self.pairs(replace(part, rows=slice(0, 1, 1)), columns)
            self._added[key] = self.walk.scores.added(one, self.walk.space)
        return self._added[key]


LOG2E = math.log2(math.e)


def exp_less_(x: torch.Tensor, off: torch.Tensor) -> torch.Tensor:
    """exp(x - off) in place, by exp2, which is much faster on a CPU. The difference comes first:
    it is exact where x is off, however large both are.
    """
    return x.sub_(off).mul_(LOG2E).exp2_()
