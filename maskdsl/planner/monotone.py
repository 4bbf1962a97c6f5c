"""What is provable of ints that are functions of a place: how small they get, how fast they grow.

Bounds of nodes alone lose what two terms have in common (`x - min(x, y)` is never negative); here
choices are followed branch by branch, and `x // m` is (x - x % m) / m.
"""

from __future__ import annotations

from collections.abc import Mapping

from maskdsl.ir import integers
from maskdsl.ir.nodes import Node
from maskdsl.planner.solve import reads

MAX_DEPTH = 5  # choices and divisions followed in one proof: the work may double with each

Ceilings = Mapping[Node, Node]  # leaves that are at most as large as a node


def least(node: Node, ceilings: Ceilings, depth: int = MAX_DEPTH) -> int:
    """A number that the int never falls below: exact for the forms that walks are made of."""
    best: int = node.low
    if depth == 0 or node.is_const:
        return best
    constant, terms = integers.terms_of(node)
    for term, scale in terms.items():
        rest = integers.from_terms(constant, {t: c for t, c in terms.items() if t is not term})
        if term.op in ("min", "max", "select"):
            branches = [
                least(integers.add(rest, _scaled(scale, a)), ceilings, depth - 1)
                for a in term.args[-2:]
            ]
            either = term.op != "select" and (term.op == "max") == (scale > 0)
            return max(best, max(branches) if either else min(branches))
        if term.op == "floordiv" and term.args[1].is_const and term.args[1].value > 0:
            x, m = term.args
            whole = integers.sub(_scaled(scale, x), _scaled(scale, integers.mod(x, m)))
            total = integers.add(_scaled(m.value, rest), whole)
            best = max(best, -(-least(total, ceilings, depth - 1) // m.value))
    for term, scale in terms.items():
        if term in ceilings and scale < 0:
            rest = integers.from_terms(constant, {t: c for t, c in terms.items() if t is not term})
            high = integers.add(rest, _scaled(scale, ceilings[term]))
            best = max(best, least(high, ceilings, depth - 1))
    return best


def _scaled(scale: int, node: Node) -> Node:
    return integers.mul(integers.integer(scale), node)


def increments(node: Node, place: Node) -> tuple[int, int]:
    """The smallest and largest growth of an int from a place to the next one."""
    if not reads(node, place):
        return 0, 0
    if node == place:
        return 1, 1
    low, high = _growth(node, place)
    reach = node.high - node.low
    return max(low, -reach), min(high, reach)


def _growth(node: Node, place: Node) -> tuple[int, int]:
    unknown = node.low - node.high, node.high - node.low
    args = [increments(a, place) if a.type == "int" else (0, 0) for a in node.args]
    if node.op == "linear":
        low = high = 0
        for c, (a, b) in zip(node.value[1], args, strict=True):
            low += min(c * a, c * b)
            high += max(c * a, c * b)
        return low, high
    if node.op == "floordiv" and node.args[1].is_const and node.args[1].value > 0:
        m = node.args[1].value
        return args[0][0] // m, -(-args[0][1] // m)
    if node.op in ("min", "max") or (node.op == "select" and not reads(node.args[0], place)):
        return min(a for a, _ in args[-2:]), max(b for _, b in args[-2:])
    if node.op == "abs":
        most = max(abs(x) for x in args[0])
        return -most, most
    return unknown
