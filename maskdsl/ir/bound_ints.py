"""Bounds, congruences and signatures of int nodes on boxes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from maskdsl.ir.box import U64, Bound, bits_of, corners, magnitude, mix, opaque, tag, unknown
from maskdsl.ir.evaluate import evaluate
from maskdsl.ir.nodes import Node


def _linear(node: Node, args: list[Bound]) -> Bound:
    constant, coefficients = node.value
    low = high = base = np.int64(constant)
    term, unit = U64(0), np.int64(0)
    for c, a in zip(coefficients, args, strict=True):
        k = np.int64(c)
        low = low + k * (a.low if c > 0 else a.high)
        high = high + k * (a.high if c > 0 else a.low)
        base = base + k * a.base
        term = term + bits_of(k) * a.term
        unit = np.gcd(unit, np.abs(k) * a.unit)
    return Bound(low, high, base, term, unit)


def _mul(node: Node, args: list[Bound]) -> Bound:
    a, b = args
    low, high = corners(np.multiply, a, b)
    low, high = np.maximum(low, node.low), np.minimum(high, node.high)
    term = mix(tag("mul"), bits_of(a.base), a.term, bits_of(b.base), b.term)
    base, unit = np.zeros_like(low), np.ones_like(low)
    for x, y in ((a, b), (b, a)):
        flat = y.term == 0  # a constant factor keeps the other one linear
        base = np.where(flat, x.base * y.base, base)
        term = np.where(flat, x.term * bits_of(y.base), term)
        unit = np.where(flat, np.abs(x.unit * y.base), unit)
    return Bound(low, high, base, term, unit)


def _floordiv(node: Node, args: list[Bound]) -> Bound:
    a, b = args
    m, known = _divisor(b)
    whole = a.unit % m == 0
    term = mix(tag("floordiv"), bits_of(m), a.term, bits_of(a.base % m))
    found = Bound(a.low // m, a.high // m, a.base // m, term, np.where(whole, a.unit // m, 1))
    return found if node.args[1].is_const else _either(known, found, unknown(node, args))


def _mod(node: Node, args: list[Bound]) -> Bound:
    a, b = args
    m, known = _divisor(b)
    block = a.low // m
    stays = block == a.high // m  # no wrap: the value only moves down
    fixed = (a.unit % m == 0) & ~stays
    base = np.where(stays, a.base - block * m, np.where(fixed, a.base % m, 0))
    low = np.where(stays, a.low - block * m, np.where(fixed, base, 0))
    high = np.where(stays, a.high - block * m, np.where(fixed, base, m - 1))
    wrapped = mix(tag("mod"), bits_of(m), a.term, bits_of(a.base % m))
    term = np.where(stays, a.term, np.where(fixed, U64(0), wrapped))
    found = Bound(low, high, base, term, np.where(stays, a.unit, np.where(fixed, 0, 1)))
    return found if node.args[1].is_const else _either(known, found, unknown(node, args))


def _divisor(b: Bound) -> tuple[Any, Any]:
    """(divisor, whether it is that number all over the box, and positive)"""
    return np.maximum(b.low, 1), (b.low == b.high) & (b.low > 0)


def _either(test: Any, a: Bound, b: Bound) -> Bound:
    return Bound(
        np.where(test, a.low, b.low), np.where(test, a.high, b.high),
        np.where(test, a.base, b.base), np.where(test, a.term, b.term),
        np.where(test, a.unit, b.unit),
    )  # fmt: skip


def _extreme(node: Node, args: list[Bound]) -> Bound:
    a, b = args
    pick = np.minimum if node.op == "min" else np.maximum
    same = a.term == b.term
    a_wins = np.where(same, a.base <= b.base, a.high <= b.low)
    b_wins = np.where(same, b.base <= a.base, b.high <= a.low)
    if node.op == "max":
        a_wins, b_wins = b_wins, a_wins
    opaque = mix(tag(node.op), a.term, b.term, bits_of(b.base - a.base))
    return Bound(
        pick(a.low, b.low), pick(a.high, b.high),
        np.where(b_wins & ~a_wins, b.base, a.base),
        np.where(a_wins, a.term, np.where(b_wins, b.term, opaque)),
        np.where(a_wins, a.unit, np.where(b_wins, b.unit, 1)),
    )  # fmt: skip


def _abs(node: Node, args: list[Bound]) -> Bound:
    (a,) = args
    up, down = a.low >= 0, a.high <= 0
    low = np.where(up, a.low, np.where(down, -a.high, 0))
    high = np.maximum(-a.low, a.high)
    term = np.where(
        up, a.term, np.where(down, U64(0) - a.term, mix(tag("abs"), bits_of(a.base), a.term))
    )
    base = np.where(up, a.base, np.where(down, -a.base, 0))
    return Bound(low, high, base, term, np.where(up | down, a.unit, 1))


_X_BIT_LENGTH = Node("bit_length", "int", (Node("logit", "int"),))


_X_BIT_COUNT = Node("bit_count", "int", (Node("logit", "int"),))


def _bit_length(node: Node, args: list[Bound]) -> Bound:
    return _through(node, args, lambda x: evaluate(_X_BIT_LENGTH, {"logit": x}, {}))


def _through(node: Node, args: list[Bound], f: Callable[[Any], Any]) -> Bound:
    """A function that grows with the absolute value."""
    low, high = magnitude(args[0])
    return opaque(node, args, f(low), f(high))


def _bit_count(node: Node, args: list[Bound]) -> Bound:
    low, high = magnitude(args[0])
    free = evaluate(_X_BIT_LENGTH, {"logit": low ^ high}, {})  # bits below the common prefix
    prefix = evaluate(_X_BIT_COUNT, {"logit": low >> free}, {})
    some = low & ((np.int64(1) << free) - 1) != 0
    return opaque(node, args, prefix + some, prefix + free)


def _int_power(node: Node, args: list[Bound]) -> Bound:
    a, b = args
    base, exponent = node.args
    if base.low < 1 or exponent.low < 0 or node.high > 2**62:
        return unknown(node, args)
    return opaque(node, args, np.power(a.low, b.low), np.power(a.high, b.high))


def _rounded(node: Node, args: list[Bound]) -> Bound:
    f = {"truncate": np.trunc, "floor": np.floor, "ceil": np.ceil}[node.op]
    (a,) = args
    inside = (a.low > -(2.0**62)) & (a.high < 2.0**62)
    low = np.where(inside, f(np.where(inside, a.low, 0)).astype(np.int64), np.int64(node.low))
    high = np.where(inside, f(np.where(inside, a.high, 0)).astype(np.int64), np.int64(node.high))
    return opaque(node, args, low, high)


def _from_bool(node: Node, args: list[Bound]) -> Bound:
    low, high = (np.asarray(x).astype(np.int64) for x in (args[0].low, args[0].high))
    return opaque(node, args, low, high)


INT_RULES: dict[str, Callable[[Node, list[Bound]], Bound]] = {
    "linear": _linear,
    "mul": _mul,
    "floordiv": _floordiv,
    "mod": _mod,
    "min": _extreme,
    "max": _extreme,
    "abs": _abs,
    "bit_length": _bit_length,
    "bit_count": _bit_count,
    "pow": _int_power,
    "truncate": _rounded,
    "floor": _rounded,
    "ceil": _rounded,
    "from_bool": _from_bool,
}
