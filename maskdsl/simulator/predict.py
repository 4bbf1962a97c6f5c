"""`simulate`: the time of attention under a mask, before anything runs."""

from __future__ import annotations

import operator
import os
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from maskdsl.errors import BindError
from maskdsl.planner import Candidate, Cost
from maskdsl.planner.layout import kernel_lanes
from maskdsl.simulator.bounds import speedup_bounds
from maskdsl.simulator.cost import (
    DIRECTIONS,
    Busy,
    Direction,
    TileShape,
    find_direction,
    unit_time,
)
from maskdsl.simulator.devices import Device, dtype_name, load_device
from maskdsl.simulator.plans import PlanLike, Rows, dense_rows, lanes_of, plan_rows
from maskdsl.simulator.report import prediction_table
from maskdsl.simulator.schedule import makespan
from maskdsl.simulator.traffic import memory_traffic


class MaskLike(Protocol):
    def plan(self, *, lanes: tuple[int, int], cost: Cost) -> PlanLike: ...


@dataclass(frozen=True)
class Estimate:
    """Where the time of one run goes, in seconds.

    `launch` is spent before the work; `compute` (the schedule on the multiprocessors) and
    `memory` (the traffic at full bandwidth) overlap. `shares` divides the multiprocessors' time
    until the last one ends, as fractions that sum to 1: products, exponentials (of which only
    the longer counts), masking, row overhead and idling.
    """

    launch: float
    compute: float
    memory: float
    bottleneck: str
    shares: dict[str, float]

    @property
    def time(self) -> float:
        return self.launch + max(self.compute, self.memory)


@dataclass(frozen=True)
class Prediction:
    """What the simulator says of a mask, a shape and a device.

    `sparse` is the estimate under the plan, `dense` the one where every tile is visited and none is
    masked. `bounds` are those of `speedup_bounds`. `heads` and `batch` are those asked about;
    `tiles` counts the plan's own.
    """

    device: str
    dtype: str
    direction: str
    batch: int
    heads: int
    queries: int
    keys: int
    head_dim: int
    tiles: dict[str, int]
    bounds: dict[str, float]
    sparse: Estimate
    dense: Estimate

    @property
    def time(self) -> float:
        """Seconds under the mask."""
        return self.sparse.time

    @property
    def dense_time(self) -> float:
        """Seconds for attention without a mask, under tiles of as many lanes."""
        return self.dense.time

    @property
    def speedup(self) -> float:
        """`dense_time` over `time`."""
        return self.dense_time / self.time

    @property
    def bottleneck(self) -> str:
        """What most of the time goes to, in a word or three."""
        return self.sparse.bottleneck

    def table(self) -> str:
        """A table for people, as plain text."""
        return prediction_table(self)

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, texts and dicts. Bounds of an empty mask are `float("inf")`."""
        return {
            "device": self.device,
            "dtype": self.dtype,
            "direction": self.direction,
            "batch": self.batch,
            "heads": self.heads,
            "queries": self.queries,
            "keys": self.keys,
            "head_dim": self.head_dim,
            "tiles": dict(self.tiles),
            "bounds": dict(self.bounds),
            "time": self.time,
            "dense_time": self.dense_time,
            "speedup": self.speedup,
            "bottleneck": self.bottleneck,
            "launch_time": self.sparse.launch,
            "compute_time": self.sparse.compute,
            "memory_time": self.sparse.memory,
            "shares": dict(self.sparse.shares),
        }


def simulate(
    mask_or_plan: MaskLike | PlanLike,
    head_dim: int = 128,
    batch: int = 1,
    heads: int | None = None,
    dtype: object = "bf16",
    device: str | os.PathLike[str] | Device = "h200",
    direction: str = "forward",
) -> Prediction:
    """Predict the time of attention under a mask, and of dense attention with tiles of as many
    lanes.

    A mask is planned with the tiles that cost least by the same model (`layout_cost`). `heads`
    defaults to the mask's; a mask of one head may be asked about with any number, which all follow
    it. `dtype` is `"bf16"`, `"fp16"`, `"tf32"`, `"fp32"` or a torch dtype; `device` a name, a
    `.toml` file or a `Device`; `direction` is `"forward"`, or `"backward"` for the backward pass
    alone. The model is described in `docs/simulator.md`.

    Raises `BindError` for arguments that do not fit.
    """
    head_dim = _count("head_dim", head_dim)
    batch = _count("batch", batch)
    chosen = load_device(device)
    steps = find_direction(direction)
    element = dtype_name(dtype)
    plan = _plan_of(mask_or_plan, head_dim, layout_cost(chosen, head_dim, element, steps))
    own, queries, keys = plan.mask_shape
    asked = own if heads is None else _count("heads", heads)
    if own not in (1, asked):
        raise BindError(f"heads={asked}, but the mask has {own}; only a mask of 1 head is repeated")
    copies = batch * (asked // own)
    shape = TileShape(lanes_of(plan.q_tile), lanes_of(plan.kv_tile), head_dim, element)
    counts = plan.tiles

    def estimate(rows: Rows) -> Estimate:
        bytes_moved = memory_traffic(plan, rows, shape, steps, chosen, asked * batch)
        return _estimate(rows, shape, steps, chosen, bytes_moved)

    return Prediction(
        device=chosen.name,
        dtype=element,
        direction=direction,
        batch=batch,
        heads=asked,
        queries=queries,
        keys=keys,
        head_dim=head_dim,
        tiles={
            "empty": int(counts.empty),
            "full": int(counts.full),
            "partial": int(counts.partial),
            "total": int(counts.total),
        },
        bounds=speedup_bounds(plan),
        sparse=estimate(plan_rows(plan, copies)),
        dense=estimate(dense_rows(plan, copies)),
    )


def layout_cost(
    device: Device, head_dim: int, dtype: str, direction: Direction = DIRECTIONS["forward"]
) -> Cost:
    """What the layout search ranks candidates by: seconds of one head on one multiprocessor."""

    def cost(candidate: Candidate) -> float:
        lanes = candidate.q_tile.lanes, candidate.kv_tile.lanes
        shape = TileShape(*lanes, head_dim, dtype)
        full, partial = (
            unit_time(shape.work(direction, partial=p), device, dtype).time for p in (False, True)
        )
        return candidate.full * full + candidate.partial * partial

    return cost


def _plan_of(mask_or_plan: Any, head_dim: int, cost: Cost) -> PlanLike:
    plan: PlanLike
    if hasattr(mask_or_plan, "row_counts"):
        plan = mask_or_plan
    elif hasattr(mask_or_plan, "plan"):
        plan = mask_or_plan.plan(lanes=kernel_lanes(head_dim), cost=cost)
    else:
        raise BindError(f"simulate takes a mask or a plan, not {type(mask_or_plan).__name__}")
    return plan


def _count(name: str, value: Any) -> int:
    try:
        number = -1 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = -1
    if number < 1:
        raise BindError(f"{name} must be a whole number of at least 1, not {value!r}")
    return number


def _estimate(
    rows: Rows, shape: TileShape, direction: Direction, device: Device, bytes_moved: float
) -> Estimate:
    full = unit_time(shape.work(direction, partial=False), device, shape.dtype)
    partial = unit_time(shape.work(direction, partial=True), device, shape.dtype)
    # A row moves its query-side tiles at one multiprocessor's share of the bandwidth, and fills and
    # drains its pipeline of loads and products once, which takes about as long as a full tile.
    share = device.memory_bandwidth / device.compute_units
    moving = shape.row_work(direction).bytes / share
    visited = rows.full + rows.partial
    overhead = moving + np.where(visited > 0, full.time, 0.0)
    durations = rows.full * full.time + rows.partial * partial.time + overhead
    compute = makespan(durations, rows.count, device.compute_units)
    launch = device.launch_overhead * direction.launches
    memory = bytes_moved / device.memory_bandwidth
    shares = _shares(rows, full, partial, overhead, compute * device.compute_units)
    limits = {"launch": launch, "memory": memory, "compute": compute}
    slowest = max(limits, key=lambda name: limits[name])
    if slowest == "compute":
        slowest = max(shares, key=lambda name: shares[name])
    if slowest == "idle":
        mean = float((durations * rows.count).sum() / rows.count.sum())
        few = rows.count.sum() < device.compute_units and durations.max() <= 2 * mean
        slowest = "too few rows" if few else "one long row"
    return Estimate(launch, compute, memory, slowest, shares)


def _shares(
    rows: Rows, full: Busy, partial: Busy, overhead: NDArray[np.float64], machine_time: float
) -> dict[str, float]:
    """What the multiprocessors' time goes to; see `Estimate`."""
    tiles = rows.visited
    products_bind = full.products >= full.exponentials
    longer = tiles * max(full.products, full.exponentials)
    masking = float((rows.partial * rows.count).sum()) * partial.masking
    row_overhead = float((overhead * rows.count).sum())
    seconds = {
        "matrix products": longer if products_bind else 0.0,
        "exponentials": 0.0 if products_bind else longer,
        "mask arithmetic": masking,
        "row overhead": row_overhead,
    }
    seconds["idle"] = max(0.0, machine_time - sum(seconds.values()))
    return {name: value / machine_time for name, value in seconds.items()}
