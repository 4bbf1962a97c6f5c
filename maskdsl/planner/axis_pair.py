"""An axis of the queries and an axis of the keys, in places, with the conditions between them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import numpy as np

from maskdsl.ir import integers
from maskdsl.ir.evaluate import evaluate
from maskdsl.ir.integers import integer
from maskdsl.ir.nodes import Node, postorder
from maskdsl.ir.readable import readable
from maskdsl.ir.rewrite import substitute
from maskdsl.planner.lines import Line
from maskdsl.planner.monotone import MAX_DEPTH, least
from maskdsl.planner.solve import choices, conjuncts, reads

MAX_RESIDUES = 2**20  # pairs of residues that are looked at
SHALLOW = 4  # as MAX_DEPTH, where a proof only makes an expression shorter
REASON = 120  # characters


class NotClosedError(Exception):
    """Why a walk has no closed form."""


def refuse(why: str, condition: Node) -> NotClosedError:
    text = f"{why}: {readable(condition)}"
    return NotClosedError(text if len(text) <= REASON else text[: REASON - 3] + "...")


class Pair:
    """An axis of the queries and an axis of the keys, in places.

    residue, place: of a query; block: number of its tile in its residue class. key: place of a key;
    key_residue: of the keys that the query sees. first, last: places of the first and last query of
    a tile; low, high: of the first and last key there is. conditions: what decides, over places,
    each with the condition as it was written.
    """

    def __init__(self, keys: Line, queries: Line, conditions: Sequence[Node]) -> None:
        self.keys, self.queries = keys, queries
        self.residue = queries.leaf("residue", queries.step - 1)
        self.place = queries.place
        self.block = queries.leaf("block", queries.blocks.high - 1)
        any_residue = keys.leaf("key residue", keys.step - 1)
        self.key = keys.place
        placed = self._placed(conditions, any_residue)
        self.key_residue = integer(0)
        if keys.step > 1:
            picks = [p for p in placed if not (reads(p[0], self.place) or reads(p[0], self.key))]
            self.key_residue = self._seen(any_residue, picks)
            mine = {any_residue: self.key_residue}
            placed = [(substitute(c, mine), said) for c, said in placed if (c, said) not in picks]
        self.conditions = [(part, said) for c, said in placed for part in conjuncts(c)]
        pitch = integer(queries.pitch)
        begin = integers.mul(pitch, self.block)
        end = integers.add(begin, integer(queries.pitch - 1))
        self.first = integers.extreme("max", queries.lowest(self.residue), begin)
        self.last = integers.extreme("min", queries.highest(self.residue), end)
        self.low, self.high = keys.lowest(self.key_residue), keys.highest(self.key_residue)
        self.ceilings = {
            self.place: queries.highest(self.residue),
            self.block: integers.sub(queries.blocks, integer(1)),
        }

    def _placed(self, conditions: Sequence[Node], key_residue: Node) -> list[tuple[Node, Node]]:
        """The conditions over places instead of coordinates, and as they were written."""
        leaves = {}
        for node in postorder(*conditions):
            if node.op == "coord" and node.value[0] == "q":
                leaves[node] = self.queries.coordinate(self.residue, self.place)
            elif node.op == "coord":
                leaves[node] = self.keys.coordinate(key_residue, self.key)
        return [(part, c) for c in conditions for part in conjuncts(substitute(c, leaves))]

    def _seen(self, other: Node, picks: list[tuple[Node, Node]]) -> Node:
        """The residue of the keys that queries of a residue see, where it is one at a fixed
        distance.
        """
        step, rows = self.keys.step, self.queries.step
        if not picks or step * rows > MAX_RESIDUES:
            raise NotClosedError(
                f"no condition picks one of {step} residue classes of {self.keys.name}"
            )
        mine, theirs = np.arange(rows)[:, None], np.arange(step)[None, :]
        leaves = {self.residue.value: mine, other.value: theirs}
        seen = np.ones((rows, step), dtype=bool)
        for c, _ in picks:
            seen &= evaluate(c, leaves, {})
        shift = int(np.argmax(seen[0]))
        if not np.array_equal(seen, (mine + shift) % step == theirs):
            raise refuse(f"not one of {step} residue classes of {self.keys.name}", picks[0][1])
        return integers.mod(integers.add(self.residue, integer(shift)), integer(step))

    def moves(self, node: Node) -> bool:
        return reads(node, self.place)

    def never_negative(self, node: Node, depth: int = MAX_DEPTH) -> bool:
        return least(node, self.ceilings, depth) >= 0

    def at(self, place: Node, nodes: Sequence[Node]) -> list[Node]:
        """Ends of intervals at a place of the tile."""
        return [self._end(n, place) for n in nodes]

    def _end(self, node: Node, place: Node) -> Node:
        """Where tiles hold several places, ends are proved to grow, also past the last place: then
        the end at the smaller of two is the smaller end.
        """
        if self.queries.pitch > 1 and place.op in ("min", "max"):
            return self.extreme(place.op, *(self._end(node, a) for a in place.args))
        return substitute(node, {self.place: place})

    def extreme(self, op: str, *nodes: Node) -> Node:
        """The min or max, without what others certainly decide."""
        parts = list(dict.fromkeys(p for n in nodes for p in choices(op, n)))
        kept: list[Node] = []
        for i, part in enumerate(parts):
            if not any(self._decides(op, other, part) for other in [*kept, *parts[i + 1 :]]):
                kept.append(part)
        return reduce(lambda a, b: integers.extreme(op, a, b), kept)

    def _decides(self, op: str, one: Node, other: Node) -> bool:
        ahead = (one, other) if op == "max" else (other, one)
        return self.never_negative(integers.sub(*ahead), SHALLOW)

    def numbered(self, tile: Node) -> Node:
        """The number of a key tile by the number of the query tile, from its number in its residue
        class.
        """
        total = integers.add(integers.mul(self.key_residue, self.keys.blocks), tile)
        number = self.queries.leaf("tile", self.queries.tiles.high - 1)
        blocks = self.queries.blocks
        parts = {
            self.residue: integers.floordiv(number, blocks),
            self.block: integers.mod(number, blocks),
        }
        if self.queries.step == 1:
            parts = {self.block: number}
        return substitute(total, {n: x for n, x in parts.items() if not n.is_const})
