"""The passes of one call, with a mask and without."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from maskdsl.simulator.cost import CompiledKernel, TileShape, tile_costs
from maskdsl.simulator.devices import Device
from maskdsl.simulator.engines import Engine
from maskdsl.simulator.estimate import Estimate, Machine, PassEstimate, Walk, estimate_pass, in_turn
from maskdsl.simulator.kernels import Compiled
from maskdsl.simulator.occupancy import resident_programs
from maskdsl.simulator.operations import PairWork, pair_work
from maskdsl.simulator.passes import FORWARD, Pass
from maskdsl.simulator.plans import PlanLike, lanes_of
from maskdsl.simulator.rows import Numbers, Rows, dense_rows, plan_rows
from maskdsl.simulator.traffic import Tensors


@dataclass(frozen=True)
class Few:
    """The last queries alone. only: by segment, the query tiles that hold them. lanes: of a
    program, or None for those of the tiles. together: query heads that share a program, as lanes.
    """

    only: Sequence[Numbers]
    lanes: int | None
    together: int


@dataclass(frozen=True)
class Run:
    """Everything but the passes and whether a mask is there.

    plans: by name of the pass. tensors: of the whole call. copies: of the plans' rows.
    """

    plans: Mapping[str, PlanLike]
    copies: int
    tensors: Tensors
    head_dim: int
    value_dim: int
    dtype: str
    device: Device
    engine: Engine
    pieces: tuple[int, ...]
    compiled: Compiled
    few: Few | None

    def sparse(self, steps: Sequence[Pass]) -> Estimate:
        """Each pass has a kernel for each segment of its rows."""
        return in_turn([x for step in steps for x in self._segments(step)])

    def dense(self, steps: Sequence[Pass]) -> Estimate:
        """All tiles full, of as many lanes as the largest of each side."""
        return in_turn([self._dense(step) for step in steps])

    def rows(self, step: Pass) -> tuple[Rows, ...]:
        """By segment. Raises BindError."""
        copies, group = self.copies, self.tensors.q_heads // self.tensors.kv_heads
        if self.few is None:
            return plan_rows(self.plans[step.name], copies, step.side, group)
        found = plan_rows(self.plans[step.name], copies, only=self.few.only)
        return tuple(Rows(r.full, r.partial, r.count // self.few.together) for r in found)

    def code_of(self, name: str) -> CompiledKernel | None:
        """What is known of the machine code of a pass, by its name."""
        if isinstance(self.compiled, Mapping):
            return self.compiled.get(name)
        return self.compiled if name == FORWARD.name else None

    def forward_rows(self, plan: PlanLike) -> tuple[Rows, ...]:
        """Of query tiles of the plan's own heads, each by itself, by segment."""
        return plan_rows(plan, 1, only=None if self.few is None else self.few.only)

    def lanes_of(self, plan: PlanLike) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Of the tiles of queries and of keys, by segment."""
        q_lanes, kv_lanes = lanes_of(plan.q_tile), lanes_of(plan.kv_tile)
        if self.few is not None and self.few.lanes is not None:
            q_lanes = tuple(self.few.lanes for _ in q_lanes)
        return q_lanes, kv_lanes

    def _segments(self, step: Pass) -> list[PassEstimate]:
        q_lanes, kv_lanes = self.lanes_of(self.plans[step.name])
        work = pair_work(self.plans[step.name])
        rows = self.rows(step)
        named = [f" {s}" for s in self._names(step)] if len(rows) > 1 else [""]
        found = []
        for home, (own, name) in enumerate(zip(rows, named, strict=True)):
            if step.side == "q":
                shapes = [self._shape(q_lanes[home], n) for n in kv_lanes]
                pairs = work[home]
            else:
                shapes = [self._shape(n, kv_lanes[home]) for n in q_lanes]
                pairs = tuple(line[home] for line in work)
            if own.number:
                tensors = self._own_tensors(step, home) if len(rows) > 1 else self.tensors
                tensors = self._packed(tensors)
                found.append(self._pass(step, step.name + name, own, tensors, shapes, pairs, False))
        return found

    def _dense(self, step: Pass) -> PassEstimate:
        q_lanes, kv_lanes = (max(n) for n in self.lanes_of(self.plans[step.name]))
        tensors = self._packed(self.tensors)
        if step.side == "q":
            rows = dense_rows(tensors.queries, q_lanes, tensors.keys, kv_lanes, tensors.q_heads)
        else:
            group = tensors.q_heads // tensors.kv_heads
            rows = dense_rows(tensors.keys, kv_lanes, tensors.queries, q_lanes, tensors.kv_heads)
            rows = Rows(rows.full * group, rows.partial, rows.count)
        work = max(
            (pair for line in pair_work(self.plans[step.name]) for pair in line),
            key=lambda pair: pair.score.total,
        )
        shapes = [self._shape(q_lanes, kv_lanes)]
        return self._pass(step, step.name, rows, tensors, shapes, [work], True)

    def _pass(
        self,
        step: Pass,
        name: str,
        rows: Rows,
        tensors: Tensors,
        shapes: Sequence[TileShape],
        pairs: Sequence[PairWork],
        dense: bool,
    ) -> PassEstimate:
        code = self.code_of(name)
        device, engine = self.device, self.engine
        costs = [
            tile_costs(shape, step, pair, device, engine, code)
            for shape, pair in zip(shapes, pairs, strict=True)
        ]
        largest = max(shapes, key=lambda s: s.pairs)
        residents = resident_programs(largest, device, code)
        machine = Machine(device, engine, engine.stall_on(device.name, dense), residents)
        walk = Walk(name, step, rows, tensors, shapes, costs)
        return estimate_pass(walk, machine, self.pieces)

    def _packed(self, tensors: Tensors) -> Tensors:
        """With the heads that share a program as queries of one head."""
        n = 1 if self.few is None else self.few.together
        return replace(tensors, queries=tensors.queries * n, q_heads=tensors.q_heads // n)

    def _shape(self, q_lanes: int, kv_lanes: int) -> TileShape:
        return TileShape(q_lanes, kv_lanes, self.head_dim, self.dtype, self.value_dim)

    def _program(self, step: Pass) -> Any:
        plan: Any = self.plans[step.name]
        return plan.program

    def _names(self, step: Pass) -> list[str]:
        program = self._program(step)
        return [s.name for s in (program.queries if step.side == "q" else program.keys)]

    def _own_tensors(self, step: Pass, home: int) -> Tensors:
        """With the rows' own tokens on their side."""
        program, whole = self._program(step), self.tensors
        if step.side == "k":
            keys = program.keys[home].tokens
            return Tensors(whole.queries, keys, whole.q_heads, whole.kv_heads)
        segment = program.queries[home]
        first = max(segment.offset, program.query_tokens - whole.queries)
        queries = segment.offset + segment.tokens - first
        return Tensors(queries, whole.keys, whole.q_heads, whole.kv_heads)
