"""What a mask and the choices of `compile` come to before anything runs: plans, emitted modules and
their machine code.
"""

from __future__ import annotations

import math
from functools import cached_property
from importlib.util import find_spec

from maskdsl.codegen import Emission, GradientEmission, OverlapEmission, Spec
from maskdsl.codegen.emit import plan_lanes
from maskdsl.errors import BindError, CompileError
from maskdsl.pattern import Mask
from maskdsl.planner import Plan, Tile
from maskdsl.planner.layout import PARTIAL_COST, Cost, work
from maskdsl.runtime import native_attention
from maskdsl.runtime.boundary import DTYPES
from maskdsl.runtime.choices import Choices
from maskdsl.runtime.resources import Resources, resources, resources_many, together
from maskdsl.runtime.torch_layout import COMPILED, PLAIN, torch_plan
from maskdsl.runtime.triton_backend import FORWARD, LEAST_SCALE
from maskdsl.simulator import CompiledKernel, simulate
from maskdsl.simulator.devices import device_for, dtype_name
from maskdsl.simulator.kernels import read_loops
from maskdsl.simulator.layout import layout_cost

DIRECTIONS = ("forward", "backward")


class Planned:
    """A mask, and how it is attended under."""

    def __init__(self, mask: Mask, choices: Choices) -> None:
        self.mask, self.choices = mask, choices
        self._plans: dict[str, Plan] = {}
        self._compiled: dict[str, CompiledKernel | None] = {}

    @cached_property
    def _spec(self) -> Spec:
        c = self.choices
        rising = c.scale > LEAST_SCALE
        dtype = DTYPES[c.dtype]
        return Spec(c.head_dim, c.value_dim, dtype, c.target, rising, precision=c.precision)

    @cached_property
    def _emission(self) -> Emission | OverlapEmission:
        """What a GPU would run, also for the other backends."""
        return FORWARD[self.choices.template](self.plan, self._spec)

    @cached_property
    def plan(self) -> Plan:
        """The tiles to visit: those asked for, or the backend's default ones."""
        q_tile, kv_tile = self.choices.q_tile, self.choices.kv_tile
        if self.choices.backend == "triton":
            dim = max(self.choices.head_dim, self.choices.value_dim)
            cost = self._layout_cost(dim)
            return self.mask.plan(
                q_tile, kv_tile, target=self.choices.target, head_dim=dim, cost=cost
            )
        if self.choices.backend == "torch" and q_tile is None and kv_tile is None:
            fast = native_attention.expected(self.mask.program, self.choices.dtype)
            return torch_plan(self.mask, COMPILED if fast else PLAIN)
        return self.mask.plan(q_tile, kv_tile)

    def plan_of(self, direction: str) -> Plan:
        """The tiles that a kernel visits: `plan` for "forward"; for "dq" and "dkv" its tiles halved
        until they fit the gradients' kernels.
        """
        plan = self.plan
        if direction == "forward":
            return plan
        most = self._spec.lanes(direction)
        grids = (plan.q_grids, plan.kv_grids)
        tiles = [tuple(smaller(g.tile, n) for g in own) for own, n in zip(grids, most, strict=True)]
        if tiles == [tuple(g.tile for g in own) for own in grids]:
            return plan
        if direction not in self._plans:
            several = plan.program.segmented
            self._plans[direction] = self.mask.plan(*(t if several else t[0] for t in tiles))
        return self._plans[direction]

    def _layout_cost(self, dim: int) -> Cost:
        """What the simulator says of tiles; their work, where it knows no such device."""
        try:
            device = device_for(self.choices.target)
        except BindError:
            return work
        return layout_cost(device, dim, dtype_name(self.choices.dtype))

    def _plan_with(self, lanes: tuple[int, int]) -> Plan:
        dim = max(self.choices.head_dim, self.choices.value_dim)
        return self.mask.plan(lanes=lanes, cost=self._layout_cost(dim))

    def _predicted(self, plan: Plan) -> float:
        """Seconds of a forward call with these tiles, as the simulator says; the pairs of their
        lanes, where it knows no such device.
        """
        try:
            device = device_for(self.choices.target)
        except BindError:
            lanes = math.prod(plan_lanes(plan))
            return (plan.tiles.full + PARTIAL_COST * plan.tiles.partial) * lanes
        c = self.choices
        return simulate(plan, c.head_dim, dtype=c.dtype, device=device).time

    @property
    def source(self) -> str:
        """The emitted Triton module. Raises CompileError where the plan is beyond kernels."""
        return self._emission.render()

    @property
    def sources(self) -> dict[str, str]:
        """The emitted Triton modules: "forward", and of the gradients "dq" and "dkv". Raises
        CompileError as `source` does.
        """
        gradients = (GradientEmission(n, self.plan_of(n), self._spec) for n in ("dq", "dkv"))
        return {"forward": self.source} | {e.direction: e.render() for e in gradients}

    @property
    def key(self) -> str:
        """A readable name and a digest of everything the emitted source depends on."""
        return self._emission.key

    def resources(self, target: str | None = None, direction: str = "forward") -> Resources:
        """Registers, spills, shared memory and instructions, compiled ahead of time without a GPU.

        direction: "forward", or "backward": the most that one of its kernels takes, and the
        instructions of all. Raises CompileError.
        """
        if direction not in DIRECTIONS:
            known = ", ".join(DIRECTIONS)
            raise CompileError(f"there is no kernel for the direction '{direction}' ({known})")
        if direction == "forward":
            return resources(self.source, target or self.choices.target)
        gradients = [s for name, s in self.sources.items() if name != "forward"]
        return together(resources_many([(s, target or self.choices.target) for s in gradients]))

    def compiled(self, direction: str = "forward") -> CompiledKernel | None:
        """What the machine code of one kernel ("forward", "dq" or "dkv") tells `simulate`; None
        without Triton, and where it is not read. Raises CompileError.
        """
        if find_spec("triton") is None:
            return None
        if direction not in self._compiled:
            plan, spec = self.plan_of(direction), self._spec
            warps = self._emission.spec.num_warps if direction == "forward" else 0
            warps = warps or spec.settings(*plan_lanes(plan), direction)[0]
            found = resources(self.sources[direction], self.choices.target)
            self._compiled[direction] = read_loops(found, plan, warps)
        return self._compiled[direction]


def smaller(tile: Tile, lanes: int) -> Tile:
    """The tile, halved along its longest axes until it has at most so many lanes. Axes whose tiles
    leave lanes empty keep their size.
    """
    size, pitch = list(tile.size), list(tile.pitch)
    while math.prod(size) > lanes:
        axes = [i for i, (n, p) in enumerate(zip(size, pitch, strict=True)) if n == p > 1]
        if not axes:
            break
        longest = max(axes, key=lambda i: size[i])
        size[longest] //= 2
        pitch[longest] //= 2
    return Tile(tuple(size), tile.step, tile.origin, tuple(pitch), tile.wrap)
