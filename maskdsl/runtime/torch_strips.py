"""Rows of a group laid along strips of keys: each row's keys are a slice of its strip, so that the
products of all rows read one copy of the keys, or none where the strip lies in memory as it is.

For windows over one axis a strip is a stretch of the sequence; over several axes it is the column
of tiles along the slowest one, its keys ordered by that axis; for dilations a residue class.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from maskdsl.ir.definition import positions
from maskdsl.ir.program import Program
from maskdsl.runtime.groups import Group

MOST_KEYS = 2**13  # of a strip of several rows: its copy stays in the caches
MOST_QUERIES = 2**9  # of rows that see the same keys and become one


@dataclass(frozen=True)
class Tokens:
    """Places of tokens in a sequence: a slice where they follow each other evenly."""

    where: slice | torch.Tensor
    count: int

    @staticmethod
    def of(places: np.ndarray) -> Tokens:
        count = len(places)
        first = int(places[0])
        if count == 1 or bool((np.diff(places) == 1).all()):
            return Tokens(slice(first, first + count), count)
        return Tokens(torch.from_numpy(places), count)

    @property
    def places(self) -> torch.Tensor:
        """int64 (tokens,)"""
        if isinstance(self.where, slice):
            return torch.arange(self.where.start, self.where.stop, device="cpu")
        return self.where

    def on(self, device: torch.device) -> Tokens:
        if isinstance(self.where, slice) or self.where.device == device:
            return self
        return Tokens(self.where.to(device), self.count)

    def take(self, x: torch.Tensor) -> torch.Tensor:
        """Those of dimension -2; a view where they are a slice."""
        if isinstance(self.where, slice):
            return x[..., self.where, :]
        return x.index_select(-2, self.where)

    def put(self, x: torch.Tensor, value: torch.Tensor) -> None:
        """Write those of dimension -2."""
        if isinstance(self.where, slice):
            x[..., self.where, :] = value
        else:
            x.index_copy_(-2, self.where, value.to(x.dtype))

    def add(self, x: torch.Tensor, value: torch.Tensor) -> None:
        """Add to those of dimension -2, which all differ or are added in turn."""
        if isinstance(self.where, slice):
            x[..., self.where, :] += value
        else:
            x.index_add_(-2, self.where, value)


@dataclass(frozen=True)
class Strip:
    """Some rows of a group: row i sees the keys from i * step on.

    queries: of all rows, row after row. keys: those of the strip; a row has `length` of them.
    """

    queries: Tokens
    keys: Tokens
    rows: int
    step: int
    length: int

    @property
    def apart(self) -> int:
        """How many rows further on the keys are all others."""
        return -(-self.length // self.step)


def strips_of(group: Group) -> list[Strip]:
    """All rows of the group."""
    length = len(group.key_offsets)
    lead = group.keys - group.keys[:, :1]
    if (lead == lead[0]).all():
        chains = _chains(group.keys[:, 0], group.queries, group.tokens(0) - group.keys[0, 0])
    else:  # segments move apart from each other
        chains = [([i], length) for i in range(len(group.queries))]
    found = []
    for rows, step in chains:
        most = max(1, (MOST_KEYS - length) // step + 1)
        for i in range(0, len(rows), most):
            found.append(_strip(group, rows[i : i + most], step))
    return found


def cut(strip: Strip, most: int) -> list[Strip]:
    """The strip in pieces of at most so many rows each."""
    if strip.rows <= most:
        return [strip]
    queries, keys = (x.places.numpy() for x in (strip.queries, strip.keys))
    size, found = len(queries) // strip.rows, []
    for first in range(0, strip.rows, most):
        rows = min(most, strip.rows - first)
        own = keys[first * strip.step : (first + rows - 1) * strip.step + strip.length]
        own_queries = queries[first * size : (first + rows) * size]
        found.append(replace(strip, queries=Tokens.of(own_queries), keys=Tokens.of(own), rows=rows))
    return found


def _strip(group: Group, rows: list[int], step: int) -> Strip:
    queries = group.queries[rows][:, None] + group.query_offsets
    first = group.tokens(rows[0])
    length = len(first)
    later = [group.tokens(r)[length - step :] for r in rows[1:]]
    return Strip(
        Tokens.of(queries.reshape(-1)),
        Tokens.of(np.concatenate([first, *later])),
        len(rows),
        step,
        length,
    )


def _chains(
    starts: np.ndarray, queries: np.ndarray, offsets: np.ndarray
) -> list[tuple[list[int], int]]:
    """(rows, step) of chains: the keys of each row are those of the one before it in the chain,
    `step` of them left out in front and as many added behind.

    starts: int64 (rows,), what to add to the rising `offsets`.
    """
    order = np.lexsort((queries, starts))
    distances = np.unique(starts - starts.min())[1:]
    length = len(offsets)
    span = offsets[-1] - offsets[0]
    inside = np.isin(offsets[0] + distances, offsets) | (distances > span)
    for distance in distances[inside]:
        step = int(np.searchsorted(offsets, offsets[0] + distance))
        if not (offsets[step:] == offsets[: length - step] + distance).all():
            continue
        turns, place = np.divmod(starts[order] - starts.min(), distance)
        # of rows that see the same keys each is in a chain of its own
        rank = np.arange(len(order)) - np.searchsorted(starts[order], starts[order])
        by_chain = np.lexsort((turns, place, rank))
        keys = np.stack([rank, place])[:, by_chain]
        turns = turns[by_chain]
        broken = (np.diff(keys, axis=1) != 0).any(0) | (np.diff(turns) != 1)
        pieces = np.split(order[by_chain], np.flatnonzero(broken) + 1)
        return [(piece.tolist(), step) for piece in pieces]
    return [([int(i)], length) for i in order]


def together(group: Group) -> Group:
    """The group with rows that see the same keys, all of them, made one row of more queries."""
    rows = len(group.queries)
    _, of, counts = np.unique(group.keys, axis=0, return_inverse=True, return_counts=True)
    if group.partial or (counts != counts[0]).any():
        return group
    most = max(1, MOST_QUERIES // len(group.query_offsets))
    count = max(n for n in range(1, min(most, counts[0]) + 1) if counts[0] % n == 0)
    order = np.lexsort((group.queries, of.reshape(rows)))
    queries = group.queries[order].reshape(-1, count)
    shifts = queries - queries[:, :1]
    if count == 1 or (shifts != shifts[0]).any():
        return group
    return replace(
        group,
        queries=queries[:, 0],
        query_offsets=(shifts[0][:, None] + group.query_offsets).reshape(-1),
        keys=group.keys[order[::count]],
        lanes=np.tile(group.lanes, count),
    )


def even(group: Group, strip: Strip, program: Program) -> bool:
    """Whether all rows of a strip are the first one moved, on each axis by as much for queries as
    for keys.
    """
    queries = strip.queries.places.numpy().reshape(strip.rows, -1)
    places = np.arange(strip.rows)[:, None] * strip.step + np.arange(strip.length)
    keys = strip.keys.places.numpy()[places]
    segment = program.queries[group.query_segment]
    q = positions(segment, "q", queries - segment.offset)
    for at, number in enumerate(group.segments):
        segment = program.keys[number]
        k = positions(segment, "k", keys[:, group.key_segment == at] - segment.offset)
        for (_, name), x in k.items():
            moved = [x - x[:1]] + ([q["q", name] - q["q", name][:1]] if ("q", name) in q else [])
            if any((m != moved[0][:, :1]).any() for m in moved):
                return False
    return True
