"""What a mask and its scores cost for one pair of query and key, counted from their expressions.

An operation counts for every pair only where it reads both a query and a key: what one side decides
is worked out once for a lane, and costs next to nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from maskdsl.ir.nodes import Node, postorder
from maskdsl.ir.program import Program

DIVISION = 20  # instructions of a division of integers by a number that is not constant
BY_CONSTANT = 4  # by a constant: multiply high, shift, correct the floor
HASH = 18  # of random(): the rounds that see both sides
GATHER = 6  # address, bounds and load of an element of a table
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


@dataclass(frozen=True)
class PairWork:
    """mask: of a pair in a partial tile. score: of a pair in any visited tile."""

    mask: Operations
    score: Operations


# Of a plan that does not say what its mask is: one range on one axis.
UNKNOWN = PairWork(Operations(integer=3, vector=1), Operations())


def pair_work(plan: Any) -> PairWork:
    """The mean over a plan's partial (mask) and visited (score) tiles."""
    program: Program | None = getattr(plan, "program", None)
    if program is None:
        return UNKNOWN
    mask, partial = Operations(), 0
    score, visited = Operations(), 0
    for c in plan.head_classes:
        for row, trees in enumerate(c.trees):
            for column, tree in enumerate(trees):
                heads = len(c.heads)
                mask += masking(c.keeps[row][column]) * (tree.partial * heads)
                partial += tree.partial * heads
                count = (tree.full + tree.partial) * heads
                score += scoring(program.blocks[row][column].score) * count
                visited += count
    return PairWork(mask * (1 / max(partial, 1)), score * (1 / max(visited, 1)))


def program_work(program: Program) -> PairWork:
    """Before anything is planned: of the pair of segments with the dearest mask, and with the
    dearest scores.
    """
    masks = [masking(b.keep) for b in program.all_blocks]
    scores = [scoring(b.score) for b in program.all_blocks]
    return PairWork(max(masks, key=_all), max(scores, key=_all))


def _all(operations: Operations) -> float:
    return operations.integer + operations.vector + operations.special


def masking(keep: Node) -> Operations:
    """Of working out `keep` for a pair and forbidding it where false."""
    return counted([keep]) + Operations(vector=1)


def scoring(score: Node | None) -> Operations:
    """Of the score clauses; none where there are none."""
    return Operations() if score is None else counted([score])


def counted(roots: Iterable[Node]) -> Operations:
    """Of all expressions together: equal parts are worked out once."""
    sides: dict[Node, frozenset[str]] = {}
    total = Operations()
    for node in postorder(*roots):
        if node.op == "coord":
            sides[node] = frozenset(node.value[0])
        elif node.op == "logit":
            sides[node] = frozenset("qk")
        else:
            sides[node] = frozenset().union(*(sides[a] for a in node.args))
        if len(sides[node]) == 2:
            total += _operation(node, [sides[a] for a in node.args])
    return total


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
    if op in ("and", "or", "min", "max"):  # of one side alone, parts are at hand as one
        parts = sum(len(s) == 2 for s in sides) + len({s for s in sides if len(s) < 2})
        steps = max(parts - 1, 1)
        return Operations(vector=steps) if node.type == "float" else Operations(integer=steps)
    return Operations(vector=1) if node.type == "float" else Operations(integer=1)
