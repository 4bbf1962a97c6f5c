"""What the forward and the backward pass share: strips of one head class and batch entry, cut into
few enough pairs at a time, and their logits.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from maskdsl.ir.program import Program
from maskdsl.planner.plan import HeadClass
from maskdsl.runtime.boundary import Call
from maskdsl.runtime.groups import Group
from maskdsl.runtime.torch_masks import Limits, Masks, forbid
from maskdsl.runtime.torch_pairs import Heads, Pairs
from maskdsl.runtime.torch_product import careful_products, products
from maskdsl.runtime.torch_scores import Scores
from maskdsl.runtime.torch_space import TorchSpace
from maskdsl.runtime.torch_strips import Strip

BUDGET = 2**19  # logits held at a time: 2 MB, which a core keeps in its cache and malloc reuses
LEAST_KEYS = 2**9  # of a piece of a row, however many queries there are


@dataclass(frozen=True)
class Part:
    """Rows of one head, or one row of several heads: what is multiplied at once."""

    heads: slice
    rows: slice

    @property
    def count(self) -> int:
        """How many rows."""
        return len(range(self.rows.start, self.rows.stop, self.rows.step))


class Walk:
    """One head class of one batch entry."""

    def __init__(
        self, program: Program, c: HeadClass, scores: Scores, scale: float, call: Call, batch: int
    ) -> None:
        q = call.q
        self.program, self.head_class, self.scores = program, c, scores
        self.call, self.batch = call, batch
        self.dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
        self.space = TorchSpace(q.device, self.dtype)
        self.heads = Heads.of(c.heads, program, q.device)
        self.each = self.heads.heads.shape[1]
        self.q = self.heads.queries(q[batch])
        self.k = self.heads.keys(call.k[batch])
        self.v = self.heads.keys(call.v[batch])
        self.scale = scale
        # Outputs in float32 show the rounding errors of sums, shorter ones do not.
        self.careful = q.dtype == torch.float32


class Laid:
    """A strip and its keys and values, ready for products; (kv heads, strip keys, dim)."""

    def __init__(self, walk: Walk, group: Group, strip: Strip, masks: Masks, even: bool) -> None:
        self.walk, self.group, self.strip, self.masks = walk, group, strip, masks
        self.even = even  # whether what scores add is the same in all rows
        device = walk.q.device
        self.queries, self.keys = strip.queries.on(device), strip.keys.on(device)
        self.size = len(group.query_offsets)
        self.shape = (len(walk.heads.kv), strip.rows, walk.each * self.size)
        self.k = self._keys(walk.k)
        self.v = self._keys(walk.v)
        self._added: dict[tuple[int, int], list[tuple[slice, torch.Tensor]]] = {}

    def _keys(self, x: torch.Tensor) -> torch.Tensor:
        found = self.keys.take(x).to(self.walk.dtype)
        dense = found.stride(2) == 1 and found.stride(1) == found.shape[2]
        return found if dense else found.contiguous()

    def rows(self, x: torch.Tensor, part: Part) -> torch.Tensor:
        """(count, heads each * queries, dim) of (kv heads, heads each, tokens, dim)."""
        where = self._where(part)
        if where is None:
            found = self._view(x, part)
        else:
            found = self._over_rows(x[part.heads].index_select(2, where))
        return found.reshape(-1, self.shape[2], x.shape[-1]).to(self.walk.dtype)

    def put(self, x: torch.Tensor, part: Part, value: torch.Tensor) -> None:
        """Write where `rows` reads."""
        where = self._where(part)
        own = self._view(x, part) if where is None else None
        heads = part.heads.stop - part.heads.start
        value = value.view(heads, -1, self.walk.each, self.size, x.shape[-1])
        if own is not None:
            own.copy_(value)
        elif where is not None:
            flat = value.transpose(1, 2).reshape(heads, self.walk.each, -1, x.shape[-1])
            x[part.heads].index_copy_(2, where, flat.to(x.dtype))

    def _where(self, part: Part) -> torch.Tensor | None:
        """Places of the queries of a part, or None where those of the strip are a slice."""
        if isinstance(self.queries.where, slice):
            return None
        return self.queries.where.view(self.strip.rows, self.size)[part.rows].flatten()

    def _view(self, x: torch.Tensor, part: Part) -> torch.Tensor:
        """(kv heads, rows, heads each, queries, dim)"""
        x = x[part.heads, :, self.queries.where]
        x = x.view(*x.shape[:2], self.strip.rows, self.size, x.shape[-1])
        return x[:, :, part.rows].transpose(1, 2)

    def _over_rows(self, x: torch.Tensor) -> torch.Tensor:
        """The same of (kv heads, heads each, rows * queries, dim)."""
        return x.view(*x.shape[:2], -1, self.size, x.shape[-1]).transpose(1, 2)

    def parts(self, apart: bool) -> Iterator[tuple[Part, list[slice]]]:
        """What to multiply at once, and the pieces of its keys.

        apart: rows of one part share no keys.
        """
        heads, rows, queries = self.shape
        length = self.strip.length
        piece = max(LEAST_KEYS, BUDGET // queries)
        pieces = [slice(a, min(a + piece, length)) for a in range(0, length, piece)]
        most = max(1, BUDGET // (queries * min(piece, length)))
        turn = self.strip.apart if apart else 1
        if min(-(-rows // turn), most) >= min(heads, most):
            for h in range(heads):
                for first in range(turn):
                    for i in range(first, rows, most * turn):
                        end = min(rows, i + most * turn)
                        yield Part(slice(h, h + 1), slice(i, end, turn)), pieces
        else:
            for i in range(rows):
                for h in range(0, heads, most):
                    yield Part(slice(h, min(heads, h + most)), slice(i, i + 1, 1)), pieces

    def window(self, x: torch.Tensor, part: Part, columns: slice) -> torch.Tensor:
        """(count, keys, dim) of keys, values or their gradients: a view."""
        if part.heads.stop - part.heads.start == 1:
            return self.strip.windows(x, part.heads.start, part.rows, columns)
        first = part.rows.start * self.strip.step
        return x[part.heads, first + columns.start : first + columns.stop]

    def pairs(self, part: Part, columns: slice) -> Pairs:
        """The pairs of a part."""
        walk, strip = self.walk, self.strip
        device = walk.q.device
        queries = self.queries.places.to(device).view(strip.rows, self.size)[part.rows]
        places = self.keys.places.to(device)[None, :, None]
        keys = strip.windows(places, 0, part.rows, columns)[..., 0]
        heads = walk.heads.heads[part.heads]
        return Pairs(walk.program, walk.call, walk.batch, self.group, heads, queries, keys, columns)

    def over_pairs(self, s: torch.Tensor, part: Part) -> torch.Tensor:
        """(kv heads, rows, heads each, queries, keys) of (count, queries, keys)."""
        heads = part.heads.stop - part.heads.start
        return s.view(heads, -1, self.walk.each, self.size, s.shape[-1])

    def logits(
        self, q: torch.Tensor, part: Part, columns: slice, careful: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor | None, Limits, Pairs | None]:
        """(scored logits, (count, queries, keys); unscored ones over pairs, where scores do more
        than add; limits; pairs, where anything reads them).

        careful: with rounding errors as small as outputs need.
        """
        scores = self.walk.scores
        k = self.window(self.k, part, columns)
        careful = careful and self.walk.careful
        s = careful_products(q, k) if careful else products(q, k)
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
        forbid(self.over_pairs(s, part), limits)
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
            one = self.pairs(Part(part.heads, slice(0, 1, 1)), columns)
            self._added[key] = self.walk.scores.added(one, self.walk.space)
        return self._added[key]


LOG2E = math.log2(math.e)


def exp_(x: torch.Tensor) -> torch.Tensor:
    """exp in place, by exp2, which is much faster on a CPU."""
    return x.mul_(LOG2E).exp2_()


def shift(top: torch.Tensor) -> torch.Tensor:
    """What to take off logits whose maximum is `top`: zero where all are minus infinity."""
    return top.masked_fill(top == -math.inf, 0)
