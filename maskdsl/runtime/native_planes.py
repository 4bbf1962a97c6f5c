"""What scores read besides logits, worked out before the compiled part of the torch backend runs:
of every token once, and of pairs only where it depends on both of theirs.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import torch

from maskdsl.ir.evaluate import evaluate_all
from maskdsl.ir.program import Block
from maskdsl.runtime.native_scores import Plane
from maskdsl.runtime.native_strips import CPlane, CScored, CScores
from maskdsl.runtime.torch_pairs import Pairs
from maskdsl.runtime.torch_strips import Tokens
from maskdsl.runtime.torch_walk import Laid, Walk

X = TypeVar("X")


class Held:
    """What the compiled part is given pointers to, until it has run. bytes: of arrays."""

    def __init__(self) -> None:
        self.bytes = 0
        self._all: list[object] = []

    def __call__(self, x: X) -> X:
        self._all.append(x)
        self.bytes += int(getattr(x, "nbytes", 0))
        return x


class Planes:
    """Of the scores of a walk. slopes: what their slopes read, too.

    Arrays have the shape (kv heads, rows, heads each, queries, keys), or 1 where all are alike.
    """

    def __init__(self, walk: Walk, slopes: bool) -> None:
        self._walk, self._slopes = walk, slopes
        self._queries, self._keys = (torch.arange(x.shape[-2])[None] for x in (walk.q, walk.k))
        self._of_tokens: dict[tuple[int, int], list[np.ndarray]] = {}

    def of(self, laid: Laid, held: Held) -> CScores:
        """The scores of a strip."""
        scores, segment = self._walk.scores, laid.group.query_segment
        assert scores.shapes is not None
        found = []
        tokens = self._tokens(laid)
        for number, block, columns in tokens.blocks():
            score = scores.of[segment][number]
            if score is None:
                continue
            shape = scores.shapes.of[score.root]
            planes = shape.planes if self._slopes else shape.planes[: shape.values]
            joint, apart = ([p for p in planes if p.over_pairs is x] for x in (True, False))
            array: dict[Plane, CPlane] = {}
            if joint:
                rows, every = 1 if laid.even else laid.strip.rows, slice(0, laid.strip.length)
                pairs = laid.pairs(laid.whole(rows), every)
                for plane, x in zip(joint, self._values(joint, pairs, block, columns), strict=True):
                    array[plane] = _plane(x, held)
            if (segment, number) not in self._of_tokens:
                values = self._values(apart, tokens, block, slice(None))
                self._of_tokens[segment, number] = values
            for plane, x in zip(apart, self._of_tokens[segment, number], strict=True):
                array[plane] = _alone(x, laid, columns.start, held)
            own = held((CPlane * len(planes))(*(array[p] for p in planes)))
            found.append(CScored(columns.start, columns.stop, shape.number, ctypes.addressof(own)))
        scored = held((CScored * len(found))(*found))
        return CScores(len(found), ctypes.addressof(scored))

    def _tokens(self, laid: Laid) -> Pairs:
        """All queries and keys, each once: of use to what depends on one of them."""
        walk = self._walk
        return Pairs(
            walk.program, walk.call, walk.batch, laid.group, walk.heads.heads,
            self._queries, self._keys, slice(0, laid.strip.length),
        )  # fmt: skip

    def _values(
        self, planes: Sequence[Plane], pairs: Pairs, block: Block, part: slice
    ) -> list[np.ndarray]:
        if not planes:
            return []
        space, leaves = self._walk.space, pairs.leaves(block, part)
        roots = tuple(p.root for p in planes)
        found = []
        for value in evaluate_all(roots, leaves, self._walk.call.inputs, space):
            x = torch.as_tensor(value, dtype=space.float_dtype).contiguous().numpy()
            found.append(x[(None,) * (5 - x.ndim)])
        return found


def _plane(x: np.ndarray, held: Held) -> CPlane:
    steps = (0 if n == 1 else s // x.itemsize for n, s in zip(x.shape, x.strides, strict=True))
    return CPlane(held(x).ctypes.data, *steps)


def _alone(x: np.ndarray, laid: Laid, first: int, held: Held) -> CPlane:
    """A strip's part of what depends on one of all queries, or on one of all keys; that begins with
    the row's key `first`.
    """
    strip = laid.strip
    for axis, tokens in ((3, strip.queries), (4, strip.keys)):
        if x.shape[axis] > 1:
            x = _some(x, axis, tokens)
    plane = _plane(x, held)
    plane.row = plane.query * laid.size + plane.key * strip.step
    plane.values += x.itemsize * plane.key * first
    return plane


def _some(x: np.ndarray, axis: int, tokens: Tokens) -> np.ndarray:
    if isinstance(tokens.where, slice):
        return x[(slice(None),) * axis + (tokens.where,)]
    return x.take(tokens.where.numpy(), axis)
