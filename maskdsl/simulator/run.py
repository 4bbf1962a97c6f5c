"""The passes of one call, with a mask and without."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from maskdsl.simulator.cost import CompiledKernel, TileShape, tile_costs
from maskdsl.simulator.devices import Device
from maskdsl.simulator.engines import Engine
from maskdsl.simulator.estimate import Estimate, Machine, estimate_pass
from maskdsl.simulator.occupancy import resident_programs
from maskdsl.simulator.operations import pair_work
from maskdsl.simulator.passes import FORWARD, Pass
from maskdsl.simulator.plans import PlanLike, Rows, dense_rows, plan_rows
from maskdsl.simulator.traffic import Tensors

Compiled = CompiledKernel | Mapping[str, CompiledKernel] | None


@dataclass(frozen=True)
class Run:
    """Everything but the passes and whether a mask is there. packed: query heads that share a tile,
    and so a row.
    """

    plan: PlanLike
    copies: int
    packed: int
    tensors: Tensors
    shape: TileShape
    device: Device
    engine: Engine
    pieces: tuple[int, ...]
    compiled: Compiled
    only_rows: Rows | None

    def estimate(self, steps: tuple[Pass, ...], dense: bool) -> Estimate:
        pair = pair_work(self.plan)
        passes = []
        for step in steps:
            code = self.compiled
            if isinstance(code, Mapping):
                code = code.get(step.name)
            elif step is not FORWARD:
                code = None
            costs = tile_costs(self.shape, step, pair, self.device, self.engine, code)
            machine = Machine(
                self.device,
                self.engine,
                self.engine.stall_on(self.device.name, dense),
                resident_programs(self.shape, self.device, code),
            )
            rows = self._dense_rows(step) if dense else self._sparse_rows(step)
            passes.append(
                estimate_pass(rows, self.tensors, self.shape, step, costs, machine, self.pieces)
            )
        return Estimate(tuple(passes))

    def _sparse_rows(self, step: Pass) -> Rows:
        if self.only_rows is not None and step.side == "q":
            found = self.only_rows
            return Rows(found.full, found.partial, found.count * self.copies // self.packed)
        return plan_rows(self.plan, self.copies, step.side)

    def _dense_rows(self, step: Pass) -> Rows:
        walked = "k" if step.side == "q" else "q"
        sides = {"q": self.tensors.queries, "k": self.tensors.keys}
        return dense_rows(
            sides[step.side],
            self.shape.lanes(step.side),
            sides[walked],
            self.shape.lanes(walked),
            self.tensors.q_heads,
        )
