"""Constructors for bool nodes, choices and loads."""

from __future__ import annotations

import math

from maskdsl.ir import integers
from maskdsl.ir.floats import fits_int
from maskdsl.ir.integers import truth
from maskdsl.ir.nodes import INF, INT_MAX, INT_MIN, Array, Node

MAX_FLAT = 64
FALSE, TRUE = truth(False), truth(True)


def _gather(op: str, args: tuple[Node, ...], stop: bool) -> Node:
    """An n-ary `and` (stop at false) or `or` (stop at true), flat and without repetitions.

    Long ones are not flattened any further: joining one more operand each time stays cheap.
    """
    found: dict[Node, None] = {}
    for a in args:
        for part in a.args if a.op == op and len(a.args) <= MAX_FLAT else (a,):
            if part.is_const:
                if part.value == stop:
                    return truth(stop)
            else:
                found[part] = None
    if not found:
        return truth(not stop)
    if len(found) == 1:
        return next(iter(found))
    return Node(op, "bool", tuple(found), None, False, True)


def and_(*args: Node) -> Node:
    return _gather("and", args, False)


def or_(*args: Node) -> Node:
    return _gather("or", args, True)


def not_(a: Node) -> Node:
    if a.is_const:
        return truth(not a.value)
    if a.op == "not":
        return a.args[0]
    if a.op == "le" and a.args[0].type == "int":
        return integers.compare("lt", a.args[1], a.args[0])
    return Node("not", "bool", (a,), None, False, True)


def compare(op: str, a: Node, b: Node) -> Node:
    """lt, le, eq of two ints, two floats, or (eq) two truths."""
    if a.type == "int":
        return integers.compare(op, a, b)
    if a.type == "bool":
        return same(a, b)
    if a.is_const and b.is_const:
        return truth(
            {"lt": a.value < b.value, "le": a.value <= b.value}.get(op, a.value == b.value)
        )
    finite = all(math.isfinite(x) for x in (a.low, a.high, b.low, b.high))
    if finite and (a.high < b.low or (op == "le" and a.high <= b.low)):
        return truth(op != "eq")
    if finite and (b.high < a.low or (op == "lt" and b.high <= a.low)):
        return FALSE
    return Node(op, "bool", (a, b), None, False, True)


def same(a: Node, b: Node) -> Node:
    for x, y in ((a, b), (b, a)):
        if x.is_const:
            return y if x.value else not_(y)
    return TRUE if a == b else Node("same", "bool", (a, b), None, False, True)


def select(test: Node, a: Node, b: Node) -> Node:
    """`a` where the test holds, else `b`; both of one type."""
    if test.is_const:
        return a if test.value else b
    if a == b:
        return a
    if a.type == "bool":
        return or_(and_(test, a), and_(not_(test), b))
    low, high = min(a.low, b.low), max(a.high, b.high)
    return Node("select", a.type, (test, a, b), None, low, high)


def from_bool(a: Node) -> Node:
    return integers.integer(int(a.value)) if a.is_const else integers.make("from_bool", (a,), 0, 1)


def finite(a: Node) -> Node:
    """Whether a quotient, power, logarithm or root is finite before it is replaced by 0."""
    if a.is_const or (math.isfinite(a.low) and math.isfinite(a.high)):
        return TRUE
    return Node("finite", "bool", a.args, a.op, False, True)


def fits(a: Node) -> Node:
    """Whether 64 bits hold a `wide` int, or the int that a float is rounded to."""
    if a.type == "float":
        return TRUE if fits_int(a) else Node("fits", "bool", (a,), None, False, True)
    if a.op != "wide":
        return TRUE
    inner = a.args[0]
    if inner.low > INT_MAX or inner.high < INT_MIN:
        return FALSE
    return Node("fits", "bool", inner.args, (inner.op, inner.value), False, True)


def beyond(array: Array, dimension: int, index: Node) -> Node:
    """Whether an index lies past an extent that is known at the call only."""
    return Node("beyond", "bool", (index,), (array.name, dimension), False, True)


def load(array: Array, indices: tuple[Node, ...]) -> Node:
    """An element of an array; 0 or false outside."""
    low, high = {"int": (INT_MIN, INT_MAX), "float": (-INF, INF), "bool": (False, True)}[array.type]
    if array.data is not None:
        if all(i.is_const for i in indices):
            at = tuple(i.value for i in indices)
            inside = all(0 <= i < n for i, n in zip(at, array.data.shape, strict=True))
            return constant(array.data[at].item() if inside else 0, array.type)
        if array.type != "bool" and array.data.size:
            nothing = 0.0 if array.type == "float" else 0
            low = min(array.data.min().item(), nothing)
            high = max(array.data.max().item(), nothing)
        if array.type == "float" and not (math.isfinite(low) and math.isfinite(high)):
            low, high = -INF, INF
    return Node("load", array.type, indices, array, low, high)


def constant(value: bool | int | float, type_: str) -> Node:
    if type_ == "bool":
        return truth(bool(value))
    if type_ == "int":
        return integers.integer(int(value))
    return Node("const", "float", (), float(value), float(value), float(value))
