"""What scores read besides logits, worked out before the compiled part of the torch backend runs:
of every token once, and of pairs only where it depends on both of theirs.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

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
            step = _step(laid) if laid.even else 0
            if joint and step:
                leaves, size = _diagonals(self._walk, laid, block, step), laid.size
                for plane, x in zip(joint, self._evaluated(joint, leaves), strict=True):
                    array[plane] = _along(x, size, held)
            elif joint:
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
        return self._evaluated(planes, pairs.leaves(block, part)) if planes else []

    def _evaluated(self, planes: Sequence[Plane], leaves: Mapping[Any, Any]) -> list[np.ndarray]:
        space, roots, found = self._walk.space, tuple(p.root for p in planes), []
        for value in evaluate_all(roots, leaves, self._walk.call.inputs, space):
            x = torch.as_tensor(value, dtype=space.float_dtype).contiguous().numpy()
            found.append(x[(None,) * (5 - x.ndim)])
        return found


def _step(laid: Laid) -> int:
    """How far tokens of a row's queries, and of its keys, lie from each other, where that is one
    number along one axis; else 0.
    """
    group, program = laid.group, laid.walk.program
    sides = [program.queries[group.query_segment], *(program.keys[n] for n in group.segments)]
    if len(sides) != 2 or any(len(x.axes) != 1 for x in sides):
        return 0
    steps = np.concatenate([np.diff(group.query_offsets), np.diff(group.key_offsets)])
    return int(steps[0]) if len(steps) and (steps == steps[0]).all() else 0


def _diagonals(walk: Walk, laid: Laid, block: Block, step: int) -> dict[Any, Any]:
    """What expressions read that depend on how far a key is from its query: all distances of a
    row's pairs, from the last query's first key on.
    """
    group = laid.group
    first = int(group.keys[0, 0] + group.key_offsets[0] - block.keys.offset)
    first -= int(group.queries[0] + group.query_offsets[0] - block.queries.offset)
    apart = first + step * torch.arange(1 - laid.size, laid.strip.length)
    return {
        "batch": walk.batch,
        "head": walk.heads.heads[:, None, :, None, None],
        ("q", block.queries.axes[0][0]): torch.zeros((), dtype=torch.int64),
        ("k", block.keys.axes[0][0]): apart,
    }


def _along(x: np.ndarray, size: int, held: Held) -> CPlane:
    """Numbers of diagonals, (kv heads, 1, heads each, 1, distances): from query to query they move
    by one.
    """
    plane = _plane(x, held)
    if x.shape[4] > 1:
        plane.values += (size - 1) * x.itemsize
        plane.query = -1
    return plane


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
