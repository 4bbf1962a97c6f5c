"""Decoding: which tiles and lanes the emitted kernels have for a few queries."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from maskdsl.planner import Plan, Tile
from maskdsl.planner.build import make_plan
from maskdsl.simulator.cost import TileShape
from maskdsl.simulator.devices import Device
from maskdsl.simulator.occupancy import fits

WASTE = 1.25  # times the key tiles that a query needs, up to which a row also serves others
MOST_TOGETHER = 128


def heads_together(plan: Any, heads: int, kv_heads: int) -> int:
    """Query heads that a program computes: as many of those that share a head of keys as have one
    plan.
    """
    group, own = heads // kv_heads, plan.mask_shape[0]
    class_of = np.zeros(own, dtype=np.int64)
    for number, alike in enumerate(plan.head_classes):
        class_of[list(alike.heads)] = number
    if own != heads:
        class_of = np.repeat(class_of, heads // own)
    for share in range(min(group, MOST_TOGETHER), 1, -1):
        if group % share == 0:
            parts = class_of.reshape(-1, share)
            if (parts == parts[:, :1]).all():
                return share
    return 1


def decode_plan(
    whole: Plan, shape: TileShape, queries: int, together: int, limits: tuple[int, int], on: Device
) -> tuple[Plan, int]:
    """The plan with tiles of queries along the last axis, key tiles as in the whole one, and the
    lanes of a program. limits: the least and the most lanes. shape: of the whole plan's tiles.

    Tiles hold more queries than asked for while that costs few more key tiles.
    """
    members, asked = _power(together), _power(queries)
    least, most = limits
    while least > 16 and not fits(shape.with_queries(least), on):
        least //= 2
    lanes = max(min(max(members * asked, least), most), members)
    while lanes > max(16, members) and not fits(shape.with_queries(lanes), on):
        lanes //= 2
    longest = lanes // members
    plan = _planned(whole, longest)
    fewest = _per_row(plan if longest <= asked else _planned(whole, asked))
    long = max(g.tile.size[-1] for g in plan.q_grids)
    while _per_row(plan) > WASTE * fewest and long > asked:
        long //= 2
        plan = _planned(whole, long)
    long = max(g.tile.size[-1] for g in plan.q_grids)
    return plan, long * max(members, least // long)


def _planned(whole: Plan, longest: int) -> Plan:
    tiles = [
        Tile((*(1,) * (len(s.shape) - 1), min(longest, _power(s.shape[-1]))))
        for s in whole.program.queries
    ]
    keys = [g.tile for g in whole.kv_grids]
    return make_plan(whole.program, whole.source, _one(tiles), _one(keys))


def _one(tiles: Sequence[Tile]) -> Any:
    return tiles if len(tiles) > 1 else tiles[0]


def _per_row(plan: Plan) -> float:
    """Key tiles that a tile of queries visits, on average."""
    return plan.density * plan.kv_tiles


def _power(count: int) -> int:
    """The power of two that is at least as large."""
    return 1 << (count - 1).bit_length()
