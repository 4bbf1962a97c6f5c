"""Truth on boxes: always, possibly, and a signature in which decided operands drop out. Choices and
loads too.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np

from maskdsl.ir.box import U64, Bound, bits_of, mix, tag, unknown
from maskdsl.ir.nodes import Array, Node
from maskdsl.ir.table_ranges import extremes


def _select(node: Node, args: list[Bound]) -> Bound:
    test, a, b = args
    then, other = test.low, ~np.asarray(test.high)
    opaque = mix(tag("select"), test.term, a.term, b.term, bits_of(np.asarray(b.base - a.base)))

    def pick(x: Any, y: Any, both: Any) -> Any:
        return np.where(then, x, np.where(other, y, both))

    return Bound(
        pick(a.low, b.low, np.minimum(a.low, b.low)),
        pick(a.high, b.high, np.maximum(a.high, b.high)),
        pick(a.base, b.base, a.base), pick(a.term, b.term, opaque), pick(a.unit, b.unit, 1),
    )  # fmt: skip


@lru_cache(maxsize=4)  # of the tables in use: they serve all boxes of a plan
def _prefix_sums(table: Array) -> np.ndarray:
    """True elements before each place: int64, one longer than the table in every dimension."""
    total = np.pad(table.data.astype(np.int64), [(1, 0)] * table.rank)
    for axis in range(table.rank):
        total = total.cumsum(axis)
    return total


def _counts(array: Array, args: list[Bound]) -> tuple[Any, Any]:
    """(true elements, all elements) of a bool table within ranges of indices, by prefix sums."""
    sums = _prefix_sums(array)
    ends = []
    area: Any = 1
    for a, extent in zip(args, array.data.shape, strict=True):
        low, high = np.clip(a.low, 0, extent - 1), np.clip(a.high, 0, extent - 1)
        ends.append((low, high + 1))
        # An index outside reads false: the range then counts as not all true.
        area = area * (np.asarray(a.high) - a.low + 1)
    count: Any = 0
    for corner in itertools.product((0, 1), repeat=array.rank):
        sign = (-1) ** (array.rank - sum(corner))
        at = np.broadcast_arrays(*(e[c] for e, c in zip(ends, corner, strict=True)))
        count = count + sign * sums[tuple(at)]
    return count, area


def _load(node: Node, args: list[Bound]) -> Bound:
    array = node.value
    if array.data is not None and array.type == "bool" and array.data.size:
        count, area = _counts(array, args)
        found = unknown(node, args)
        return Bound(count == area, count > 0, 0, found.term, 0)
    if array.data is None:
        # An input can hold anything: boxes do not differ by which of its elements they read.
        term = np.broadcast_to(tag("input", node.digest), np.shape(args[0].low) if args else ())
        found = unknown(node, [])
        return Bound(found.low, found.high, found.base, term, found.unit)
    # Boxes that lie outside the space are looked at too, and their indices mean nothing.
    ranges = [
        (np.clip(a.low, n.low, n.high), np.clip(a.high, n.low, n.high))
        for n, a in zip(node.args, args, strict=True)
    ]
    low, high, known = extremes(array, ranges)
    found = unknown(node, args)
    return Bound(
        np.where(known, low, found.low), np.where(known, high, found.high),
        found.base, found.term, found.unit,
    )  # fmt: skip


def _compare(node: Node, args: list[Bound]) -> Bound:
    a, b = args
    ints = node.args[0].type == "int"
    if any(_is_input(x) for x in node.args):
        # open on every box alike: boxes do not differ by what an input is compared with
        size = np.broadcast_shapes(np.shape(a.term), np.shape(b.term))
        term = np.broadcast_to(tag("open", node.digest), size)
        return Bound(np.zeros(size, dtype=bool), np.ones(size, dtype=bool), 0, term, 0)
    if node.op == "eq":
        low = (a.low == a.high) & (b.low == b.high) & (a.low == b.low)
        high = (a.low <= b.high) & (b.low <= a.high)
    elif node.op == "le":
        low, high = a.high <= b.low, a.low <= b.high
    else:
        low, high = a.high < b.low, a.low < b.high
    if not ints:
        return Bound(low, high, 0, mix(tag(node.op, "f"), a.term, b.term), 0)
    gap = a.base - b.base
    same = a.term == b.term
    holds = {"eq": gap == 0, "le": gap <= 0, "lt": gap < 0}[node.op]
    low, high = np.where(same, holds, low), np.where(same, holds, high)
    if (low == high).all():
        return Bound(low, high, 0, U64(0), 0)
    if node.op == "eq":
        unit = np.gcd(a.unit, b.unit)
        high = high & ((unit == 0) | (gap % np.maximum(unit, 1) == 0))
    return Bound(low, high, 0, mix(tag(node.op), a.term - b.term, bits_of(gap)), 0)


def _is_input(node: Node) -> bool:
    return node.op == "load" and bool(node.value.is_input)


def _gather(node: Node, args: list[Bound]) -> Bound:
    conjunction = node.op == "and"
    low = high = np.bool_(conjunction)
    term: Any = tag(node.op)
    for a in args:
        low = low & a.low if conjunction else low | a.low
        high = high & a.high if conjunction else high | a.high
        # a decided operand drops out; the sum does not mind the order
        term = term + np.where(np.asarray(a.low == a.high), U64(0), mix(a.term))
    return Bound(low, high, 0, term, 0)


def _not(node: Node, args: list[Bound]) -> Bound:
    (a,) = args
    term = mix(tag("not"), a.term)
    return Bound(~np.asarray(a.high), ~np.asarray(a.low), 0, term, 0)


def _same(node: Node, args: list[Bound]) -> Bound:
    a, b = args
    decided = (a.low == a.high) & (b.low == b.high)
    low = decided & (a.low == b.low)
    return Bound(low, ~decided | low, 0, mix(tag("same"), a.term, b.term), 0)


LOGIC_RULES: dict[str, Callable[[Node, list[Bound]], Bound]] = {
    "select": _select,
    "load": _load,
    "lt": _compare,
    "le": _compare,
    "eq": _compare,
    "and": _gather,
    "or": _gather,
    "not": _not,
    "same": _same,
}
