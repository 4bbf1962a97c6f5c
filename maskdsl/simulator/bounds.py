"""Upper bounds on the speedup over dense attention, from counts alone.

They are those of Generalized Neighborhood Attention (Hassani et al., 2025,
https://arxiv.org/abs/2504.16922), from loosest to tightest, and hold for any device on which a
tile costs what a dense kernel's tile costs.
"""

from __future__ import annotations

import math

from maskdsl.simulator.plans import PlanLike, Rows, plan_rows


def speedup_bounds(plan: PlanLike) -> dict[str, float]:
    """`{"flops": ..., "tiles": ..., "rows": ...}`, each a ratio of at least 1.

    * `flops`: all pairs over allowed pairs. NaN where an input decides which pairs are allowed.
    * `tiles`: all tiles over visited tiles, so the mean row.
    * `rows`: key tiles in a row over the most that any query tile of any head visits.

    All are infinite for a mask that allows nothing.
    """
    heads, queries, keys = plan.mask_shape
    return bounds_of(plan_rows(plan, 1), plan.kv_tiles, plan.pairs, heads * queries * keys)


def bounds_of(rows: Rows, kv_tiles: int, pairs: int | None, all_pairs: int) -> dict[str, float]:
    """The bounds of some rows of query tiles; `pairs` of `all_pairs` are allowed."""
    return {
        "flops": math.nan if pairs is None else _ratio(all_pairs, pairs),
        "tiles": _ratio(rows.number * kv_tiles, rows.visited),
        "rows": _ratio(kv_tiles, rows.heaviest),
    }


def _ratio(dense: int, sparse: int) -> float:
    return dense / sparse if sparse else math.inf
