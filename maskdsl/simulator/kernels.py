"""Compiled kernels: their plans, and what their machine code says of their loops."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from maskdsl.errors import BindError
from maskdsl.simulator.cost import CompiledKernel
from maskdsl.simulator.devices import Device, dtype_name
from maskdsl.simulator.operations import pair_work
from maskdsl.simulator.passes import Pass
from maskdsl.simulator.plans import PlanLike, lanes_of

Compiled = CompiledKernel | Mapping[str, CompiledKernel] | None


def check_code(compiled: Any, steps: Sequence[Pass]) -> None:
    """Raises BindError for what is neither a `CompiledKernel` nor a dict of them by pass."""
    found = compiled.values() if isinstance(compiled, Mapping) else [compiled]
    if compiled is not None and not all(isinstance(x, CompiledKernel) for x in found):
        raise BindError("compiled is a CompiledKernel, or a dict of them by the name of the pass")
    names = [step.name for step in steps]
    for name in compiled if isinstance(compiled, Mapping) else ():
        if str(name).split(" ")[0] not in names:
            raise BindError(f"there is no pass '{name}' (known: {', '.join(names)})")


class KernelLike(Protocol):
    """What `maskdsl.compile` gives, as far as predictions need it.

    `shapes` has `head_dim`, `value_dim` and `dtype`. `compiled(name)` is what the machine code of
    one pass says, or None where it cannot be compiled here.
    """

    @property
    def mask(self) -> Any: ...
    @property
    def backend(self) -> str: ...
    @property
    def plan(self) -> Any: ...
    @property
    def shapes(self) -> Any: ...
    @property
    def target(self) -> str: ...
    @property
    def precision(self) -> str: ...
    def plan_of(self, direction: str, /) -> Any: ...
    def compiled(self, direction: str, /) -> CompiledKernel | None: ...


@dataclass(frozen=True)
class Known:
    """subject: the plan of the forward kernel; the mask, where the kernel is none of Triton's.
    plans, compiled: by name of the pass.
    """

    subject: Any
    plans: Mapping[str, PlanLike]
    compiled: Mapping[str, CompiledKernel]
    head_dim: int
    value_dim: int
    dtype: str


def is_kernel(subject: object) -> bool:
    return hasattr(subject, "plan_of") and hasattr(subject, "compiled")


def known_of(kernel: KernelLike, steps: Sequence[Pass], device: Device, read: bool) -> Known:
    """What a kernel says of itself. read: whether its machine code is looked at, which is for its
    own target alone.
    """
    shapes = kernel.shapes
    dtype = "tf32" if kernel.precision == "tf32" else dtype_name(shapes.dtype)
    dims = shapes.head_dim, shapes.value_dim
    if kernel.backend != "triton":
        return Known(kernel.mask, {}, {}, *dims, dtype)
    names = [step.name for step in steps]
    read = read and kernel.target == device.target
    found = {name: kernel.compiled(name) for name in names} if read else {}
    plans = {name: kernel.plan_of(name) for name in names}
    codes = {name: code for name, code in found.items() if code is not None}
    return Known(kernel.plan, plans, codes, *dims, dtype)


def read_loops(resources: Any, plan: Any, warps: int) -> CompiledKernel | None:
    """What the simulator needs of one kernel's registers, shared memory and loops (as
    `Kernel.resources` gives them, of a module with one kernel), compiled for a plan of one segment
    on either side; None where its loops are not what such plans have.

    The loop over full tiles is the one with the fewest instructions for a tile, that over partial
    ones has the most. How many tiles one turn takes is known from its exponentials. Only NVIDIA's
    machine code is read.
    """
    loops = [loop for own in resources.loops.values() for loop in own]
    q_lanes, kv_lanes = lanes_of(plan.q_tile), lanes_of(plan.kv_tile)
    if len(resources.loops) != 1 or len(q_lanes) != 1 or len(kv_lanes) != 1 or not loops:
        return None
    special = 1 + round(pair_work(plan)[0][0].score.special)
    each = q_lanes[0] * kv_lanes[0] * special / (32 * warps)  # exponentials of a thread for a tile
    turns = [round(loop.get("MUFU.EX2", 0) / each) for loop in loops]
    kinds = bool(plan.tiles.full) + bool(plan.tiles.partial)
    if min(turns) < 1 or len(loops) < kinds:
        return None
    sizes = [sum(loop.values()) for loop in loops]
    tiles = sorted(size / turn for size, turn in zip(sizes, turns, strict=True))
    return CompiledKernel(
        round(tiles[0]),
        round(tiles[-1]),
        max(0, sum(resources.instructions.values()) - sum(sizes)),
        warps,
        resources.registers,
        resources.shared,
        resources.spills,
    )
