"""Upper bounds on the speedup over dense attention, from counts alone.

They are those of Generalized Neighborhood Attention (Hassani et al., 2025,
https://arxiv.org/abs/2504.16922), from loosest to tightest, and hold for any device on which a
tile costs what a dense kernel's tile costs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from maskdsl.simulator.plans import PlanLike, TileLike
from maskdsl.simulator.rows import Rows, plan_rows


def speedup_bounds(plan: PlanLike) -> dict[str, float]:
    """`{"flops": ..., "tiles": ..., "rows": ...}`, ratios of dense to sparse work.

    * `flops`: all pairs over allowed pairs. NaN where an input decides which pairs are allowed.
    * `tiles`: all tiles over visited tiles, so the mean row.
    * `rows`: key tiles in a row over the most that any query tile of any head visits.

    The two count whole tiles: where an axis is no multiple of its tile, dense attention has that
    loss too, and they may pass `flops`.

    All are infinite for a mask that allows nothing.
    """
    heads, queries, keys = plan.mask_shape
    return bounds_of(plan, plan_rows(plan, 1), plan.pairs, heads * queries * keys)


def bounds_of(
    plan: PlanLike, rows: Sequence[Rows], pairs: int | None, all_pairs: int
) -> dict[str, float]:
    """The bounds of some rows of query tiles of a plan, by segment; `pairs` of `all_pairs` are
    allowed.
    """
    _, queries, keys = plan.mask_shape
    filled = _tiles(plan.q_tile, plan.q_tiles, queries) / plan.q_tiles
    across = filled * _tiles(plan.kv_tile, plan.kv_tiles, keys)
    return {
        "flops": math.nan if pairs is None else _ratio(all_pairs, pairs),
        "tiles": _ratio(sum(r.number for r in rows) * across, sum(r.visited for r in rows)),
        "rows": _ratio(across, max(r.heaviest for r in rows)),
    }


def _tiles(tile: TileLike | Sequence[TileLike], own: int, tokens: int) -> int:
    """How many tiles hold all tokens: a plan's own number where its tiles are plain boxes; where
    they lie apart, overlap or wrap and leave lanes empty, as many as if all lanes held tokens.
    """
    tiles = tile if isinstance(tile, Sequence) else (tile,)
    if all(getattr(t, "pitch", None) == getattr(t, "size", None) and _close(t) for t in tiles):
        return own
    return min(own, -(-tokens // max(t.lanes for t in tiles)))


def _close(tile: TileLike) -> bool:
    """Whether the lanes of a tile are neighbours, and the grid starts where the axes do."""
    return max(getattr(tile, "step", (1,))) == 1 and not any(getattr(tile, "origin", (0,)))


def _ratio(dense: float, sparse: int) -> float:
    return dense / sparse if sparse else math.inf
