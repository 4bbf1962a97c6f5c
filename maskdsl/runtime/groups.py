"""Rows of a plan that can run together: equal up to a translation of their tokens.

For the torch backend a row (a query tile) is a list of query tokens, a list of key tokens and the
truth between them. Rows
with the same offsets and the same truth share one mask and one gather, so many rows become one
batched product.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from maskdsl.ir.box import combine_keys
from maskdsl.ir.definition import positions
from maskdsl.ir.evaluate import evaluate
from maskdsl.ir.program import Segment
from maskdsl.planner.plan import HeadClass, Plan
from maskdsl.planner.rows import shapes
from maskdsl.planner.tiles import Grid


@dataclass(frozen=True)
class Group:
    """Rows that differ by a translation.

    query_segment: of all rows. queries: int64 (rows,), position of each row's tile; query_offsets:
    int64 (tile queries,), what to add. segments: the key segments the rows see; keys: int64
    (rows, segments), a position in each; key_offsets: int64 (row keys,), what to add to the
    position
    of key_segment: int64 (row keys,), an index into `segments`.
    keep: bool (tile queries, row keys), or None where an input decides or every pair is kept.
    shared: how many of the first keys every query of the row keeps.
    """

    query_segment: int
    queries: np.ndarray
    query_offsets: np.ndarray
    segments: tuple[int, ...]
    keys: np.ndarray
    key_offsets: np.ndarray
    key_segment: np.ndarray
    keep: np.ndarray | None
    shared: int
    varies: bool


@dataclass(frozen=True)
class Tiles:
    """Per tile of one side, by number: its position (that of lane 0, as if the space went on
    outside), how it is clipped, its segment.
    """

    corner: np.ndarray
    edge: np.ndarray
    segment: np.ndarray

    @staticmethod
    def of(segments: tuple[Segment, ...], grids: tuple[Grid, ...]) -> Tiles:
        corners, edges, numbers = [], [], []
        for number, (segment, grid) in enumerate(zip(segments, grids, strict=True)):
            corner, edge = _corners(grid)
            corners.append(corner + segment.offset)
            edges.append(edge)
            numbers.append(np.full(grid.count, number))
        return Tiles(*(np.concatenate(x) for x in (corners, edges, numbers)))


def groups_of(plan: Plan, c: HeadClass) -> list[Group]:
    """All rows of a head class that visit anything."""
    row, tile, shape = shapes(c.placed)
    if not len(row):
        return []
    program = plan.program
    q = Tiles.of(program.queries, plan.q_grids)
    k = Tiles.of(program.keys, plan.kv_grids)
    starts = np.flatnonzero(np.diff(row, prepend=-1))
    ends = np.append(starts[1:], len(row))
    # Positions count from the first tile that a row visits in each segment.
    visits = row * len(program.keys) + k.segment[tile]
    lines = np.flatnonzero(np.diff(visits, prepend=-1))
    first = np.repeat(k.corner[tile[lines]], np.diff(lines, append=len(row)))
    entry = combine_keys(
        np.uint64(1), [k.corner[tile] - first, shape, k.edge[tile], k.segment[tile]]
    )
    own = row[starts]
    varies = any(t.varies for t in c.all_trees)
    with np.errstate(over="ignore"):
        signature = np.add.reduceat(entry, starts)
    signature = combine_keys(signature, [q.edge[own], q.segment[own], ends - starts])
    _, representative, member = np.unique(signature, return_index=True, return_inverse=True)
    order = np.argsort(member, kind="stable")
    bounds = np.searchsorted(member[order], np.arange(len(representative) + 1))
    found = []
    for g, r in enumerate(representative):
        rows = order[bounds[g] : bounds[g + 1]]
        entries = np.arange(starts[r], ends[r])
        segments, at = np.unique(k.segment[tile[entries]], return_index=True)
        tokens, numbers, keep, shared = _keys(plan, c, int(own[r]), tile[entries], varies)
        segment_of = np.searchsorted(segments, numbers)
        query_tokens = plan.tokens("q", int(own[r]))
        found.append(
            Group(
                query_segment=int(q.segment[own[r]]),
                queries=q.corner[own[rows]],
                query_offsets=query_tokens - q.corner[own[r]],
                segments=tuple(segments.tolist()),
                keys=first[starts[rows][:, None] + at[None, :]],
                key_offsets=tokens - first[starts[r] + at][segment_of],
                key_segment=segment_of,
                keep=keep,
                shared=shared,
                varies=varies,
            )
        )
    return found


def _keys(
    plan: Plan, c: HeadClass, q_tile: int, tiles: np.ndarray, varies: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None, int]:
    """(tokens, their segments, keep, shared) of one row: keys that no query keeps are left out."""
    queries = plan.tokens("q", q_tile)
    tokens = np.concatenate([plan.tokens("k", int(t)) for t in tiles])
    program = plan.program
    ends = np.cumsum([s.tokens for s in program.keys])
    numbers = np.searchsorted(ends, tokens, side="right")
    if varies:
        return tokens, numbers, None, 0
    truth = np.zeros((len(queries), len(tokens)), dtype=bool)
    q_number = int(
        np.searchsorted(np.cumsum([s.tokens for s in program.queries]), queries[0], "right")
    )
    for number in np.unique(numbers):
        block = program.blocks[q_number][number]
        chosen = numbers == number
        leaves = {
            n: x[:, None]
            for n, x in positions(block.queries, "q", queries - block.queries.offset).items()
        }
        at = tokens[chosen] - block.keys.offset
        leaves |= {n: x[None, :] for n, x in positions(block.keys, "k", at).items()}
        truth[:, chosen] = evaluate(c.keeps[q_number][number], leaves, {})
    used = truth.any(0)
    everywhere = truth.all(0)
    order = np.concatenate([np.flatnonzero(everywhere), np.flatnonzero(used & ~everywhere)])
    shared = int(everywhere.sum())
    keep = None if shared == len(order) else truth[:, order]
    return tokens[order], numbers[order], keep, shared


def _corners(grid: Grid) -> tuple[np.ndarray, np.ndarray]:
    """Per tile: the flattened position of lane 0 (as if the space went on outside), and a number
    for how it is clipped.
    """
    tiles = np.arange(grid.count)
    flat = np.zeros(grid.count, dtype=np.int64)
    edges = []
    for axis, index in enumerate(np.unravel_index(tiles, grid.shape)):
        residue, block = np.divmod(index, grid.blocks[axis])
        pitch, step, extent = (x[axis] for x in (grid.tile.pitch, grid.tile.step, grid.extents))
        place = residue + step * pitch * block
        first = grid.starts[axis] + place
        if grid.tile.wrap[axis]:
            edges.append(np.minimum(pitch, -(-(extent - place) // step)))
            first = first % extent
        flat = flat * extent + first
        edges.append(np.maximum(0, -(first // step)))
        edges.append(np.minimum(pitch, -(-(extent - first) // step)))
    return flat, combine_keys(np.uint64(3), edges).view(np.int64)
