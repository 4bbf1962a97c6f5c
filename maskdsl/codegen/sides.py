"""What an expression depends on, and moving the parts of one side together.

A program holds a tile of one side (home: queries, or keys for their gradients) and walks tiles of
the other (away). What depends on the home side alone is worked out once per program, on the other
alone once per run or tile, and only the rest for every pair. So sums are split by side, and
comparisons of ints are written with queries on one side and keys on the other.
"""

from __future__ import annotations

from enum import IntEnum

from maskdsl.ir.integers import combine, from_terms
from maskdsl.ir.nodes import INT_MAX, INT_MIN, Node, postorder


class Stage(IntEnum):
    """When a value is known; a later stage can use the earlier ones."""

    ONCE = 0  # a scalar of the program: the head, the batch
    ROW = 1  # one value per token of the home tile
    RUN = 2  # one value per token of the other side, the same for a run of tiles
    KEY = 3  # one value per token of the other side
    PAIR = 4


def stages(roots: list[Node], last_axis: str, home: str = "q") -> dict[Node, Stage]:
    """The stage of every node; within a run of tiles only the last axis of the side away from home
    moves.
    """
    found: dict[Node, Stage] = {}
    for node in postorder(*roots):
        if node.op == "coord":
            side, axis = node.value
            if side in ("tile", "size"):  # the number of the tile held, and extents
                found[node] = Stage.ONCE
                continue
            found[node] = (
                Stage.ROW if side == home else Stage.KEY if axis == last_axis else Stage.RUN
            )
        elif node.op == "logit":
            found[node] = Stage.PAIR
        else:
            own = {found[a] for a in node.args}
            both = Stage.ROW in own and (Stage.RUN in own or Stage.KEY in own)
            found[node] = Stage.PAIR if both else max(own, default=Stage.ONCE)
    return found


def by_sides(root: Node) -> Node:
    """The same value with sums and comparisons of ints split by side.

    The nodes made here are no longer in normal form: they are for printing.
    """
    stage = stages([root], "")
    done: dict[Node, Node] = {}
    for node in postorder(root):
        args = tuple(done[a] for a in node.args)
        if node.op in ("le", "lt", "eq") and node.args[0].type == "int":
            done[node] = _comparison(node, args, done)
        elif node.op == "linear" and stage[node] == Stage.PAIR:
            done[node] = _sum(node, done)
        else:
            same = all(x is y for x, y in zip(args, node.args, strict=True))
            done[node] = node if same else Node(
                node.op, node.type, args, node.value, node.low, node.high, node.span
            )  # fmt: skip
    return done[root]


Terms = dict[Node, int]


def _split(terms: Terms) -> tuple[Terms, Terms, Terms]:
    """Terms of queries (and scalars), of keys, of pairs."""
    stage = stages(list(terms), "")
    parts: tuple[Terms, Terms, Terms] = ({}, {}, {})
    for term, c in terms.items():
        at = stage[term]
        parts[0 if at <= Stage.ROW else 1 if at < Stage.PAIR else 2][term] = c
    return parts


def _sum(node: Node, done: dict[Node, Node]) -> Node:
    constant, coefficients = node.value
    rows, keys, pairs = _split(dict(zip(node.args, coefficients, strict=True)))
    terms: list[tuple[int, Node]] = []
    if rows:
        terms.append(_signed(constant, rows))
        constant = 0
    if keys:
        terms.append(_signed(constant, keys))
        constant = 0
    terms += [(c, done[t]) for t, c in pairs.items()]
    args, new = tuple(t for _, t in terms), tuple(c for c, _ in terms)
    return Node("linear", "int", args, (constant, new), node.low, node.high, node.span)


def _signed(constant: int, terms: Terms) -> tuple[int, Node]:
    """A sum as (1 or -1, node), mostly positive inside."""
    negative = sum(c < 0 for c in terms.values()) > len(terms) / 2
    sign = -1 if negative else 1
    return sign, from_terms(sign * constant, {t: sign * c for t, c in terms.items()})


def _comparison(node: Node, args: tuple[Node, ...], done: dict[Node, Node]) -> Node:
    """`queries op keys` where no term depends on both."""
    constant, terms = combine([(1, node.args[0]), (-1, node.args[1])])
    rows, keys, pairs = _split(terms)
    if pairs or not rows or not keys:
        return Node(node.op, "bool", args, None, False, True, node.span)
    sign, right = _signed(0, {t: -c for t, c in keys.items()})
    left = from_terms(sign * constant, {t: sign * c for t, c in rows.items()})
    if any(n.op == "wide" or n.low < INT_MIN or n.high > INT_MAX for n in (left, right)):
        return Node(node.op, "bool", args, None, False, True, node.span)
    sides = (left, right) if sign > 0 else (right, left)
    return Node(node.op, "bool", sides, None, False, True, node.span)
