"""Conditions solved for one key coordinate: which interval of keys they leave."""

from __future__ import annotations

from dataclasses import dataclass

from maskdsl.ir import integers, logic
from maskdsl.ir.integers import integer
from maskdsl.ir.nodes import Node, postorder
from maskdsl.ir.rewrite import substitute


@dataclass(frozen=True)
class Interval:
    """Keys at least as large as every `lower` and at most as large as every `upper`: ints that do
    not read the key.
    """

    lower: tuple[Node, ...] = ()
    upper: tuple[Node, ...] = ()

    def __and__(self, other: Interval) -> Interval:
        lower, upper = (*self.lower, *other.lower), (*self.upper, *other.upper)
        return Interval(tuple(dict.fromkeys(lower)), tuple(dict.fromkeys(upper)))


def reads(node: Node, leaf: Node) -> bool:
    return leaf in postorder(node)


def conjuncts(condition: Node) -> list[Node]:
    """The conditions that make up a conjunction, `not (a or b)` included."""
    if condition.op == "and":
        return [c for a in condition.args for c in conjuncts(a)]
    if condition.op == "not" and condition.args[0].op == "or":
        return [c for a in condition.args[0].args for c in conjuncts(logic.not_(a))]
    return [] if condition == logic.TRUE else [condition]


def disjuncts(condition: Node) -> list[Node]:
    """The conditions that make up a disjunction, `not (a and b)` included."""
    if condition.op == "or":
        return [c for a in condition.args for c in disjuncts(a)]
    if condition.op == "not" and condition.args[0].op == "and":
        return [c for a in condition.args[0].args for c in disjuncts(logic.not_(a))]
    return [condition]


def solve(condition: Node, key: Node) -> Interval | None:
    """The keys for which a comparison of ints holds; None where they are no interval, or none that
    these rules find. The condition reads the key.
    """
    if condition.op not in ("le", "lt", "eq") or condition.args[0].type != "int":
        return None
    total = integers.sub(*condition.args)
    if condition.op == "lt":
        total = integers.add(total, integer(1))
    found = _not_positive(total, key)
    if found is None or condition.op != "eq":
        return found
    return _both(found, _not_positive(integers.neg(total), key))


def at_most(a: Node, b: Node) -> Node:
    """a <= b, choices taken apart so that what is certain of them folds."""
    join = {"min": logic.or_, "max": logic.and_}
    if a.op in join:
        return join[a.op](*(at_most(x, b) for x in a.args))
    join = {"min": logic.and_, "max": logic.or_}
    if b.op in join:
        return join[b.op](*(at_most(a, x) for x in b.args))
    return integers.compare("le", a, b)


def _both(a: Interval | None, b: Interval | None) -> Interval | None:
    return None if a is None or b is None else a & b


def _not_positive(total: Node, key: Node) -> Interval | None:
    """total <= 0, where one term of the sum reads the key."""
    constant, terms = integers.terms_of(total)
    unknown = [t for t in terms if reads(t, key)]
    if len(unknown) > 1:
        constant, terms = integers.terms_of(_without_remainders(total))
        unknown = [t for t in terms if reads(t, key)]
    if len(unknown) != 1:
        return None
    (term,) = unknown
    scale = terms.pop(term)
    rest = integers.from_terms(constant, terms)
    if scale > 0:
        return _at_most(term, integers.floordiv(integers.neg(rest), integer(scale)), key)
    up = integers.add(rest, integer(-scale - 1))
    return _at_least(term, integers.floordiv(up, integer(-scale)), key)


def _without_remainders(total: Node) -> Node:
    """x % m as x - m * (x // m)."""
    leaves = {}
    for node in postorder(total):
        if node.op == "mod" and node.args[1].is_const and node.args[1].value > 0:
            x, m = node.args
            leaves[node] = integers.sub(x, integers.mul(m, integers.floordiv(x, m)))
    return substitute(total, leaves)


def _at_most(term: Node, limit: Node, key: Node) -> Interval | None:
    if term == key:
        return Interval((), tuple(choices("min", limit)))
    if term.op == "floordiv" and term.args[1].is_const and term.args[1].value > 0:
        x, m = term.args
        top = integers.add(integers.mul(m, limit), integer(m.value - 1))
        return _not_positive(integers.sub(x, top), key)
    if term.op == "max":
        return _each([integers.sub(a, limit) for a in term.args], key)
    if term.op == "abs":
        (x,) = term.args
        return _each([integers.sub(x, limit), integers.sub(integers.neg(x), limit)], key)
    return None


def _at_least(term: Node, limit: Node, key: Node) -> Interval | None:
    if term == key:
        return Interval(tuple(choices("max", limit)), ())
    if term.op == "floordiv" and term.args[1].is_const and term.args[1].value > 0:
        x, m = term.args
        return _not_positive(integers.sub(integers.mul(m, limit), x), key)
    if term.op == "min":
        return _each([integers.sub(limit, a) for a in term.args], key)
    return None


def _each(totals: list[Node], key: Node) -> Interval | None:
    """Every one of them is at most 0."""
    found: Interval | None = Interval()
    for total in totals:
        found = _both(found, _not_positive(total, key))
    return found


def choices(op: str, node: Node) -> list[Node]:
    """What a minimum of minima, or a maximum of maxima, chooses from."""
    return [p for a in node.args for p in choices(op, a)] if node.op == op else [node]
