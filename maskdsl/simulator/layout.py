"""The cost by which the layout search ranks tiles: this model's."""

from __future__ import annotations

from maskdsl.planner import Candidate, Cost
from maskdsl.simulator.cost import TileShape, tile_costs
from maskdsl.simulator.devices import Device
from maskdsl.simulator.engines import Engine, load_engine
from maskdsl.simulator.estimate import Machine
from maskdsl.simulator.occupancy import resident_programs
from maskdsl.simulator.operations import UNKNOWN, PairWork
from maskdsl.simulator.passes import FORWARD, Pass


def layout_cost(
    device: Device,
    head_dim: int,
    dtype: str,
    step: Pass = FORWARD,
    pair: PairWork = UNKNOWN,
    engine: str | Engine = "maskdsl",
) -> Cost:
    """What the layout search ranks candidates by: seconds of one head on one multiprocessor.

    pair: the operations of the mask at hand, by default those of one range.
    """
    kernels = load_engine(engine)
    known: dict[tuple[int, int], tuple[float, float]] = {}

    def seconds(lanes: tuple[int, int]) -> tuple[float, float]:
        shape = TileShape(*lanes, head_dim, dtype)
        costs = tile_costs(shape, step, pair, device, kernels)
        residents = resident_programs(shape, device)
        machine = Machine(device, kernels, kernels.stall_on(device.name), residents)
        full, partial = (
            machine.seconds(cost, costs.warps, residents) / residents
            for cost in (costs.full, costs.partial)
        )
        return full, partial

    def cost(candidate: Candidate) -> float:
        lanes = candidate.q_tile.lanes, candidate.kv_tile.lanes
        if lanes not in known:
            known[lanes] = seconds(lanes)
        full, partial = known[lanes]
        if kernels.masks_all and candidate.partial:
            return (candidate.full + candidate.partial) * partial
        return candidate.full * full + candidate.partial * partial

    return cost
