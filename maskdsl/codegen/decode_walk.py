"""A walk whose rows are found by the number of their tile, for calls that start anywhere."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from maskdsl.codegen.visits import visits_in
from maskdsl.codegen.walk import Walk, runs_of
from maskdsl.planner import Plan


@dataclass(frozen=True)
class Ordered(Walk):
    """A walk whose rows lie as the tiles do, so that a tile's number gives its row."""

    @cached_property
    def order(self) -> str:
        return "given"


def ordered_walk(plan: Plan, segment: int) -> Ordered:
    """The rows of query tiles of all head classes, one class after the other."""
    program, grids = plan.program, plan.kv_grids
    tiles, classes = plan.q_grids[segment].count, len(plan.head_classes)
    visits = []
    for away, grid in enumerate(grids):
        parts = []
        for number, alike in enumerate(plan.head_classes):
            row, *run = runs_of(alike, "q", segment, away, (plan.q_grids[segment], grid))
            parts.append((row + number * tiles, *run))
        row, first, count, full = (np.concatenate(x) for x in zip(*parts, strict=True))
        order = np.lexsort((first, row))
        row, first, count, full = row[order], first[order], count[order], full[order]
        visits.append(
            {
                kind: visits_in(grid, row[own], first[own], count[own], tiles * classes)
                for kind, own in (("full", full), ("partial", ~full))
            }
        )
    head_class = np.zeros(program.heads, dtype=np.int32)
    for number, alike in enumerate(plan.head_classes):
        head_class[list(alike.heads)] = number
    several = program.segmented
    return Ordered(
        home="q",
        segment=segment,
        prefix=f"{program.queries[segment].name}_" if several else "",
        rows=np.tile(np.arange(tiles, dtype=np.int32), classes),
        head_class=head_class,
        classes=classes,
        names=tuple(f"{s.name}_" if several else "" for s in program.keys),
        visits=tuple(visits),
        even=True,
    )
