"""A keep expression taken apart for inputs that are known at the call only: what reads one side,
what reads no input, and what has to be bounded for each pair of tiles.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from maskdsl.ir import integers
from maskdsl.ir.integers import bounds_of, combine, from_terms, integer
from maskdsl.ir.logic import and_, not_
from maskdsl.ir.nodes import INT_MAX, INT_MIN, Node, postorder
from maskdsl.ir.rewrite import VARYING, substitute

LARGE = 2**62
MAX_CONDITIONS = 4096  # taken apart, and how far inside each other: the rest is bounded as it is
MAX_DEPTH = 64


@dataclass(frozen=True)
class Conjunction:
    """Conditions that all hold; `negated`: that do not all hold.

    queries, keys: what reads one side only, and so says which tokens of a tile matter to the rest.
    fixed: what reads both sides and no input. parts: conditions to bound for each pair of tiles.
    """

    queries: Node | None
    keys: Node | None
    fixed: Node | None
    parts: tuple[Conjunction | Node, ...]
    negated: bool

    def all_parts(self) -> list[Node]:
        """The conditions to bound, those of inner conjunctions included."""
        found: list[Node] = []
        for part in self.parts:
            found += part.all_parts() if isinstance(part, Conjunction) else [part]
        return found

    def inner(self) -> list[Conjunction]:
        """This conjunction and those in it."""
        parts = [p for p in self.parts if isinstance(p, Conjunction)]
        return [self, *(c for p in parts for c in p.inner())]


class Reads:
    """What expressions read: which sides, and whether anything that only a call knows."""

    def __init__(self) -> None:
        self._sides: dict[Node, str] = {}
        self._varies: dict[Node, bool] = {}

    def sides(self, node: Node) -> str:
        """ "", "q", "k" or "qk"."""
        self._see(node)
        return self._sides[node]

    def varies(self, node: Node) -> bool:
        self._see(node)
        return self._varies[node]

    def _see(self, root: Node) -> None:
        if root in self._sides:
            return
        for node in postorder(root):
            own = node.value[0] if node.op == "coord" else ""
            read = own + "".join(self._sides[a] for a in node.args)
            self._sides[node] = "".join(s for s in "qk" if s in read)
            own_input = node.op in VARYING or (node.op == "load" and node.value.is_input)
            self._varies[node] = own_input or any(self._varies[a] for a in node.args)

    def summands(self, node: Node) -> list[tuple[int, Node]]:
        """(coefficient, part) of a sum, the constant apart: the terms of each side together, as
        far as 64 bits hold them.
        """
        _, terms = integers.terms_of(node)
        found: list[tuple[int, Node]] = []
        for side in ("", "q", "k", "qk"):
            own = {t: c for t, c in terms.items() if self.sides(t) == side}
            if side != "qk" and len(own) > 1 and _fits(*bounds_of(0, own)):
                found.append((1, from_terms(0, own)))
            else:
                found += [(c, t) for t, c in own.items()]
        return found

    def one_sided(self, roots: Iterable[Node]) -> dict[str, tuple[Node, ...]]:
        """By side ("", "q", "k"), the largest expressions that read no more than that side."""
        found: dict[str, dict[Node, None]] = {"": {}, "q": {}, "k": {}}
        seen: set[Node] = set()
        stack = list(roots)
        while stack:
            node = stack.pop()
            if node in seen:
                continue
            seen.add(node)
            side = self.sides(node)
            if side != "qk":
                found[side][node] = None
            elif node.op == "linear":
                stack += [part for _, part in self.summands(node)]
            else:
                stack += node.args
        return {side: tuple(nodes) for side, nodes in found.items()}


def _fits(low: int, high: int) -> bool:
    return low >= INT_MIN and high <= INT_MAX


def is_equality(node: Node, reads: Reads) -> bool:
    """Whether a condition says that an int of the query is one of the key: then ids may be
    renamed.
    """
    sides = [reads.sides(a) for a in node.args]
    return node.op == "eq" and node.args[0].type == "int" and sides == ["q", "k"]


def alike(query: Node, key: Node) -> bool:
    """Whether an expression of the query is that of the key, of the other token."""
    leaves = {
        n: Node("coord", "int", (), ("k", n.value[1]), n.low, n.high)
        for n in postorder(query)
        if n.op == "coord"
    }
    return substitute(query, leaves) == key


class Conditions:
    """Takes a keep expression apart."""

    def __init__(self, reads: Reads) -> None:
        self.reads = reads
        self.left = MAX_CONDITIONS

    def apart(self, keep: Node) -> Conjunction:
        return self._conjunction(keep, True, False, 0)

    def _conjunction(self, node: Node, holds: bool, narrowed: bool, depth: int) -> Conjunction:
        """narrowed: whether a condition around this one leaves tokens of a tile out."""
        operands = _operands(node, holds)
        if len(operands) == 1 and operands[0][0].op in ("and", "or"):
            node, holds = operands[0]
            return self._joined(_operands(node, not holds), narrowed, True, depth)
        return self._joined(operands, narrowed, False, depth)

    def _joined(
        self, operands: list[tuple[Node, bool]], narrowed: bool, negated: bool, depth: int
    ) -> Conjunction:
        sides: dict[str, list[Node]] = {"q": [], "k": []}
        fixed, open_, both = [], [], False
        for node, holds in operands:
            signed = node if holds else not_(node)
            side = self.reads.sides(node)
            if side in sides:
                sides[side].append(signed)
            if not self.reads.varies(node):
                fixed.append(signed)
                both = both or side in ("", "qk")
            if side in ("", "qk"):
                open_.append((node, holds))
        narrowed = narrowed or bool(sides["q"] or sides["k"])
        parts = []
        for node, holds in open_:
            # What reads no input is told exactly for whole tiles; where only some of their tokens
            # matter, bounds may tell more.
            if self.reads.varies(node) or narrowed:
                parts.append(self._part(node, holds, narrowed, depth))
        queries, keys = (and_(*sides[s]) if sides[s] else None for s in "qk")
        return Conjunction(queries, keys, and_(*fixed) if both else None, tuple(parts), negated)

    def _part(self, node: Node, holds: bool, narrowed: bool, depth: int) -> Conjunction | Node:
        self.left -= 1
        if node.op in ("and", "or") and self.left > 0 and depth < MAX_DEPTH:
            return self._conjunction(node, holds, narrowed, depth + 1)
        found = self._separated(node)
        return found if holds else Node("not", "bool", (found,), None, False, True)

    def _separated(self, node: Node) -> Node:
        """A comparison of ints with queries on one hand and keys on the other (equalities: queries
        on the left), where it can be written so within 64 bits; else as it is.
        """
        if node.op not in ("le", "lt", "eq") or node.args[0].type != "int":
            return node
        constant, terms = combine((c, _inside(a)) for c, a in zip((1, -1), node.args, strict=True))
        terms = _moderate(constant, terms)
        sides = {t: self.reads.sides(t) for t in terms}
        for sign in (1, -1):
            queries = {t: sign * c for t, c in terms.items() if sides[t] == "q"}
            keys = {t: -sign * c for t, c in terms.items() if sides[t] in ("", "k")}
            fit = abs(constant) < INT_MAX and all(_fits(*bounds_of(0, x)) for x in (queries, keys))
            if "qk" in sides.values() or not queries or not keys or not fit:
                continue
            q, k = from_terms(0, queries), from_terms(0, keys)
            if node.op == "eq":
                return _equal(q, k, -sign * constant) or node
            less = -constant - (node.op == "lt")
            return _at_most(q, k, less) if sign == 1 else _at_most(k, q, less)
        return node


def _operands(node: Node, holds: bool) -> list[tuple[Node, bool]]:
    """(condition, whether it holds or fails) that together say that `node` holds or fails."""
    found: list[tuple[Node, bool]] = []
    seen: set[tuple[Node, bool]] = set()
    stack = [(node, holds)]
    while stack:
        node, holds = stack.pop()
        if (node, holds) in seen:
            continue
        seen.add((node, holds))
        if node.op == "not":
            stack.append((node.args[0], not holds))
        elif node.op == ("and" if holds else "or"):
            stack += [(a, holds) for a in reversed(node.args)]
        else:
            found.append((node, holds))
    return found


def _inside(node: Node) -> Node:
    """A sum that 64 bits may not hold: where they do not, no pair is kept or the call fails."""
    if node.op == "wide" and node.args[0].op == "linear":
        return node.args[0]
    return node


def _moderate(constant: int, terms: dict[Node, int]) -> dict[Node, int]:
    """The terms of a sum that is compared with 0: a single one that may be huge decides the sign
    where it is, and may as well be 2 ** 62 there, so that 64 bits hold the sum.
    """
    huge = [t for t in terms if t.low < -LARGE or t.high > LARGE]
    low, high = bounds_of(constant, {t: c for t, c in terms.items() if t not in huge})
    if len(huge) != 1 or abs(terms[huge[0]]) != 1 or low < -LARGE // 2 or high > LARGE // 2:
        return terms
    at_least = integers.extreme("max", huge[0], integer(-LARGE))
    clamped = integers.extreme("min", at_least, integer(LARGE))
    return {clamped if t is huge[0] else t: c for t, c in terms.items()}


def _compared(op: str, a: Node, b: Node) -> Node:
    return Node(op, "bool", (a, b), None, False, True)


def _at_most(a: Node, b: Node, gap: int) -> Node:
    """a <= b + gap, where a sum past 64 bits is as good as the largest or smallest int."""
    if gap >= 0:
        low_enough = integers.extreme("min", b, integer(INT_MAX - gap))
        return _compared("le", a, integers.add(low_enough, integer(gap)))
    high_enough = integers.extreme("max", b, integer(INT_MIN - gap - 1))
    return _compared("lt", a, integers.add(high_enough, integer(gap + 1)))


def _equal(q: Node, k: Node, gap: int) -> Node | None:
    """q == k + gap, or None where neither side can take the gap."""
    if _fits(k.low + gap, k.high + gap):
        return _compared("eq", q, integers.add(k, integer(gap)))
    if _fits(q.low - gap, q.high - gap):
        return _compared("eq", integers.add(q, integer(-gap)), k)
    return None
