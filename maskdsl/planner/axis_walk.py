"""The closed form of a walk along one axis of the keys."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from maskdsl.ir import integers, logic
from maskdsl.ir.integers import integer
from maskdsl.ir.nodes import Node, postorder
from maskdsl.ir.rewrite import substitute
from maskdsl.planner.axis_pair import NotClosedError, Pair, refuse
from maskdsl.planner.lines import Line
from maskdsl.planner.monotone import increments, least
from maskdsl.planner.solve import Interval, at_most, conjuncts, disjuncts, reads, solve


@dataclass(frozen=True)
class Band:
    """Tiles first .. last - 1 are visited, of which full_first .. full_last - 1 are full, and
    first <= full_first <= full_last <= last. Ints over the number of the query tile on its axis, a
    leaf ("tile", query axis).
    """

    first: Node
    last: Node
    full_first: Node
    full_last: Node

    @property
    def ends(self) -> tuple[Node, Node, Node, Node]:
        return self.first, self.last, self.full_first, self.full_last

    def at(self, extents: Mapping[str, int]) -> Band:
        """The band with extents, by axis, that were open."""
        leaves = {
            n: integer(extents[axis])
            for n in postorder(*self.ends)
            if n.op == "symbol" and (axis := n.value.removesuffix(".size")) in extents
        }
        return Band(*(substitute(n, leaves) for n in self.ends))


@dataclass(frozen=True)
class AxisWalk:
    """Tiles of one axis of the keys, in bands one after the other that do not overlap.

    query: the axis of the queries whose tile number the bands read, if any.
    """

    axis: str
    query: str | None
    bands: tuple[Band, ...]


def axis_walk(
    keys: Line, queries: Line | None, conditions: Sequence[Node]
) -> tuple[AxisWalk, bool]:
    """The walk along one axis of the keys under conditions that read it and at most one axis of the
    queries; and whether each query is sure to keep a key on it. Raises NotClosedError.
    """
    if not conditions:
        if not keys.all_hold_tokens:
            raise NotClosedError(f"some key tiles hold no token on axis {keys.name}")
        whole = (integer(0), keys.tiles)
        return AxisWalk(keys.name, None, (Band(*whole, *whole),)), True
    pair = Pair(keys, queries or Line("q", "", 0, 1, 1, integer(1)), conditions)
    common, branches = _intervals(pair)
    intervals = [common & branch for branch in branches]
    for interval in intervals:
        _prove(pair, interval)
    sure = [_keeps_a_key(pair, x) for x in intervals]
    if len(intervals) == 1:
        bands = [_band(pair, intervals[0], sure[0])]
    else:
        bands = _joined(pair, branches[0], intervals, sure)
    numbered = tuple(Band(*map(pair.numbered, b.ends)) for b in bands)
    return AxisWalk(keys.name, queries.name if queries else None, numbered), any(sure)


def _intervals(pair: Pair) -> tuple[Interval, list[Interval]]:
    """What all keys of a query obey, and alternatives besides: one, or two of which the first is
    the same for all queries and does not begin after the other.
    """
    common, branches = Interval(), [Interval()]
    for condition, written in pair.conditions:
        parts = disjuncts(condition)
        if len(parts) == 1:
            common = common & _solved(pair, condition, written)
            continue
        if len(branches) > 1:
            raise refuse("more than one choice between intervals of keys", written)
        branches = []
        for part in parts:
            found = Interval()
            for c in conjuncts(part):
                found = found & _solved(pair, c, written)
            branches.append(found)
        branches.sort(key=lambda b: any(pair.moves(x) for x in (*b.lower, *b.upper)))
        moving = [b for b in branches if any(pair.moves(x) for x in (*b.lower, *b.upper))]
        if len(parts) > 2 or len(moving) != 1:
            raise refuse("not a fixed interval of keys and a moving one", written)
        if not branches[0].upper or not _begins_first(pair, *branches):
            raise refuse("the fixed interval of keys does not come first", written)
    return common, branches


def _solved(pair: Pair, condition: Node, written: Node) -> Interval:
    if not reads(condition, pair.key):
        raise refuse("only some queries see keys", written)
    found = solve(condition, pair.key)
    if found is None:
        raise refuse("not an interval of keys", written)
    return found


def _begins_first(pair: Pair, one: Interval, other: Interval) -> bool:
    lower = (*other.lower, pair.low)
    return all(any(pair.never_negative(integers.sub(b, a)) for b in lower) for a in one.lower)


def _prove(pair: Pair, interval: Interval) -> None:
    """That the keys of queries side by side make up an interval from the first one's lower end to
    the last one's upper end. Ends that do not move only cut off what lies beyond.
    """
    if pair.queries.pitch == 1:
        return
    lower = {x: increments(x, pair.place) for x in interval.lower if pair.moves(x)}
    upper = {x: increments(x, pair.place) for x in interval.upper if pair.moves(x)}
    if any(growth < 0 for growth, _ in (*lower.values(), *upper.values())):
        raise NotClosedError(
            f"queries further on may see keys further back on axis {pair.keys.name}"
        )
    for u, (_, up) in upper.items():
        for l, (_, down) in lower.items():
            length = least(integers.sub(u, l), pair.ceilings)
            if length < 0 or length + 1 < min(up, down):
                raise NotClosedError(
                    f"the keys of two neighbours may leave a gap on axis {pair.keys.name}"
                )


def _keeps_a_key(pair: Pair, interval: Interval) -> bool:
    return all(
        pair.never_negative(integers.sub(u, l))
        for u in (*interval.upper, pair.high)
        for l in (*interval.lower, pair.low)
    )


def _band(pair: Pair, interval: Interval, sure: bool) -> Band:
    """Tiles within the residue class of the keys."""
    low = pair.extreme("max", pair.low, *pair.at(pair.first, interval.lower))
    high = pair.extreme("min", pair.high, *pair.at(pair.last, interval.upper))
    first, last = _tile(pair, low), _tile(pair, high, 1)
    holds = pair.never_negative(integers.sub(pair.last, pair.first))
    if not sure or not holds:
        some = at_most(low, high)
        if not holds:
            some = logic.and_(some, at_most(pair.first, pair.last))
        last = logic.select(some, last, first)
    full_first = _full_first(pair, pair.at(pair.last, interval.lower))
    full_last = _full_last(pair, pair.at(pair.first, interval.upper))
    if not sure or not holds:
        return _clipped(pair, Band(first, last, full_first, full_last))
    return Band(first, last, full_first, pair.extreme("max", full_first, full_last))


def _joined(pair: Pair, fixed: Interval, intervals: list[Interval], sure: list[bool]) -> list[Band]:
    """Two bands as one after the other. A tile may lie in both and be full only by both: where the
    moving one begins at the latest one key after the end of the fixed one, for all queries of the
    tile, what either covers counts.
    """
    one, other = (_band(pair, x, s) for x, s in zip(intervals, sure, strict=True))
    begin = pair.extreme("max", pair.low, *pair.at(pair.last, intervals[1].lower))
    behind = integers.add(pair.extreme("min", *fixed.upper), integer(1))
    ends = [
        pair.extreme("min", pair.high, *pair.at(pair.first, interval.upper))
        for interval in intervals
    ]
    touches = at_most(begin, behind)
    apart, together = (_full_last(pair, [end]) for end in (ends[0], pair.extreme("max", *ends)))
    full_last = logic.select(touches, together, apart)
    one = _clipped(pair, Band(one.first, one.last, one.full_first, full_last))
    first = pair.extreme("max", other.first, one.last)
    last = pair.extreme("max", other.last, first)
    full_first = pair.extreme("max", other.full_first, first)
    return [one, _clipped(pair, Band(first, last, full_first, other.full_last))]


def _clipped(pair: Pair, band: Band) -> Band:
    first, last, full_first, full_last = band.ends
    full_first = pair.extreme("min", pair.extreme("max", full_first, first), last)
    full_last = pair.extreme("max", full_first, pair.extreme("min", full_last, last))
    return Band(first, last, full_first, full_last)


def _full_first(pair: Pair, lower: list[Node]) -> Node:
    """The first tile that does not begin before any of the bounds; what lies before the first key
    does not count.
    """
    pitch = pair.keys.pitch
    begin = _tile(pair, pair.low)
    if not lower:
        return begin
    if integers.mod(pair.low, integer(pitch)) == integer(0):
        bound = pair.extreme("max", pair.low, *lower)
        return _tile(pair, integers.add(bound, integer(pitch - 1)))
    bound = pair.extreme("max", *lower)
    before = at_most(bound, pair.low)
    return logic.select(before, begin, _tile(pair, integers.add(bound, integer(pitch - 1))))


def _full_last(pair: Pair, upper: list[Node]) -> Node:
    """One past the last tile that does not end after any of the bounds; what lies past the last key
    does not count.
    """
    end = _tile(pair, pair.high, 1)
    if not upper:
        return end
    one = integer(1)
    bound = pair.extreme("min", *upper)
    if integers.mod(integers.add(pair.high, one), integer(pair.keys.pitch)) == integer(0):
        bound = pair.extreme("min", pair.high, bound)
        return _tile(pair, integers.add(bound, one))
    past = at_most(pair.high, bound)
    return logic.select(past, end, _tile(pair, integers.add(bound, one)))


def _tile(pair: Pair, place: Node, more: int = 0) -> Node:
    """place // pitch + more, choices outermost: they then fold into ends that people recognise."""
    if place.op in ("min", "max"):
        return pair.extreme(place.op, *(_tile(pair, a, more) for a in place.args))
    constant, terms = integers.terms_of(place)
    for term, scale in terms.items():
        if term.op in ("min", "max") and scale == 1:
            rest = integers.from_terms(constant, {t: c for t, c in terms.items() if t is not term})
            parts = (integers.add(a, rest) for a in term.args)
            return pair.extreme(term.op, *(_tile(pair, p, more) for p in parts))
    return integers.add(integers.floordiv(place, integer(pair.keys.pitch)), integer(more))
