"""Layout search: the tiles of queries and keys under which a mask costs least.

The pattern proposes where tiles may lie (`proposals`), their shares of visited tiles are worked out
for all sizes at once (`shares`), and the best few are classified by the tree.
"""

from __future__ import annotations

import itertools
import math
import numbers
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from maskdsl.errors import PlanError
from maskdsl.ir.nodes import Node
from maskdsl.planner.boxes import Side
from maskdsl.planner.proposals import frames, joined
from maskdsl.planner.shares import AxisMeter, Parted, Share, combine, part, sampled
from maskdsl.planner.tiles import MAX_LANES, Grid, Tile, default_tile
from maskdsl.planner.tree import FEW_PAIRS, Tree

PARTIAL_COST = 1.5  # of a partial tile, in full ones
FINALISTS = 2  # candidates that trees classify, the plain tiles besides
SAMPLED = 16  # candidates whose shares are taken from samples
ROUGH = 2**11  # pairs of tiles in such a sample, over all heads, and of those that it prefers,
SAMPLE = 2**12
SHORTLIST = 4
ROOMY = 4  # times as many lanes as a residue class has tokens, at most
KEPT = 2  # frames of one axis that are kept for the same sizes
CLASSES = 4  # head classes looked at
MOST_BOXES = 2**12  # of one level of a tree, and
MOST_LEAVES = 2**12  # undecided tiles of different kinds: what is less regular is sampled, and
IRREGULAR = 0.42  # of the cost of plain tiles is what it may cost to be chosen
PLAINER = 0.002  # what an origin, a step, a pitch or a wrap must gain at least


@dataclass(frozen=True)
class Candidate:
    """Tiles, and how many pairs of them one head visits (the mean over heads).

    counted: by trees (tiles that bounds leave open count as partial), or else estimated.
    """

    q_tile: Tile
    kv_tile: Tile
    full: float
    partial: float
    counted: bool

    @property
    def area(self) -> int:
        """Pairs of lanes of a pair of tiles."""
        return self.q_tile.lanes * self.kv_tile.lanes


Cost = Callable[[Candidate], float]
Pair = tuple[Tile, Tile]
Axes = tuple[tuple[str, int | None], ...]
Trees = dict[tuple[Node, Side, Side], Tree]


def work(candidate: Candidate) -> float:
    """Pairs of lanes to work on, those of partial tiles counting half more."""
    return (candidate.full + PARTIAL_COST * candidate.partial) * candidate.area


@dataclass(frozen=True)
class Layout:
    """What the search looked at.

    tried: the candidates that were classified, best first: the first is the choice.
    proposed: how many there were.
    """

    tried: tuple[Candidate, ...]
    proposed: int


@dataclass(frozen=True)
class Problem:
    """Patterns (keep expressions, and how many heads have each) over two boxes of axes.

    given: tiles that are fixed, by side. trees: those made, to be used again.
    """

    keeps: tuple[tuple[Node, int], ...]
    q_axes: Axes
    k_axes: Axes
    given: Mapping[str, Tile]
    trees: Trees = field(default_factory=dict)

    def axes(self, side: str) -> Axes:
        return self.q_axes if side == "q" else self.k_axes

    def extents(self, side: str) -> tuple[int, ...]:
        return tuple(extent or 0 for _, extent in self.axes(side))

    def sides(self, pair: Pair) -> tuple[Side, Side]:
        q, k = (
            Side(name, tuple(a for a, _ in self.axes(name)), Grid(tile, self.extents(name)))
            for name, tile in zip("qk", pair, strict=True)
        )
        return q, k

    @cached_property
    def sample(self) -> tuple[tuple[Node, int], ...]:
        """The patterns of some heads, evenly spread over all of them."""
        heads = [keep for keep, count in self.keeps for _ in range(count)]
        places = (np.arange(CLASSES) + 0.5) * len(heads) / CLASSES
        chosen = Counter(heads[int(i)] for i in places)
        return tuple(chosen.items())


def search(problem: Problem, lanes: tuple[int, int], cost: Cost = work) -> tuple[Pair, Layout]:
    """The cheapest tiles of `lanes` (queries, keys) lanes, fewer where the space is small."""
    q, k = (
        problem.given.get(side) or default_tile(problem.extents(side), n)
        for side, n in zip("qk", lanes, strict=True)
    )
    plain = q, k
    proposed = {(c.q_tile, c.kv_tile): c for c in _proposals(problem, plain, cost)}
    pairs = list(dict.fromkeys([plain, *proposed]))[: FINALISTS + 1]
    if len(pairs) == 1:
        return plain, Layout((), 1)
    known = (proposed.get(p) for p in pairs)
    counted = [
        c if c and c.counted else _count(problem, p) for c, p in zip(known, pairs, strict=True)
    ]
    enough = IRREGULAR * _rank(counted[0], cost)  # of the plain ones
    tried = [c for c in counted if c.counted or c is counted[0] or _rank(c, cost) < enough]
    tried.sort(key=lambda c: _rank(c, cost))
    return (tried[0].q_tile, tried[0].kv_tile), Layout(tuple(tried), len({plain, *proposed}))


def kernel_lanes(head_dim: int, target: str = "sm_90") -> tuple[int, int]:
    """Lanes of query and key tiles that suit kernels for a target: accumulators and tiles must fit
    registers and shared memory.
    """
    if target.startswith("gfx"):
        return (128, 64) if head_dim <= 64 else (64, 64)
    return 128, 128 if head_dim <= 64 else 64


def pair(lanes: tuple[int, int] | int) -> tuple[int, int]:
    """Lanes of queries and keys, each a power of two from 16 to MAX_LANES. Raises PlanError."""
    both = (lanes, lanes) if isinstance(lanes, (int, np.integer)) else lanes
    try:
        q, k = (int(n) for n in both)
    except (TypeError, ValueError):
        raise PlanError(f"lanes are an int or two, not {lanes!r}"[:200]) from None
    if any(n < 16 or n > MAX_LANES or n & (n - 1) for n in (q, k)):
        raise PlanError(f"lanes are powers of two from 16 to {MAX_LANES}, not {lanes!r}"[:200])
    return q, k


def _rank(candidate: Candidate, cost: Cost) -> float:
    """The cost, a little more for tiles that are harder to read and to load. Raises PlanError where
    it is no number.
    """
    value = cost(candidate)
    if not isinstance(value, numbers.Real) or not math.isfinite(value):
        raise PlanError(f"a layout's cost must be a finite number, not {value!r}"[:200])
    odd = sum(_oddness(t) for t in (candidate.q_tile, candidate.kv_tile))
    return float(value) * (1 + PLAINER * odd)


def _oddness(tile: Tile) -> float:
    """Of one tile or one axis; short runs of neighbouring tokens count too, but little."""
    odd = sum(
        (s > 1) + (o != 0) + (p != n) + w
        for n, s, o, p, w in zip(
            tile.size, tile.step, tile.origin, tile.pitch, tile.wrap, strict=True
        )
    )
    return odd + 0.01 / tile.size[-1]


def _count(problem: Problem, pair: Pair) -> Candidate:
    """A candidate classified by trees, or estimated where it is too irregular for them."""
    full = partial = heads = 0.0
    counted = True
    for keep, weight in problem.sample:
        sides = problem.sides(pair)
        try:
            tree = Tree(keep, *sides, limit=MOST_BOXES, rough=True)
            if len(tree.leaves) > MOST_LEAVES:
                raise PlanError("too irregular")
            if len(tree.leaves) * pair[0].lanes * pair[1].lanes <= FEW_PAIRS:
                tree.finish()
            problem.trees[(keep, *sides)] = tree
            own = (tree.full, tree.partial)
        except PlanError:
            total = sides[0].grid.count * sides[1].grid.count
            visited, share = sampled(keep, *sides, SAMPLE // len(problem.sample))
            own = round(share * total), round((visited - share) * total)
            counted = False
        full += own[0] * weight
        partial += own[1] * weight
        heads += weight
    return Candidate(*pair, full / heads, partial / heads, counted)


def _proposals(problem: Problem, plain: Pair, cost: Cost) -> list[Candidate]:
    """Tiles of as many lanes as the plain ones worth classifying, the most promising first."""
    lanes = plain[0].lanes, plain[1].lanes
    parted = [part(keep) for keep, _ in problem.sample]
    names = [[name for name, _ in problem.axes(side)] for side in "qk"]
    if names[0] == names[1] and len(names[0]) > 1 and all(parted):
        return _apart(problem, [p for p in parted if p], plain, cost)
    return _together(problem, lanes, cost)


# Conditions that part by axes: shares of each axis, multiplied out over all sizes.


@dataclass
class _Choices:
    """Tiles of queries and keys on one axis: their sizes' logarithms, numbers of tiles, and the
    shares of the axis's conditions.
    """

    pairs: list[Pair]
    shares: dict[Parted, Share]
    logs: np.ndarray  # int (2, pairs)
    total: np.ndarray  # pairs of tiles


def _apart(problem: Problem, parted: list[Parted], plain: Pair, cost: Cost) -> list[Candidate]:
    """Candidates of all sizes; counted where the patterns are conjunctions over different axes, of
    which the product of shares is exact.
    """
    exact = all(p.op == "axis" or {a.op for a in p.args} <= {"axis", "any"} for p in parted)
    exact = exact and all(p.op != "or" and p.op != "not" for p in parted)
    choices = [_on_axis(problem, parted, i, plain) for i in range(len(problem.q_axes))]
    wanted = np.array([[t.lanes.bit_length() - 1] for t in plain])
    logs = np.zeros((2, 1), dtype=np.int64)
    chosen: list[np.ndarray] = []
    for c in choices:
        at, own = np.divmod(np.arange(logs.shape[1] * len(c.pairs)), len(c.pairs))
        both = logs[:, at] + c.logs[:, own]
        fits = (both <= wanted).all(0)
        logs, chosen = both[:, fits], [*(x[at[fits]] for x in chosen), own[fits]]
    ends = (logs == wanted).all(0)
    chosen = [x[ends] for x in chosen]
    if not chosen or not len(chosen[0]):
        return []
    shares = {
        leaf: Share(s.visited[own], s.full[own])
        for c, own in zip(choices, chosen, strict=True)
        for leaf, s in c.shares.items()
    }
    total = math.prod(c.total[own] for c, own in zip(choices, chosen, strict=True))
    full, visited, heads = np.zeros(len(chosen[0])), np.zeros(len(chosen[0])), 0
    for p, (_, weight) in zip(parted, problem.sample, strict=True):
        share = combine(p, shares)
        full, visited = full + share.full * weight, visited + share.visited * weight
        heads += weight
    full, partial = full * total / heads, (visited - full) * total / heads
    rough = full + PARTIAL_COST * partial
    plainest = np.flatnonzero(np.logical_and.reduce([own == 0 for own in chosen]))
    candidates = []
    for i in (*plainest, *np.argsort(rough, kind="stable")[:64]):
        axes = [c.pairs[own[i]] for c, own in zip(choices, chosen, strict=True)]
        q, k = (joined([a[side] for a in axes]) for side in (0, 1))
        counts = (round(float(full[i]), 6), round(float(partial[i]), 6))
        candidates.append(Candidate(q, k, *counts, exact))
    candidates.sort(key=lambda c: _rank(c, cost))
    return candidates


def _on_axis(problem: Problem, parted: list[Parted], axis: int, plain: Pair) -> _Choices:
    """The best tiles of each size on one axis, after the plain ones."""
    name, extent = problem.q_axes[axis][0], problem.extents("q")[axis]
    leaves = list(dict.fromkeys(x for p in parted for x in p.leaves() if x.axis == name))
    meter = AxisMeter(name, extent, leaves)
    tiles = [_axis_tiles(problem, side, axis, t.lanes) for side, t in zip("qk", plain, strict=True)]
    q_plain, k_plain = (_on(t, axis) for t in plain)
    best: dict[tuple[int, int], list[tuple[float, Pair, list[tuple[float, float]], int]]] = {}
    for q, k in itertools.product(*tiles):
        if not meter.dense and not problem.given and q != k:
            continue
        shares = meter.shares(q, k)
        total = meter.count(q) * meter.count(k)
        mean = sum(f + PARTIAL_COST * (v - f) for v, f in shares) / len(shares) if shares else 1
        rank = mean * total * (1 + PLAINER * (_oddness(q) + _oddness(k)))
        rank = -1.0 if (q, k) == (q_plain, k_plain) else rank
        best.setdefault((q.lanes, k.lanes), []).append((rank, (q, k), shares, total))
    kept = [x for line in best.values() for x in sorted(line, key=lambda x: x[0])[: KEPT + 1]]
    kept.sort(key=lambda x: x[0] >= 0)
    columns = {
        leaf: Share(*(np.array([x[2][i][j] for x in kept]) for j in (0, 1)))
        for i, leaf in enumerate(leaves)
    }
    logs = [[t.lanes.bit_length() - 1 for t in x[1]] for x in kept]
    return _Choices([x[1] for x in kept], columns, np.array(logs).T, np.array([x[3] for x in kept]))


def _axis_tiles(problem: Problem, side: str, axis: int, lanes: int) -> list[Tile]:
    """Every tile of up to `lanes` lanes that some pattern proposes for an axis."""
    name, extent = problem.axes(side)[axis][0], problem.extents(side)[axis]
    if side in problem.given:
        return [_on(problem.given[side], axis)]
    found: dict[Tile, None] = {}
    for keep, _ in problem.sample:
        for frame in frames(keep, side, name, extent):
            room = -(-extent // frame.step) * (ROOMY if frame.step > 1 else 1)
            size = 1
            while size <= lanes:
                found[frame.tile(size)] = None
                if size >= room:
                    break
                size *= 2
    return list(found)


def _on(tile: Tile, axis: int) -> Tile:
    """A tile on one of its axes."""
    size, step, origin, pitch = (
        (x[axis],) for x in (tile.size, tile.step, tile.origin, tile.pitch)
    )
    return Tile(size, step, origin, pitch, (tile.wrap[axis],))


# Conditions that join axes, and single axes: candidates one by one.


def _together(problem: Problem, lanes: tuple[int, int], cost: Cost) -> list[Candidate]:
    """Tiles of all sizes, the same for queries and keys, with one axis at a time framed as the
    pattern proposes; ranked by samples where there are more than trees can look at.
    """
    tiles = [
        [problem.given[side]] if side in problem.given else _box_tiles(problem, side, n)
        for side, n in zip("qk", lanes, strict=True)
    ]
    pairs: list[Pair]
    alike = problem.q_axes == problem.k_axes and lanes[0] == lanes[1] and not problem.given
    if alike and len(problem.q_axes) > 1:
        pairs = [(t, t) for t in tiles[0]][:SAMPLED]
    else:
        pairs = [(q, k) for q in tiles[0] for k in tiles[1]][:SAMPLED]
    if len(pairs) <= FINALISTS:
        return [Candidate(q, k, 0.0, 0.0, False) for q, k in pairs]
    roughly = _sampled(problem, pairs, ROUGH, cost)
    best = [(c.q_tile, c.kv_tile) for c in roughly[:SHORTLIST]]
    return _sampled(problem, best, SAMPLE, cost) + roughly[SHORTLIST:]


def _sampled(problem: Problem, pairs: list[Pair], sample: int, cost: Cost) -> list[Candidate]:
    """Candidates by samples of so many tiles over all heads, the most promising first."""
    patterns = problem.sample
    heads = sum(weight for _, weight in patterns)
    found = []
    for q, k in pairs:
        sides = problem.sides((q, k))
        total = sides[0].grid.count * sides[1].grid.count
        shares = [(sampled(keep, *sides, sample // len(patterns)), w) for keep, w in patterns]
        visited, full = (sum(s[i] * w for s, w in shares) / heads * total for i in (0, 1))
        found.append(Candidate(q, k, full, visited - full, False))
    found.sort(key=lambda c: _rank(c, cost))
    return found


def _box_tiles(problem: Problem, side: str, lanes: int) -> list[Tile]:
    """Boxes of `lanes` lanes, plain ones first."""
    axes = [_axis_tiles(problem, side, i, lanes) for i in range(len(problem.axes(side)))]
    boxes = [joined(list(x)) for x in itertools.product(*axes) if _lanes(x) == lanes]
    return sorted(boxes, key=_oddness)


def _lanes(tiles: tuple[Tile, ...]) -> int:
    return math.prod(t.lanes for t in tiles)
