"""Compiled kernels: their plans, and what their machine code says of their loops."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from maskdsl.simulator.cost import CompiledKernel
from maskdsl.simulator.devices import Device, dtype_name
from maskdsl.simulator.passes import Pass
from maskdsl.simulator.plans import PlanLike


class KernelLike(Protocol):
    """What `maskdsl.compile` gives, as far as predictions need it.

    `shapes` has `head_dim`, `value_dim` and `dtype`. `compiled(name)` is what the machine code of
    one pass says, or None where it cannot be compiled here.
    """

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
    """plan: of the forward kernel. plans, compiled: by name of the pass."""

    plan: PlanLike
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
    names = [step.name for step in steps]
    read = read and kernel.target == device.target
    found = {name: kernel.compiled(name) for name in names} if read else {}
    shapes = kernel.shapes
    return Known(
        kernel.plan,
        {name: kernel.plan_of(name) for name in names},
        {name: code for name, code in found.items() if code is not None},
        shapes.head_dim,
        shapes.value_dim,
        "tf32" if kernel.precision == "tf32" else dtype_name(shapes.dtype),
    )


def read_loops(
    resources: Any, lanes: tuple[int, int], warps: int, partial: bool, full: bool
) -> CompiledKernel | None:
    """What the simulator needs of one kernel's registers, shared memory and loops (as
    `Kernel.resources` gives them, of a module with one kernel); None where its loops are not what
    plans have.

    lanes: of its tiles. partial, full: whether its plan has such tiles. The loop over full tiles is
    the one with fewer instructions for a tile; how many tiles one turn takes is known from its
    exponentials. Only NVIDIA's machine code is read.
    """
    loops = [loop for own in resources.loops.values() for loop in own]
    each = lanes[0] * lanes[1] / (32 * warps)  # exponentials of a thread for a tile
    turns = [round(loop.get("MUFU.EX2", 0) / each) for loop in loops]
    if len(resources.loops) != 1 or not loops or min(turns) < 1:
        return None
    sizes = [sum(loop.values()) for loop in loops]
    tiles = sorted(size / turn for size, turn in zip(sizes, turns, strict=True))
    if full and partial and len(tiles) < 2:
        return None
    outside = max(0, sum(resources.instructions.values()) - sum(sizes))
    return CompiledKernel(
        round(tiles[0]),
        round(tiles[-1]),
        outside,
        warps,
        resources.registers,
        resources.shared,
        resources.spills,
    )
