"""Tables for patterns that need them: trees, packed documents, lines, slopes."""

from __future__ import annotations

import numbers
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from maskdsl.errors import BindError

MAX_TOKENS = 2**31


class Intervals(NamedTuple):
    """Per token the half-open interval [enter, leave) of its subtree in a walk in depth.

    enter, leave: int64 (tokens,). Token j is token i or an ancestor of it exactly where
    enter[j] <= enter[i] < leave[j].
    """

    enter: np.ndarray
    leave: np.ndarray


def tree(parents: Sequence[int] | np.ndarray, context: int = 0) -> Intervals:
    """Depth-first intervals of a tree of tokens, for `std/tree`.

    parents: int (tokens,), the parent of each token, -1 for a root; several roots and any order are
    fine. context: this many tokens stand before the tree as a chain above its roots, so that they
    are causal and all of the tree sees them. Returns int64 arrays (context + tokens,); as inputs
    they want the batch in front: `enter[None]`. Raises BindError for parents that are no ints, do
    not exist, or go round in a circle.
    """
    above = _ints("parents", parents, 1)
    before = _whole("context", context)
    count = before + len(above)
    wrong = (above < -1) | (above >= len(above))
    if wrong.any():
        i = int(np.argmax(wrong))
        raise BindError(f"the parent of token {i} must be -1 or a token, not {above[i]}")
    chain = np.arange(before, dtype=np.int64) - 1
    linked = np.concatenate([chain, np.where(above < 0, before - 1, above + before)])
    children: list[list[int]] = [[] for _ in range(count + 1)]  # the last one is above the roots
    for token, parent in enumerate(linked.tolist()):
        children[parent].append(token)
    enter, leave = np.full(count, -1, dtype=np.int64), np.full(count, -1, dtype=np.int64)
    clock, stack = 0, [iter(children[count])]
    path: list[int] = []
    while stack:
        token = next(stack[-1], -1)
        if token < 0:
            stack.pop()
            if path:
                leave[path.pop()] = clock
            continue
        enter[token] = clock
        clock += 1
        path.append(token)
        stack.append(iter(children[token]))
    if clock < count:
        lost = int(np.argmax(enter < 0)) - before
        raise BindError(f"the parents of token {lost} go round in a circle")
    return Intervals(enter, leave)


def documents(lengths: Sequence[int] | np.ndarray) -> np.ndarray:
    """The number of each token's document, int64 (sum of lengths,), for `std/documents`.

    lengths: int (documents,), tokens of each, none negative. Raises BindError.
    """
    sizes = _ints("lengths", lengths, 1)
    if (sizes < 0).any():
        raise BindError(f"lengths must not be negative, as {sizes.min()} is")
    if sum(sizes.tolist()) > MAX_TOKENS:
        raise BindError(f"documents may hold {MAX_TOKENS} tokens, not {sum(sizes.tolist())}")
    return np.repeat(np.arange(len(sizes), dtype=np.int64), sizes)


def vertical_slash(
    vertical: Sequence[Iterable[int]], slash: Sequence[Iterable[int]], n: int
) -> tuple[np.ndarray, np.ndarray]:
    """(vertical, slash) for `std/vertical_slash`: bool (heads, n) each.

    vertical: per head the positions of its columns; slash: per head the distances of its lines;
    all from 0 up to n - 1. Raises BindError.
    """
    length = _whole("n", n, least=1)
    given = [[_list(x) for x in _list(side)] for side in (vertical, slash)]
    if len(given[0]) != len(given[1]):
        raise BindError(f"vertical has {len(given[0])} heads, slash has {len(given[1])}")
    tables = []
    for name, lists in zip(("vertical", "slash"), given, strict=True):
        table = np.zeros((len(lists), length), dtype=np.bool_)
        for head, places in enumerate(lists):
            at = _ints(name, places, 1)
            if at.size and not 0 <= at.min() <= at.max() < length:
                raise BindError(f"{name} of head {head} must lie between 0 and {length - 1}")
            table[head, at] = True
        tables.append(table)
    return tables[0], tables[1]


def alibi_slopes(heads: int) -> np.ndarray:
    """ALiBi's slopes, float64 (heads,), for `std/alibi` (arXiv 2108.12409, section 3).

    For a power of two they are 2 ** (-8 / heads), its square, its cube and so on. For other counts,
    as github.com/ofirpress/attention_with_linear_biases has it: those of the power of two below,
    and then every second one of the power of two above. Raises BindError.
    """
    count = _whole("heads", heads, least=1)
    below = 1 << (count.bit_length() - 1)

    def geometric(n: int) -> np.ndarray:
        return 2.0 ** (-8.0 / n * np.arange(1, n + 1))

    return np.concatenate([geometric(below), geometric(2 * below)[::2][: count - below]])


def _list(value: Any) -> list[Any]:
    """What is in a list, a set or an array. Raises BindError for what is none of them."""
    try:
        if not isinstance(value, (str, bytes, Mapping)):
            return list(value)
    except (TypeError, ValueError, RuntimeError):
        pass
    raise BindError("vertical and slash are lists of positions and distances, one per head")


def _ints(name: str, value: Any, rank: int) -> np.ndarray:
    """An int64 array of a rank. Raises BindError."""
    try:
        data = np.asarray(value)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise BindError(f"{name} must be ints, not rows of different lengths") from None
    if data.size == 0:
        data = data.astype(np.int64)
    if data.dtype.kind not in "iu":
        raise BindError(f"{name} must be ints of 64 bits, not {data.dtype}")
    if data.ndim != rank:
        raise BindError(f"{name} must have {rank} dimension(s), not {data.ndim}")
    if data.dtype.kind == "u" and data.size and data.max() >= 2**63:
        raise BindError(f"{name} must fit in 64 bits")
    return data.astype(np.int64)


def _whole(name: str, value: Any, least: int = 0) -> int:
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, numbers.Integral):
        shown = " ".join(repr(value).split())
        raise BindError(f"{name} must be an int, not {shown}"[:200])
    result = int(value)
    if not least <= result <= MAX_TOKENS:
        raise BindError(f"{name} must lie between {least} and {MAX_TOKENS}, not {result}"[:200])
    return result
