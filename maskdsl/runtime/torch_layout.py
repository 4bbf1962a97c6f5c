"""The tiles that suit the torch backend, which computes whole rows of keys but for those that no
query of the row keeps: small key tiles tell which, and partial tiles cost as much as full ones.
"""

from __future__ import annotations

from dataclasses import dataclass

from maskdsl.errors import PlanError
from maskdsl.pattern import Mask
from maskdsl.planner import Candidate, Plan

KEY_LANES = 16


@dataclass(frozen=True)
class Costs:
    """queries: of a tile, what is tried. a_key, a_row: what the keys of a row and the row itself
    cost besides their pairs of queries and keys, in pairs.
    """

    queries: tuple[int, ...]
    a_key: float
    a_row: float


COMPILED = Costs((32, 64), 4, 0)
PLAIN = Costs((64, 128, 256, 512), 80, 2**13)


def torch_plan(mask: Mask, costs: Costs) -> Plan:
    """The cheapest of the plans that are tried. Raises PlanError where the pattern is too
    irregular.
    """
    found = []
    for lanes in costs.queries:
        try:
            found.append(mask.plan(lanes=(lanes, KEY_LANES), cost=visited))
        except PlanError:
            break
    return min(found, key=lambda plan: cost(plan, costs)) if found else mask.plan()


def visited(candidate: Candidate) -> float:
    """Pairs of lanes that one head visits."""
    return (candidate.full + candidate.partial) * candidate.area


def cost(plan: Plan, costs: Costs) -> float:
    """Of all heads, in pairs of a query and a key."""
    total = 0.0
    for c in plan.head_classes:
        rows = sum(g.count for g in plan.q_grids)
        own = costs.a_row * rows
        for line, q in zip(c.trees, plan.q_grids, strict=True):
            for tree, k in zip(line, plan.kv_grids, strict=True):
                keys = (tree.full + tree.partial) * k.tile.lanes
                own += keys * (q.tile.lanes + costs.a_key)
        total += own * len(c.heads)
    return total
