"""What a mask and its scores cost for one pair of query and key, counted from their expressions.

An operation counts for every pair only where it reads both a query and a key: what one side decides
is worked out once for a lane, and costs next to nothing. What reads one axis of a box of keys is
the same for all lanes that share the coordinate, and is worked out once for them.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from maskdsl.ir.nodes import Node, postorder
from maskdsl.ir.program import Program

DIVISION = 20  # instructions of a division of integers by a number that is not constant
BY_CONSTANT = 4  # by a constant: multiply high, shift, correct the floor
SELECTIONS = (
    2  # of a logit, and of its place in the maximum: in the machine code of emitted kernels
)
HASH = 18  # of random(): the rounds that see both sides
GATHER = 6  # address, bounds and load of an element of a table
JOINING = ("and", "or", "min", "max")
FUNCTIONS = {"exp": 2, "log": 2, "log2": 2, "sqrt": 4, "tanh": 6, "sigmoid": 4, "div": 4, "pow": 8}


@dataclass(frozen=True)
class Operations:
    """Operations for one pair, as counts that add: integer and comparisons, fp32, and special
    functions (exponentials and their like).
    """

    integer: float = 0.0
    vector: float = 0.0
    special: float = 0.0

    def __add__(self, other: Operations) -> Operations:
        return Operations(
            self.integer + other.integer,
            self.vector + other.vector,
            self.special + other.special,
        )

    def __mul__(self, count: float) -> Operations:
        return Operations(self.integer * count, self.vector * count, self.special * count)

    __rmul__ = __mul__

    @property
    def total(self) -> float:
        return self.integer + self.vector + self.special


@dataclass(frozen=True)
class PairWork:
    """mask: of a pair in a partial tile. score: of a pair in any visited tile."""

    mask: Operations
    score: Operations


# Of a plan that does not say what its mask is: one range on one axis.
UNKNOWN = PairWork(Operations(integer=3, vector=SELECTIONS), Operations())

Reads = frozenset[tuple[str, str]]  # (side, axis)
Share = Callable[[set[str]], float]  # of a tile's keys that differ, by the axes that are read
LANES = 64  # of a key tile that is not known yet, the same number on every axis


def pair_work(plan: Any) -> tuple[tuple[PairWork, ...], ...]:
    """For each segment of queries and of keys the mean over the partial (mask) and visited (score)
    tiles of all heads.
    """
    program: Program | None = getattr(plan, "program", None)
    if program is None:
        return ((UNKNOWN,),)
    shares = [
        of_tile({name: n for (name, _), n in zip(s.axes, g.tile.size, strict=True)})
        for s, g in zip(program.keys, plan.kv_grids, strict=True)
    ]
    return tuple(
        tuple(
            _mean_work(plan.head_classes, program, row, column, share)
            for column, share in enumerate(shares)
        )
        for row in range(len(program.queries))
    )


def _mean_work(
    head_classes: Iterable[Any], program: Program, row: int, column: int, share: Share
) -> PairWork:
    mask, score, partial, visited = Operations(), Operations(), 0, 0
    for c in head_classes:
        tree, heads = c.trees[row][column], len(c.heads)
        mask += masking(c.keeps[row][column], share) * (tree.partial * heads)
        partial += tree.partial * heads
        count = (tree.full + tree.partial) * heads
        score += scoring(program.blocks[row][column].score, share) * count
        visited += count
    return PairWork(mask * (1 / max(partial, 1)), score * (1 / max(visited, 1)))


def program_work(program: Program) -> PairWork:
    """Before anything is planned: of the pair of segments with the dearest mask, and with the
    dearest scores.
    """
    masks, scores = [], []
    for b in program.all_blocks:
        axes = b.axes("k")
        share = of_tile({name: LANES ** (1 / len(axes)) for name, _ in axes})
        masks.append(masking(b.keep, share))
        scores.append(scoring(b.score, share))
    return PairWork(*(max(x, key=lambda o: o.total) for x in (masks, scores)))


def of_tile(size: Mapping[str, float]) -> Share:
    """For a key tile of so many lanes on each axis."""
    lanes = math.prod(size.values())

    def share(axes: set[str]) -> float:
        return min(1.0, math.prod(size.get(axis, lanes) for axis in axes) / lanes)

    return share


def masking(keep: Node, share: Share) -> Operations:
    """Of working out `keep` for a pair and forbidding it where false."""
    return counted([keep], share) + Operations(vector=SELECTIONS)


def scoring(score: Node | None, share: Share) -> Operations:
    """Of the score clauses; none where there are none."""
    return Operations() if score is None else counted([score], share)


def counted(roots: Iterable[Node], share: Share) -> Operations:
    """Of all expressions together: equal parts are worked out once."""
    reads: dict[Node, Reads] = {}
    total = Operations()
    for node in postorder(*roots):
        if node.op == "coord":
            reads[node] = frozenset([node.value])
        elif node.op == "logit":
            reads[node] = frozenset([("q", "every axis"), ("k", "every axis")])
        else:
            reads[node] = frozenset().union(*(reads[a] for a in node.args))
        if len(_sides(reads[node])) == 2:
            if node.op in JOINING:
                total += _joined(node, [reads[a] for a in node.args], share)
            else:
                operation = _operation(node, [_sides(reads[a]) for a in node.args])
                total += operation * share(_key_axes(reads[node]))
    return total


def _joined(node: Node, reads: list[Reads], share: Share) -> Operations:
    """Of joining many arguments: those of the same axes first, then axis by axis."""
    apart = {r for r in reads if len(_sides(r)) < 2}  # what one side decides is at hand
    groups = Counter(frozenset(_key_axes(r)) for r in reads if r not in apart)
    groups.update(frozenset(_key_axes(r)) for r in apart)
    steps, joined = 0.0, set[str]()
    for i, axes in enumerate(sorted(groups, key=lambda a: (share(set(a)), sorted(a)))):
        joined |= axes
        steps += (groups[axes] - 1) * share(set(axes)) + (share(joined) if i else 0.0)
    return Operations(vector=steps) if node.type == "float" else Operations(integer=steps)


def _key_axes(reads: Reads) -> set[str]:
    return {axis for side, axis in reads if side == "k"}


def _sides(reads: Reads) -> frozenset[str]:
    return frozenset(side for side, _ in reads)


def _operation(node: Node, sides: list[frozenset[str]]) -> Operations:
    """Of one node that reads both sides, its arguments at hand."""
    op = node.op
    if op in ("logit", "not", "wide", "finite", "fits", "beyond", "certain"):
        return Operations()
    if op in FUNCTIONS:
        return Operations(vector=FUNCTIONS[op], special=1)
    if op == "linear":  # the parts of either side are sums at hand
        both = sum(len(s) == 2 for s in sides)
        apart = len({s for s in sides if len(s) == 1}) or int(node.value[0] != 0)
        return Operations(integer=max(both + apart - 1, 1))
    if op in ("floordiv", "mod"):
        divisor = node.args[1]
        if not divisor.is_const:
            return Operations(integer=DIVISION)
        power = divisor.value & (divisor.value - 1) == 0
        return Operations(integer=1 if power else BY_CONSTANT)
    if op in ("load", "random", "bit_length"):
        return Operations(integer={"load": GATHER, "random": HASH, "bit_length": 2}[op])
    return Operations(vector=1) if node.type == "float" else Operations(integer=1)
