"""`simulate`: the time of attention under a mask, before anything runs."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from maskdsl.errors import BindError
from maskdsl.ir.definition import dense
from maskdsl.pattern import Mask
from maskdsl.planner import Plan
from maskdsl.planner.layout import kernel_lanes
from maskdsl.simulator.arguments import count
from maskdsl.simulator.bounds import bounds_of
from maskdsl.simulator.cost import TileShape
from maskdsl.simulator.devices import Device, dtype_name, load_device
from maskdsl.simulator.engines import Engine, load_engine
from maskdsl.simulator.estimate import MOST_SPLITS
from maskdsl.simulator.inputs import with_inputs
from maskdsl.simulator.layout import layout_cost
from maskdsl.simulator.operations import program_work
from maskdsl.simulator.passes import find_direction
from maskdsl.simulator.plans import PlanLike, lanes_of, last_tiles, plan_rows
from maskdsl.simulator.prediction import Prediction
from maskdsl.simulator.run import Compiled, Run
from maskdsl.simulator.traffic import Tensors

LITTLE = 2**22  # pairs that are counted one by one, for a few queries


def simulate(
    mask_or_plan: Mask | Plan | PlanLike,
    head_dim: int = 128,
    batch: int = 1,
    heads: int | None = None,
    dtype: object = "bf16",
    device: str | os.PathLike[str] | Device = "h200",
    direction: str = "forward",
    *,
    queries: int | None = None,
    kv_heads: int | None = None,
    engine: str | Engine = "maskdsl",
    splits: int | None = None,
    lanes: tuple[int, int] | int | None = None,
    inputs: Mapping[str, Any] | None = None,
    compiled: Compiled = None,
) -> Prediction:
    """Predict the time of attention under a mask, and of dense attention with tiles of as many
    lanes.

    A mask is planned with the tiles that cost least by the same model (`layout_cost`). `heads`
    defaults to the mask's; a mask of one head may be asked about with any number, which all follow
    it. `dtype` is `"bf16"`, `"fp16"`, `"tf32"`, `"fp32"` or a torch dtype; `device` a name, a
    `.toml` file or a `Device`; `direction` is `"forward"`, or `"backward"` for the backward pass
    alone. The model is described in `docs/simulator.md`.

    queries: only the last so many (decoding). kv_heads: of keys and values, the mask's by default.
    engine: whose kernels, `"maskdsl"` or `"natten"`. splits: pieces into which the keys of a row
    are cut; by default the fastest number where `queries` is given and 1 elsewhere. lanes: of the
    query and key tiles that a mask is planned with. inputs: arrays for inputs that decide which
    pairs are allowed, by name. compiled: what the machine code says, of the forward kernel or by
    name of the pass (`"forward"`, `"dq"`, `"dkv"`).

    Raises `BindError` for arguments that do not fit.
    """
    head_dim = count("head_dim", head_dim)
    batch = count("batch", batch)
    chosen, kernels = load_device(device), load_engine(engine)
    steps = find_direction(direction)
    element = dtype_name(dtype)
    if queries is not None:
        queries = count("queries", queries)
        if direction != "forward":
            raise BindError("queries= is for decoding, which has a forward pass alone")
    if isinstance(mask_or_plan, Mask):
        mask = mask_or_plan if inputs is None else with_inputs(mask_or_plan, inputs)
        asked_lanes = _lanes(lanes, head_dim, queries, chosen, kernels)
        work = program_work(mask.closed())
        cost = layout_cost(chosen, head_dim, element, steps[-1], work, kernels)
        plan: PlanLike = mask.plan(lanes=asked_lanes, cost=cost)
    elif not hasattr(mask_or_plan, "row_counts"):
        raise BindError(f"simulate takes a mask or a plan, not {type(mask_or_plan).__name__}")
    elif inputs is not None or lanes is not None:
        raise BindError("inputs and lanes can be given with a mask, not with a plan, which is made")
    else:
        mask, plan = None, mask_or_plan
    own, total, keys = plan.mask_shape
    asked = own if heads is None else count("heads", heads)
    if own not in (1, asked):
        raise BindError(f"heads={asked}, but the mask has {own}; only a mask of 1 head is repeated")
    groups = _kv_heads(plan, asked, kv_heads)
    copies = asked // own
    shape = TileShape(lanes_of(plan.q_tile), lanes_of(plan.kv_tile), head_dim, element)
    rows = plan_rows(plan, 1, only=None if queries is None else last_tiles(plan, queries))
    pairs, asked_queries = plan.pairs, total
    if queries is not None:
        asked_queries, pairs = queries, _few_pairs(mask, plan, queries)
    packed = 1
    if queries is not None and kernels.packs_groups and len(plan.head_classes) == 1:
        packed = asked // groups if queries * (asked // groups) <= shape.q_lanes else 1
    run = Run(
        plan,
        copies * batch,
        packed,
        Tensors(asked_queries * packed, keys, asked * batch // packed, groups * batch),
        shape,
        chosen,
        kernels,
        _pieces(splits, queries, kernels),
        compiled,
        only_rows=None if queries is None else rows,
    )
    visited, full = rows.visited, int((rows.full * rows.count).sum())
    return Prediction(
        device=chosen.name,
        engine=kernels.name,
        dtype=element,
        direction=direction,
        batch=batch,
        heads=asked,
        kv_heads=groups,
        queries=asked_queries,
        keys=keys,
        head_dim=head_dim,
        q_lanes=shape.q_lanes,
        kv_lanes=shape.kv_lanes,
        tiles={
            "empty": rows.number * plan.kv_tiles - visited,
            "full": full,
            "partial": visited - full,
            "total": rows.number * plan.kv_tiles,
        },
        bounds=bounds_of(plan, rows, pairs, own * asked_queries * keys),
        sparse=run.estimate(steps, dense=False),
        dense=run.estimate(steps, dense=True),
    )


def _lanes(
    given: tuple[int, int] | int | None,
    head_dim: int,
    queries: int | None,
    device: Device,
    engine: Engine,
) -> tuple[int, int] | int:
    """Those asked for, the engine's, or those of kernels of this head_dim; of fewer query lanes for
    a few queries.
    """
    if given is not None:
        return given
    q, kv = engine.lanes.get(device.name) or kernel_lanes(head_dim)
    if queries is not None:
        q = min(q, max(16, 1 << (queries - 1).bit_length()))
    return q, kv


def _kv_heads(plan: Any, heads: int, given: int | None) -> int:
    """Of keys and values: those asked about, or in the mask's own ratio."""
    if given is None:
        program = getattr(plan, "program", None)
        return heads if program is None else heads * program.kv_heads // program.heads
    if heads % count("kv_heads", given):
        raise BindError(f"heads ({heads}) must be a multiple of kv_heads ({given})")
    return given


def _few_pairs(mask: Mask | None, plan: PlanLike, queries: int) -> int | None:
    """Allowed pairs of the last queries over the mask's heads, or None where that is not known."""
    keys = plan.mask_shape[2]
    if mask is None or plan.pairs is None or queries * keys > LITTLE:
        return None
    program = mask.closed()
    return sum(
        int(dense(program, c.heads[0], 0, keys - queries, queries, {}).sum()) * len(c.heads)
        for c in plan.head_classes
    )


def _pieces(splits: int | None, queries: int | None, engine: Engine) -> tuple[int, ...]:
    """Numbers of pieces to try for each row."""
    if splits is not None:
        return (count("splits", splits),)
    if queries is None or not engine.splits_keys:
        return (1,)
    return tuple(1 << i for i in range(MOST_SPLITS.bit_length()))
