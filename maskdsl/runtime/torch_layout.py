"""The tiles that suit the torch backend, which computes whole rows of keys but for those that no
query of the row keeps: small key tiles tell which, and partial tiles cost as much as full ones.
"""

from __future__ import annotations

from maskdsl.errors import PlanError
from maskdsl.pattern import Mask
from maskdsl.planner import Candidate, Plan

QUERY_LANES = (64, 128, 256, 512)
KEY_LANES = 16
# What a product costs besides its pairs of queries and keys, in pairs.
A_KEY = 80  # of a row
A_ROW = 2**13


def torch_plan(mask: Mask) -> Plan:
    """The cheapest plan of those with `QUERY_LANES` queries to a tile. Raises PlanError where the
    pattern is too irregular.
    """
    found = []
    for lanes in QUERY_LANES:
        try:
            found.append(mask.plan(lanes=(lanes, KEY_LANES), cost=visited))
        except PlanError:
            break
    return min(found, key=cost) if found else mask.plan()


def visited(candidate: Candidate) -> float:
    """Pairs of lanes that one head visits."""
    return (candidate.full + candidate.partial) * candidate.area


def cost(plan: Plan) -> float:
    """Of all heads, in pairs of a query and a key."""
    total = 0.0
    for c in plan.head_classes:
        rows = sum(g.count for g in plan.q_grids)
        own = float(A_ROW * rows)
        for line, q in zip(c.trees, plan.q_grids, strict=True):
            for tree, k in zip(line, plan.kv_grids, strict=True):
                keys = (tree.full + tree.partial) * k.tile.lanes
                own += keys * (q.tile.lanes + A_KEY)
        total += own * len(c.heads)
    return total
