"""What an expression can be on boxes of pairs: bounds, congruences and a signature, for many boxes
at once.

A box gives every coordinate a first value and a step over lanes. For each node and box:

    low, high   every value lies between them (bools: `low` it always holds, `high` it may hold)
    base, term  value = base + term, where `term` is a hash (64 bits) of the part that varies with
    the lanes, linear in
                hashes of opaque parts, so that equal parts cancel; term 0 means that the value is
                `base`
    unit        value = base modulo unit (0: the value is base)

Two boxes with equal `term` of a bool (and equal widths) hold the same truth at the same lanes: this
is what lets the planner
look at one of many boxes that differ by a translation only. Undefined places follow the total
semantics of `nodes`.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np

from maskdsl.ir.bound_floats import FLOAT_RULES
from maskdsl.ir.bound_ints import INT_RULES
from maskdsl.ir.bound_logic import LOGIC_RULES
from maskdsl.ir.box import U64, Bound, bits_of, mix, tag, unknown
from maskdsl.ir.nodes import INT_MAX, INT_MIN, Node, postorder

CHUNK = 2**14  # boxes looked at together: what stays in the caches


def lanes(first: Any, varying: Mapping[Any, tuple[int, Any]], size: int) -> Bound:
    """A coordinate on boxes: `first` plus, per independent lane, step * (0 .. width - 1).

    first: int64 array; varying: {name of the lane: (step, widths)}, widths int64 arrays.
    """
    low = high = np.broadcast_to(np.asarray(first, dtype=np.int64), size)
    term, unit = np.zeros(size, dtype=U64), np.zeros(size, dtype=np.int64)
    for name, (step, width) in varying.items():
        moves = width > 1
        if not moves.any():
            continue
        high = high + step * (width - 1)
        term = term + moves * (bits_of(step) * tag("lane", name))
        steps = moves * np.int64(step)
        unit = np.gcd(unit, steps) if unit.any() else steps
    return Bound(low, high, low, term, unit)


def truth_on(root: Node, leaves: Mapping[Any, Bound], size: int) -> tuple[Any, Any, Any]:
    """(always, possibly, signature) of a bool on `size` boxes: two bool arrays and a uint64 array.

    leaves: bounds of ("q", axis) and ("k", axis) coordinates, arrays of `size` each.
    """
    steps = _steps(root)
    found = np.empty(size, bool), np.empty(size, bool), np.empty(size, U64)
    with np.errstate(all="ignore"):
        for start in range(0, size, CHUNK):
            part = slice(start, start + CHUNK)
            some = {
                key: Bound(b.low[part], b.high[part], b.base[part], b.term[part], b.unit[part])
                for key, b in leaves.items()
            }
            done: list[Bound] = []
            for node, args in steps:
                bound = _bound(node, [done[a] for a in args], some)
                done.append(_settle(node, bound))
            out = done[-1]
            for whole, x in zip(found, (out.low, out.high, out.term), strict=True):
                whole[part] = x
    return found


@lru_cache(maxsize=4)  # a tree asks level after level
def _steps(root: Node) -> list[tuple[Node, tuple[int, ...]]]:
    """Every node, and where among them its arguments are."""
    nodes = postorder(root)
    at = {node: i for i, node in enumerate(nodes)}
    return [(node, tuple(at[a] for a in node.args)) for node in nodes]


def _settle(node: Node, b: Bound) -> Bound:
    """Values that bounds or cancelled terms decide, in one form."""
    if node.type == "bool":
        decided = b.low == b.high
        return Bound(
            b.low, b.high, 0, np.where(decided, np.where(b.low, U64(1), U64(0)), b.term), 0
        )
    if node.type == "float":
        decided = b.low == b.high
        return Bound(b.low, b.high, 0, np.where(decided, mix(bits_of(b.low)), b.term), 0)
    fixed = (b.term == 0) | (b.unit == 0)
    if fixed.all():
        return Bound(b.base, b.base, b.base, U64(0), np.int64(0))
    low, high = np.where(fixed, b.base, b.low), np.where(fixed, b.base, b.high)
    decided = low == high
    return Bound(
        low, high, np.where(decided, low, b.base),
        np.where(decided, U64(0), b.term), np.where(decided, 0, b.unit),
    )  # fmt: skip


def _bound(node: Node, args: list[Bound], leaves: Mapping[Any, Bound]) -> Bound:
    op = node.op
    if op == "const":
        return Bound(*_constant(node))
    if op == "coord":
        return leaves[node.value]
    if node.type == "int" and (node.low < INT_MIN or node.high > INT_MAX):
        return unknown(node, args)  # inside a `wide`, which is not looked through
    own = {"int": INT_RULES, "float": FLOAT_RULES}.get(node.type, {})
    rule = own.get(op) or LOGIC_RULES.get(op) or unknown
    return rule(node, args)


def _constant(node: Node) -> tuple[Any, ...]:
    v = node.value
    if node.type == "int":
        v = np.int64(v)
        return v, v, v, U64(0), np.int64(0)
    v = np.float64(v) if node.type == "float" else np.bool_(v)
    return v, v, 0, U64(0), 0
