"""Whether a pattern itself leaves out the lanes of edge tiles that hold no token."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from maskdsl.ir.bounds import lanes, truth_on
from maskdsl.ir.integers import make
from maskdsl.ir.nodes import Node, postorder
from maskdsl.ir.rewrite import substitute
from maskdsl.planner import Grid
from maskdsl.planner.proofs import INT32

_EXACT = (
    "const", "coord", "linear", "mul", "min", "max", "abs", "le", "lt", "eq", "same", "and", "or",
    "not", "select",
)  # fmt: skip


def outside_is_left_out(
    keep: Node, side: str, names: tuple[str, ...], grid: Grid, own: Mapping[tuple[str, str], int]
) -> bool:
    """Whether `keep` is certainly false wherever a coordinate of `side` lies outside its extent, as
    far as tiles reach. own: extents of the other side's axes.

    Answers False where a kernel's arithmetic on such coordinates may differ from that on ints
    without end: past 32 bits, and in divisions, which are written for what lies inside. Tables and
    inputs are not looked at: outside their bounds they say nothing.
    """
    if any(n.op not in _EXACT and _reads(n, side) for n in postorder(keep)):
        return False
    if any(n.op in ("load", "batch", "head", "symbol") for n in postorder(keep)):
        return False
    reach = []
    for extent, start, blocks, span, size, step in zip(
        grid.extents, grid.starts, grid.blocks, grid.tile.span, grid.tile.size, grid.tile.step,
        strict=True,
    ):  # fmt: skip
        last = start + (blocks - 1) * span + step * size - 1
        reach.append((start, max(last, extent - 1)))
    if grid.tile.pitch != grid.tile.size or any(grid.tile.wrap):
        return False
    for axis, (extent, (low, high)) in enumerate(zip(grid.extents, reach, strict=True)):
        for first, end in ((low, 0), (extent, high + 1)):
            if first >= end:
                continue
            ranges = {(side, n): r for n, r in zip(names, reach, strict=True)}
            ranges[side, names[axis]] = (first, end - 1)
            ranges |= {key: (0, size - 1) for key, size in own.items()}
            if _possible(keep, ranges):
                return False
    return True


def _reads(root: Node, side: str) -> bool:
    return any(n.op == "coord" and n.value[0] == side for n in postorder(root))


def _possible(keep: Node, ranges: Mapping[tuple[str, str], tuple[int, int]]) -> bool:
    """Whether `keep` may hold anywhere with coordinates in these ranges, extents or not."""
    coordinates = {
        n: make("coord", (), *ranges[n.value], n.value) for n in postorder(keep) if n.op == "coord"
    }
    there = substitute(keep, coordinates)
    values = [substitute(n, coordinates) for n in postorder(keep) if n.type == "int"]
    if any(max(abs(x.low), abs(x.high)) >= INT32 for x in values):
        return True
    leaves = {
        key: lanes(np.array([low]), {key: (1, np.array([high - low + 1]))}, 1)
        for key, (low, high) in ranges.items()
    }
    return bool(truth_on(there, leaves, 1)[1][0])
