"""What a call leaves open: plan, heads, the tiles of a few queries, pieces of rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from maskdsl.errors import BindError
from maskdsl.ir.definition import dense
from maskdsl.pattern import Mask
from maskdsl.planner import Plan
from maskdsl.planner.layout import kernel_lanes
from maskdsl.simulator.arguments import count
from maskdsl.simulator.cost import TileShape
from maskdsl.simulator.decoding import decode_plan, heads_together
from maskdsl.simulator.devices import Device
from maskdsl.simulator.engines import Engine
from maskdsl.simulator.estimate import MOST_SPLITS
from maskdsl.simulator.inputs import with_inputs
from maskdsl.simulator.layout import layout_cost
from maskdsl.simulator.operations import program_work
from maskdsl.simulator.passes import Pass
from maskdsl.simulator.plans import lanes_of
from maskdsl.simulator.rows import last_tiles
from maskdsl.simulator.run import Few

LITTLE = 2**22  # pairs that are counted one by one, for a few queries


def planned(
    mask: Mask,
    dims: tuple[int, int],
    dtype: str,
    device: Device,
    engine: Engine,
    step: Pass,
    lanes: tuple[int, int] | int | None,
    inputs: Mapping[str, Any] | None,
) -> Plan:
    """The plan of a mask: with the lanes asked for, the engine's, or those of kernels of these
    features of a head. Raises BindError and PlanError.
    """
    known = mask if inputs is None else with_inputs(mask, inputs)
    if lanes is None:
        lanes = engine.lanes.get(device.name) or kernel_lanes(max(dims), device.target)
    work = program_work(known.closed())
    return known.plan(lanes=lanes, cost=layout_cost(device, max(dims), dtype, step, work, engine))


def kv_heads_of(plan: Any, heads: int, given: int | None) -> int:
    """Of keys and values: those asked about, or in the mask's own ratio. Raises BindError."""
    if given is None:
        program = getattr(plan, "program", None)
        return heads if program is None else heads * program.kv_heads // program.heads
    if heads % count("kv_heads", given):
        raise BindError(f"heads ({heads}) must be a multiple of kv_heads ({given})")
    return given


def few_queries(
    plan: Any,
    queries: int,
    heads: int,
    kv_heads: int,
    dims: tuple[int, int],
    dtype: str,
    device: Device,
    engine: Engine,
) -> tuple[Any, Few]:
    """The plan for the last queries alone, and which of its rows they are. Raises BindError."""
    limits = engine.lanes_packed(device.target, dtype)
    last_tiles(plan, queries)  # refuses what cannot be asked before anything is planned
    if limits is None or not isinstance(plan, Plan):
        return plan, Few(last_tiles(plan, queries), None, 1)
    together = heads_together(plan, heads, kv_heads)
    sizes = max(lanes_of(plan.q_tile)), max(lanes_of(plan.kv_tile))
    shape = TileShape(*sizes, dims[0], dtype, dims[1])
    found, lanes = decode_plan(plan, shape, queries, together, limits, device)
    return found, Few(last_tiles(found, queries), lanes, together)


def pairs_of(plan: Any, queries: int | None) -> int | None:
    """Allowed pairs over the plan's heads, of the last queries; None where that is not known."""
    if queries in (None, plan.mask_shape[1]) or plan.pairs is None:
        pairs: int | None = plan.pairs
        return pairs
    assert queries is not None
    keys, program = plan.mask_shape[2], getattr(plan, "program", None)
    if program is None or queries * keys > LITTLE:
        return None
    return sum(
        int(dense(program, c.heads[0], 0, keys - queries, queries, {}).sum()) * len(c.heads)
        for c in plan.head_classes
    )


def pieces_of(splits: int | None, queries: int | None, engine: Engine) -> tuple[int, ...]:
    """Numbers of pieces to try for each row. Raises BindError."""
    if splits is not None:
        return (count("splits", splits, MOST_SPLITS),)
    if queries is None or not engine.splits_keys:
        return (1,)
    return tuple(1 << i for i in range(MOST_SPLITS.bit_length()))
