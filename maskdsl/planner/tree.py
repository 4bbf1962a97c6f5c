"""Exact tile kinds from one tree of boxes, with equal boxes looked at once.

A box is a range of queries times a range of keys, per axis. Boxes that bounds cannot decide are
split, one axis at a time, its query and key side together, first down to tiles, then inside tiles
down to single pairs; several times at once while they are few. Undecided boxes of one level whose
signature and clipped widths agree are the same up to a translation: one of them is split further.
For a regular pattern a level so holds a few boxes, whatever the extents.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from maskdsl.errors import PlanError
from maskdsl.ir import bounds
from maskdsl.ir.evaluate import evaluate
from maskdsl.ir.nodes import Node, postorder
from maskdsl.ir.rewrite import VARYING
from maskdsl.planner.boxes import EMPTY, FULL, MIXED, OUTSIDE, PARTIAL, Side, Space

MAX_BOXES = 4_000_000  # of one level
MAX_INNER = 100_000  # of one level inside tiles: past them the pairs are evaluated one by one
FEW_PAIRS = 2**17  # undecided pairs that are evaluated at once rather than split
PAIRS_A_BOX = 2**10  # evaluating so many takes longer than looking at a box
CHUNK = 2**20  # pairs evaluated at a time: what stays in the caches
AT_ONCE = 64  # boxes of a level that take no longer to look at than a few


@dataclass
class Level:
    """Undecided boxes of one level, each once; what their children are.

    widths: places per digit of a box here. children: (child, digit) offsets, the same for every
    box.
    kind, node: (boxes, children) kinds, and the number of the undecided child at the next level.
    pairs, tiles: (boxes, children) of decided children.
    """

    widths: np.ndarray
    children: np.ndarray
    child_widths: np.ndarray
    kind: np.ndarray
    node: np.ndarray
    pairs: np.ndarray
    tiles: np.ndarray


@dataclass
class Summary:
    """Per undecided box of a level: the kind all its tiles have (or MIXED), and counts."""

    kind: np.ndarray
    pairs: np.ndarray
    full: np.ndarray
    partial: np.ndarray


class Tree:
    """The kinds of all (query tile, key tile) pairs of one keep expression.

    certain: number of pairs kept whatever the inputs hold; pairs: the same, or None where an input
    has a say.
    full, partial: numbers of tile pairs.
    limit: undecided boxes of one level. rough: leave tiles that bounds do not decide as partial,
    until `finish` looks inside them.
    Raises PlanError where a pattern is too irregular for its number of tiles.
    """

    def __init__(
        self,
        keep: Node,
        queries: Side,
        keys: Side,
        limit: int = MAX_BOXES,
        rough: bool = False,
    ) -> None:
        self.space = space = Space(keep, queries, keys)
        self.keep = space.keep
        self.varies = any(
            (n.op == "load" and n.value.is_input) or n.op in VARYING for n in postorder(keep)
        )
        self.rough = False
        self.levels: list[Level] = []
        self.summaries: list[Summary] = []
        self.leaves = np.zeros((0, len(space.digits)), dtype=np.int64)
        root = np.zeros((1, len(space.digits)), dtype=np.int64)
        kind, _, pairs, tiles = space.classify(root, space.widths)
        self.root_kind = int(kind[0])
        self.pairs: int | None
        if self.root_kind != MIXED:
            self.certain = self.pairs = int(pairs[0])
            self.full = int(tiles[0]) if self.root_kind == FULL else 0
            self.partial = 0
            return
        self.leaves, self.levels = self.grow(root, space.widths, space.tile_widths, limit)
        self.rough = rough
        if rough:
            count = len(self.leaves)
            self._sum(np.full(count, PARTIAL, dtype=np.int8), np.zeros(count, dtype=np.int64))
        else:
            self._sum(*self._resolve(self.leaves))

    def finish(self) -> Tree:
        """This tree, its undecided tiles decided."""
        if self.rough:
            self.rough = False
            self._sum(*self._resolve(self.leaves))
        return self

    def _sum(self, kind: np.ndarray, inner: np.ndarray) -> None:
        """Counts and kinds of all boxes, from those of the undecided tiles."""
        full, partial = ((kind == k).astype(np.int64) for k in (FULL, PARTIAL))
        self.summaries = self._collapse(self.levels, Summary(kind, inner, full, partial))
        top = self.summaries[0]
        self.root_kind = int(top.kind[0])
        self.certain = int(top.pairs[0])
        self.pairs = None if self.varies else self.certain
        self.full, self.partial = int(top.full[0]), int(top.partial[0])

    def grow(
        self, boxes: np.ndarray, start: np.ndarray, stop: np.ndarray, limit: int
    ) -> tuple[np.ndarray, list[Level]]:
        """Split boxes of `start` widths down to `stop` widths: one box of each undecided class, and
        all levels.
        """
        widths, levels = start, []
        steps = self._schedule(start, stop)[::-1]
        while steps:
            split = steps.pop()
            while steps and max(len(boxes), 1) << len(split + steps[-1]) <= AT_ONCE:
                split = split + steps.pop()
            boxes, widths, level = self._split(boxes, widths, split, limit)
            levels.append(level)
        return boxes, levels

    def _schedule(self, start: np.ndarray, stop: np.ndarray) -> list[list[int]]:
        """Which digits to halve, step by step: residues first, axis by axis, both sides at once."""
        steps: list[list[int]] = []
        names = dict.fromkeys(a for side in self.space.sides for a in side.axes)
        for parts, name in itertools.product(("r", "jl"), names):
            todo = {
                i: int(start[i] // stop[i]).bit_length() - 1
                for i, d in enumerate(self.space.digits)
                if d.part in parts and self.space.side(d).axes[d.axis] == name
            }
            for left in range(max(todo.values(), default=0), 0, -1):
                steps.append([i for i, halvings in todo.items() if halvings >= left])
        return steps

    def _split(
        self, boxes: np.ndarray, widths: np.ndarray, split: list[int], limit: int
    ) -> tuple[np.ndarray, np.ndarray, Level]:
        parts = widths >> np.bincount(split, minlength=len(widths))
        children = offsets(widths, parts)
        starts = (boxes[:, None, :] + children[None, :, :]).reshape(-1, len(widths))
        if len(starts) > limit:
            raise PlanError(
                f"too irregular for this many tiles: more than {limit} boxes to look at"
            )
        kind, key, pairs, tiles = self.space.classify(starts, parts)
        node = np.full(len(starts), -1, dtype=np.int64)
        open_ = np.flatnonzero(kind == MIXED)
        _, first, inverse = np.unique(key[open_], return_index=True, return_inverse=True)
        node[open_] = inverse
        shape = (len(boxes), len(children))
        level = Level(
            widths, children, parts, *(x.reshape(shape) for x in (kind, node, pairs, tiles))
        )
        return starts[open_[first]], parts, level

    def _collapse(self, levels: list[Level], below: Summary) -> list[Summary]:
        """Summaries of all levels, from that of the boxes below the last one."""
        summaries = [below]
        for level in reversed(levels):
            below = _summary(level, below, self.space.residues_apart(level.widths))
            summaries.append(below)
        return summaries[::-1]

    def _resolve(self, tiles: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(kind, pairs) of undecided tile pairs, exactly."""
        q, k = (side.grid.tile.lanes for side in self.space.sides)
        if len(tiles) * q * k > FEW_PAIRS:
            try:
                return self._resolve_by_boxes(tiles)
            except PlanError:
                pass  # too irregular: pair by pair then
        return self._resolve_by_pairs(tiles, q * k)

    def _resolve_by_boxes(self, tiles: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Split tiles further, down to single pairs."""
        widths = self.space.tile_widths
        count = len(tiles) * math.prod(s.grid.tile.lanes for s in self.space.sides)
        limit = max(MAX_INNER, min(MAX_BOXES, count // PAIRS_A_BOX))
        boxes, levels = self.grow(tiles, widths, self.space.pair_widths, limit)
        kind, pairs = self._resolve_by_pairs(boxes, 1)
        none = np.zeros_like(pairs)
        top = self._collapse(levels, Summary(kind, pairs, none, none))[0]
        return np.where(top.kind == MIXED, PARTIAL, top.kind).astype(np.int8), top.pairs

    def _resolve_by_pairs(self, boxes: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
        """Evaluate every pair of boxes of `size` pairs: whole tiles, or single pairs."""
        kinds = [np.zeros(0, dtype=np.int8)]
        pairs = [np.zeros(0, dtype=np.int64)]
        step = max(1, CHUNK // size)
        for i in range(0, len(boxes), step):
            keep, valid, maybe = self.truth(boxes[i : i + step], single=size == 1)
            kept = (keep & valid).sum((1, 2))
            possible = ((keep | maybe) & valid).sum((1, 2))
            total = valid.sum((1, 2))
            kind = np.where(kept == total, FULL, np.where(possible == 0, EMPTY, PARTIAL))
            kinds.append(kind.astype(np.int8))
            pairs.append(kept)
        return np.concatenate(kinds), np.concatenate(pairs)

    def judge(self, decide: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> np.ndarray:
        """`decide(keep, valid)` of one tile pair of each undecided class: bool (classes,).

        keep, valid: bool (tile pairs, query lanes, key lanes), the truth and what lies inside.
        """
        lanes = [side.grid.tile.lanes for side in self.space.sides]
        found = [np.zeros(0, dtype=bool)]
        step = max(1, CHUNK // (lanes[0] * lanes[1]))
        for i in range(0, len(self.leaves), step):
            keep, valid, _ = self.truth(self.leaves[i : i + step], single=False)
            found.append(decide(keep, valid))
        return np.concatenate(found)

    def truth(self, boxes: np.ndarray, single: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(kept, inside the space, undecided for lack of an input) of every pair of boxes."""
        leaves, valid = {}, np.ones((len(boxes), 1, 1), dtype=bool)
        for side in self.space.sides:
            coordinates, inside = self.space.lanes_of(side, boxes, single)
            wide = (slice(None), slice(None), None) if side.name == "q" else (slice(None), None)
            for name, c in zip(side.axes, coordinates, strict=True):
                leaves[side.name, name] = c[wide]
            valid = valid & inside[wide]
        shape = valid.shape
        if not self.varies:
            keep = np.broadcast_to(evaluate(self.keep, leaves, {}), shape)
            return keep, valid, np.zeros_like(valid)
        flat = {
            key: bounds.lanes(np.broadcast_to(c, shape).reshape(-1), {}, valid.size)
            for key, c in leaves.items()
        }
        always, possibly, _ = bounds.truth_on(self.keep, flat, valid.size)
        return always.reshape(shape), valid, (possibly & ~always).reshape(shape)


def offsets(widths: np.ndarray, parts: np.ndarray) -> np.ndarray:
    """Where the parts of a box begin, each so wide: int64 (parts, digits)."""
    places = itertools.product(*map(range, (widths // parts).tolist()))
    found: np.ndarray = np.array(list(places), dtype=np.int64) * parts
    return found


def _summary(level: Level, below: Summary, residues_apart: bool) -> Summary:
    """Boxes whose tiles are all of one kind take that kind, where their tiles are a product of
    ranges.
    """
    kind, node = level.kind.copy(), level.node
    open_ = kind == MIXED
    pairs = level.pairs.copy()
    full = np.where(kind == FULL, level.tiles, 0)
    partial = np.zeros_like(full)
    below_at = node[open_]
    kind[open_] = below.kind[below_at]
    pairs[open_] = below.pairs[below_at]
    full[open_] = below.full[below_at]
    partial[open_] = below.partial[below_at]
    kinds = np.full(len(kind), MIXED, dtype=np.int8)
    outside = kind == OUTSIDE
    for uniform in (EMPTY, FULL, PARTIAL) if residues_apart else (EMPTY,):
        kinds[(outside | (kind == uniform)).all(1)] = uniform
    return Summary(kinds, pairs.sum(1), full.sum(1), partial.sum(1))
