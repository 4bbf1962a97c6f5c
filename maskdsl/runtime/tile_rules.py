"""What operations make of bounds on pairs of tiles, in tensors.

A bound is (low, high), tensors (batch or 1, pairs or 1) between which every value of the tile pair
lies; of truths, (always, possibly). Floats that may be NaN inside have NaN for both, which decides
no comparison. No shape depends on a value, so nothing waits for the device.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from maskdsl.ir.nodes import INT_MAX, INT_MIN, Node

Bound = tuple[torch.Tensor, torch.Tensor]


def joined(truths: list[torch.Tensor]) -> torch.Tensor:
    total = truths[0]
    for t in truths[1:]:
        total = total & t
    return total


def hull(a: Bound, b: Bound) -> Bound:
    if a[0].dtype == torch.bool:
        return a[0] & b[0], a[1] | b[1]
    return torch.minimum(a[0], b[0]), torch.maximum(a[1], b[1])


def _corners(f: Callable[[Any, Any], Any], a: Bound, b: Bound) -> Bound:
    values = [f(x, y) for x in a for y in b]
    low, high = values[0], values[0]
    for v in values[1:]:
        low, high = hull((low, high), (v, v))
    return low, high


def _finite(low: torch.Tensor, high: torch.Tensor) -> Bound:
    """NaN where an end is infinite: infinities may have met there and left NaN inside."""
    fine = torch.isfinite(low) & torch.isfinite(high)
    return torch.where(fine, low, math.nan), torch.where(fine, high, math.nan)


def _product(node: Node, args: list[Bound]) -> Bound | None:
    a, b = args
    if node.type == "float":
        return _finite(*_corners(torch.mul, a, b))
    fits = node.low >= INT_MIN and node.high <= INT_MAX
    return _corners(torch.mul, a, b) if fits else None


def _extreme(node: Node, args: list[Bound]) -> Bound | None:
    pick = torch.minimum if node.op == "min" else torch.maximum
    (a, b), (c, d) = args
    return pick(a, c), pick(b, d)


def _absolute(node: Node, args: list[Bound]) -> Bound | None:
    low, high = args[0]
    if node.type == "int":
        low = low.clamp(min=-INT_MAX)
    least = torch.maximum(low, -high).clamp(min=0)
    most = torch.maximum(-low, high)
    return least, most


def _floordiv(node: Node, args: list[Bound]) -> Bound | None:
    if not node.args[1].is_const:
        return None
    m = node.args[1].value
    low, high = (torch.div(x, m, rounding_mode="floor") for x in args[0])
    return low, high


def _mod(node: Node, args: list[Bound]) -> Bound | None:
    if not node.args[1].is_const:
        return None
    m = node.args[1].value
    low, high = args[0]
    first, last = (torch.div(x, m, rounding_mode="floor") for x in (low, high))
    within = first == last
    return torch.where(within, low - first * m, 0), torch.where(within, high - first * m, m - 1)


def _select(node: Node, args: list[Bound]) -> Bound | None:
    (always, possibly), a, b = args
    both = hull(a, b)
    low, high = (
        torch.where(always, x, torch.where(possibly, xy, y))
        for x, y, xy in zip(a, b, both, strict=True)
    )
    return low, high


def _compare(node: Node, args: list[Bound]) -> Bound | None:
    (a, b), (c, d) = args
    if node.op == "eq":
        return (b <= c) & (d <= a), ~((a > d) | (c > b))
    if node.op == "le":
        return b <= c, ~(a > d)
    return b < c, ~(a >= d)


def _same(node: Node, args: list[Bound]) -> Bound | None:
    (a, b), (c, d) = args
    decided = (a == b) & (c == d)
    return decided & (a == c), ~decided | (a == c)


def _gather(node: Node, args: list[Bound]) -> Bound | None:
    low, high = joined([a[0] for a in args]), joined([a[1] for a in args])
    if node.op == "or":
        low, high = ~joined([~a[0] for a in args]), ~joined([~a[1] for a in args])
    return low, high


RULES: dict[str, Callable[[Node, list[Bound]], Bound | None]] = {
    "wide": lambda node, args: args[0],
    "mul": _product,
    "min": _extreme,
    "max": _extreme,
    "abs": _absolute,
    "floordiv": _floordiv,
    "mod": _mod,
    "select": _select,
    "from_bool": lambda node, args: (args[0][0].long(), args[0][1].long()),
    "to_float": lambda node, args: (args[0][0].double(), args[0][1].double()),
    "add": lambda node, args: _finite(args[0][0] + args[1][0], args[0][1] + args[1][1]),
    "sub": lambda node, args: _finite(args[0][0] - args[1][1], args[0][1] - args[1][0]),
    "neg": lambda node, args: (-args[0][1], -args[0][0]),
    "le": _compare,
    "lt": _compare,
    "eq": _compare,
    "same": _same,
    "and": _gather,
    "or": _gather,
    "not": lambda node, args: (~args[0][1], ~args[0][0]),
}
