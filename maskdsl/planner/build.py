"""From a program to its plan: tiles chosen where none are given, then classified per head class."""

from __future__ import annotations

from collections.abc import Sequence

from maskdsl.errors import PlanError
from maskdsl.ir.integers import integer
from maskdsl.ir.nodes import Node, postorder
from maskdsl.ir.program import Program, Segment
from maskdsl.ir.rewrite import substitute
from maskdsl.planner.boxes import Side
from maskdsl.planner.layout import Cost, Layout, Problem, Trees, search, work
from maskdsl.planner.plan import Patterns, Plan, planned
from maskdsl.planner.tiles import Grid, Tile, default_tile
from maskdsl.planner.tree import Tree

MAX_TILES = 2**31  # per side: tile numbers fit 32 bits

TileLike = Tile | Sequence[int] | int
TilesLike = TileLike | Sequence[TileLike]


def make_plan(
    program: Program,
    source: str,
    q_tile: TilesLike | None = None,
    kv_tile: TilesLike | None = None,
    lanes: tuple[int, int] = (64, 64),
    cost: Cost = work,
) -> Plan:
    """Classify all tiles; those not given are searched for, of `lanes` lanes (queries, keys), the
    cheapest by `cost`.

    Raises PlanError for tiles that do not fit and patterns that are too irregular.
    """
    keeps = tuple(tuple(b.keep for b in row) for row in program.blocks)
    patterns = head_patterns(program, keeps)
    given = [_given(program.queries, q_tile), _given(program.keys, kv_tile)]
    chosen, layouts, made = _searched(program, patterns, given, lanes, cost)
    q_grids, kv_grids = (
        tuple(Grid(t, s.shape) for t, s in zip(tiles, segments, strict=True))
        for tiles, segments in zip(chosen, (program.queries, program.keys), strict=True)
    )
    for grids in (q_grids, kv_grids):
        if sum(g.count for g in grids) > MAX_TILES:
            raise PlanError(f"more than {MAX_TILES} tiles; take larger ones")

    def grow(keep: Node, q: Side, k: Side) -> Tree:
        tree = made.pop((keep, q, k), None)
        return tree.finish() if tree else Tree(keep, q, k)

    return planned(program, source, q_grids, kv_grids, patterns, grow, layouts)


def plain_plan(program: Program, source: str) -> Plan:
    """A plan of plain tiles, not searched for."""
    tiles = ([default_tile(s.shape) for s in x] for x in (program.queries, program.keys))
    q_tile, kv_tile = (t if len(t) > 1 else t[0] for t in tiles)
    return make_plan(program, source, q_tile, kv_tile)


def _given(segments: Sequence[Segment], tiles: TilesLike | None) -> list[Tile | None]:
    """The tiles given, one for each segment where there are several."""
    if tiles is None:
        return [None] * len(segments)
    if len(segments) == 1:
        return [Tile.of(tiles, len(segments[0].axes))]
    if not isinstance(tiles, Sequence) or len(tiles) != len(segments):
        raise PlanError(f"{len(segments)} segments need a tile each, as in [(4, 8, 4), 64]")
    return [
        None if t is None else Tile.of(t, len(s.axes)) for t, s in zip(tiles, segments, strict=True)
    ]


def _searched(
    program: Program,
    patterns: Sequence[tuple[tuple[int, ...], Patterns]],
    given: list[list[Tile | None]],
    lanes: tuple[int, int],
    cost: Cost,
) -> tuple[list[list[Tile]], tuple[Layout, ...], Trees]:
    """(tiles of queries and of keys per segment, what was looked at, trees made on the way).

    Each segment's tiles are those under which it costs least to attend to itself.
    """
    chosen = [
        [t or default_tile(s.shape, n) for t, s in zip(side, segments, strict=True)]
        for side, segments, n in zip(given, (program.queries, program.keys), lanes, strict=True)
    ]
    layouts: list[Layout] = []
    made: Trees = {}
    if len(program.queries) != len(program.keys):
        return chosen, (), made
    for i, block in enumerate(row[i] for i, row in enumerate(program.blocks)):
        fixed = {n: t for n, t in zip("qk", (given[0][i], given[1][i]), strict=True) if t}
        if len(fixed) == 2:
            continue
        keeps = tuple((keeps[i][i], len(heads)) for heads, keeps in patterns)
        problem = Problem(keeps, block.queries.axes, block.keys.axes, fixed)
        (chosen[0][i], chosen[1][i]), layout = search(problem, lanes, cost)
        layouts.append(layout)
        made |= problem.trees
    return chosen, tuple(layouts), made


def head_patterns(program: Program, roots: Patterns) -> list[tuple[tuple[int, ...], Patterns]]:
    """(heads, their pattern): the expressions of each head, equal heads together."""
    reads = [n for n in postorder(*(x for row in roots for x in row)) if n.op == "head"]
    if not reads:
        return [(tuple(range(program.heads)), roots)]
    classes: dict[Patterns, list[int]] = {}
    for h in range(program.heads):
        one = {reads[0]: integer(h)}
        key = tuple(tuple(substitute(x, one) for x in row) for row in roots)
        classes.setdefault(key, []).append(h)
    return [(tuple(heads), key) for key, heads in classes.items()]
