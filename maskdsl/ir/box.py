"""What a node is on each of many boxes of pairs, and the hashes that tell boxes apart."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from maskdsl.ir.nodes import INT_MAX, INT_MIN, Node

U64 = np.uint64
SEED, FIRST, SECOND = U64(0x9E3779B97F4A7C15), U64(0xBF58476D1CE4E5B9), U64(0x94D049BB133111EB)
SHIFTS = U64(29), U64(32)


@dataclass(slots=True)
class Bound:
    low: Any
    high: Any
    base: Any  # int64, 0 for floats and bools
    term: Any  # uint64
    unit: Any  # int64, ints only


@cache
def tag(*parts: object) -> np.uint64:
    """A fixed hash of an operation's name and constants."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return U64(int.from_bytes(digest, "little") | 1)


def mix(*parts: Any) -> Any:
    """A hash of several uint64 arrays, in order."""
    total: Any = SEED
    for p in parts:
        total = (total ^ p) * FIRST
        total = (total ^ (total >> SHIFTS[0])) * SECOND
        total = total ^ (total >> SHIFTS[1])
    return total


def bits_of(x: Any) -> Any:
    """Bits of ints (two's complement) or floats as uint64."""
    x = np.asarray(x)
    return (x.astype(np.float64) if x.dtype.kind == "f" else x.astype(np.int64)).view(U64)


def combine_keys(term: Any, columns: list[Any]) -> Any:
    """One uint64 per box that tells apart signatures and widths."""
    with np.errstate(over="ignore"):
        return mix(term, *(bits_of(c) for c in columns))


def unknown(node: Node, args: list[Bound]) -> Bound:
    """Anything within the node's bounds over all pairs; the same function where the arguments are
    the same.
    """
    parts = [x for a in args for x in (bits_of(a.base), a.term)]
    term = mix(tag(node.op, node.value), *parts)
    dtype = {"int": np.int64, "float": np.float64, "bool": np.bool_}[node.type]
    shape = np.shape(term)
    ends = (node.low, node.high)
    if node.type == "int":
        ends = (max(node.low, INT_MIN), min(node.high, INT_MAX))
    low, high = (np.broadcast_to(dtype(x), shape) for x in ends)
    return Bound(low, high, np.int64(0), term, np.int64(1))


def opaque(node: Node, args: list[Bound], low: Any, high: Any) -> Bound:
    """A function of its arguments alone, within these bounds."""
    if np.array_equal(low, high):  # no hash is needed to tell values apart
        return Bound(low, high, low if node.type == "int" else 0, U64(0), np.int64(0))
    b = unknown(node, args)
    return Bound(low, high, b.base, b.term, b.unit)


def corners(f: Callable[[Any, Any], Any], a: Bound, b: Bound) -> tuple[Any, Any]:
    values = [f(a.low, b.low), f(a.low, b.high), f(a.high, b.low), f(a.high, b.high)]
    low, high = values[0], values[0]
    for v in values[1:]:
        low, high = np.minimum(low, v), np.maximum(high, v)
    return low, high


def magnitude(a: Bound) -> tuple[Any, Any]:
    straddles = (a.low < 0) & (a.high > 0)
    x, y = np.abs(a.low), np.abs(a.high)
    return np.where(straddles, 0, np.minimum(x, y)), np.maximum(x, y)
