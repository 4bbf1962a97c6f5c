"""`compile`: a mask, a head size and a device kind to a kernel that is called like an attention
function.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property
from importlib.util import find_spec
from typing import Any

import torch

from maskdsl.codegen import Emission, GradientEmission, OverlapEmission, Spec
from maskdsl.codegen.emit import plan_lanes
from maskdsl.errors import BindError, CompileError, nearest
from maskdsl.language.binding import real, whole
from maskdsl.pattern import Mask, Pattern
from maskdsl.planner import Plan, Tile, TilesLike
from maskdsl.planner.layout import PARTIAL_COST, Cost, work
from maskdsl.runtime.boundary import DTYPES, Call, Shapes, check_call
from maskdsl.runtime.reference import Reference
from maskdsl.runtime.resources import Resources, resources, resources_many, together
from maskdsl.runtime.torch_backend import TorchBackend
from maskdsl.runtime.torch_decode import TorchDecode
from maskdsl.runtime.torch_layout import torch_plan
from maskdsl.runtime.triton_autograd import TritonAttention
from maskdsl.runtime.triton_backend import FORWARD, LEAST_SCALE
from maskdsl.runtime.triton_decode import TritonDecode
from maskdsl.runtime.tuning import Tuned
from maskdsl.simulator import CompiledKernel, simulate
from maskdsl.simulator.devices import device_for, dtype_name
from maskdsl.simulator.kernels import read_loops
from maskdsl.simulator.layout import layout_cost

BACKENDS = ("auto", "triton", "torch", "reference")
LAYOUTS = ("bhnd", "bnhd")
DIRECTIONS = ("forward", "backward")


def compile(  # noqa: A001 (the public name)
    mask: Mask | Pattern,
    head_dim: int,
    dtype: torch.dtype = torch.float32,
    *,
    value_dim: int | None = None,
    backend: str = "auto",
    target: str | None = None,
    scale: float | None = None,
    layout: str = "bhnd",
    q_tile: TilesLike | None = None,
    kv_tile: TilesLike | None = None,
    tune: bool = False,
    template: str = "plain",
    precision: str = "ieee",
) -> Kernel:
    """A kernel for one mask.

    head_dim: of queries and keys; value_dim: of values and output (default head_dim).
    backend: "auto" (triton on a GPU, torch elsewhere), "triton", "torch" or "reference" (dense).
    target: what triton compiles for, such as "sm_90"; default the GPU at hand.
    scale: of the products (default head_dim ** -0.5). layout: "bhnd" or "bnhd" of q, k, v and out.
    tune: whether the forward kernel's settings are measured at its first call on a GPU, and the
    best remembered on disk for this device; otherwise a rule chooses them.
    template: of triton's forward kernel: "plain", or "overlap", for sm_90, which takes exponentials
    while the tensor cores multiply.
    precision: of triton's float32 products, "ieee" or "tf32" (tensor cores, 10 bits of mantissa).
    Raises BindError for arguments that do not fit, PlanError and CompileError.
    """
    if isinstance(mask, Pattern):
        mask = mask.bind()
    if not isinstance(mask, Mask):
        raise BindError(f"compile takes a mask, not {type(mask).__name__}")
    program = mask.closed()
    if backend not in BACKENDS:
        hint = nearest(str(backend), BACKENDS)
        raise BindError(f"backend is one of {', '.join(BACKENDS)}, not {backend!r}{hint}")
    if layout not in LAYOUTS:
        raise BindError(f"layout is one of {', '.join(LAYOUTS)}, not {layout!r}")
    if not isinstance(dtype, torch.dtype) or dtype not in DTYPES:
        raise BindError(f"dtype is one of {', '.join(map(str, DTYPES))}, not {dtype}")
    if template not in FORWARD:
        raise BindError(f"template is one of {', '.join(FORWARD)}, not {template!r}")
    head_dim = whole("head_dim", head_dim, least=1)
    value_dim = head_dim if value_dim is None else whole("value_dim", value_dim, least=1)
    scale = head_dim**-0.5 if scale is None else real("scale", scale)
    _, queries, keys = mask.shape
    shapes = Shapes(
        program.heads, program.kv_heads, queries, keys, head_dim, value_dim, dtype, layout
    )
    if backend == "auto":
        on_gpu = torch.cuda.is_available() and dtype != torch.float64
        backend = "triton" if on_gpu else "torch"
    if tune and backend != "triton":
        raise BindError(f"tune measures triton kernels, and the backend is {backend}")
    if template != "plain" and backend != "triton":
        raise CompileError(f"the {template} template is for the triton backend, not {backend}")
    if precision != "ieee" and backend != "triton":
        raise BindError(f"precision is for triton kernels, and the backend is {backend}")
    return Kernel(mask, shapes, backend, target, scale, q_tile, kv_tile, tune, template, precision)


class Kernel:
    """What `compile` gives: attention under one mask.

    plan: the tiles it visits. backend: "triton", "torch" or "reference". key: what its emitted
    source is cached under.
    """

    def __init__(
        self, mask: Mask, shapes: Shapes, backend: str, target: str | None, scale: float,
        q_tile: TilesLike | None, kv_tile: TilesLike | None, tune: bool = False,
        template: str = "plain", precision: str = "ieee",
    ) -> None:  # fmt: skip
        self.mask = mask
        self.tune = tune
        self.shapes = shapes
        self.backend = backend
        self.target = target or _target_at_hand()
        self.scale = scale
        self.template = template
        self.precision = precision
        self._tiles = q_tile, kv_tile
        self._plans: dict[str, Plan] = {}
        self._compiled: dict[str, CompiledKernel | None] = {}
        self._run = self._backend()

    @cached_property
    def _spec(self) -> Spec:
        s = self.shapes
        rising = self.scale > LEAST_SCALE
        return Spec(
            s.head_dim, s.value_dim, DTYPES[s.dtype], self.target, rising, precision=self.precision
        )

    @cached_property
    def _emission(self) -> Emission | OverlapEmission:
        """What a GPU would run, also for the other backends."""
        return FORWARD[self.template](self.plan, self._spec)

    @cached_property
    def plan(self) -> Plan:
        """The tiles to visit: those asked for, or the backend's default ones."""
        q_tile, kv_tile = self._tiles
        if self.backend == "triton":
            dim = max(self.shapes.head_dim, self.shapes.value_dim)
            cost = self._layout_cost(dim)
            return self.mask.plan(q_tile, kv_tile, target=self.target, head_dim=dim, cost=cost)
        if self.backend == "torch" and q_tile is None and kv_tile is None:
            return torch_plan(self.mask)
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
            device = device_for(self.target)
        except BindError:
            return work
        return layout_cost(device, dim, dtype_name(self.shapes.dtype))

    def _plan_with(self, lanes: tuple[int, int]) -> Plan:
        dim = max(self.shapes.head_dim, self.shapes.value_dim)
        return self.mask.plan(lanes=lanes, cost=self._layout_cost(dim))

    def _predicted(self, plan: Plan) -> float:
        """Seconds of a forward call with these tiles, as the simulator says; the pairs of their
        lanes, where it knows no such device.
        """
        try:
            device = device_for(self.target)
        except BindError:
            lanes = math.prod(plan_lanes(plan))
            return (plan.tiles.full + PARTIAL_COST * plan.tiles.partial) * lanes
        return simulate(plan, self.shapes.head_dim, dtype=self.shapes.dtype, device=device).time

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
            return resources(self.source, target or self.target)
        gradients = [s for name, s in self.sources.items() if name != "forward"]
        return together(resources_many([(s, target or self.target) for s in gradients]))

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
            found = resources(self.sources[direction], self.target)
            self._compiled[direction] = read_loops(found, plan, warps)
        return self._compiled[direction]

    def _backend(self) -> Callable[[Call, bool], tuple[torch.Tensor, torch.Tensor | None]]:
        program = self.mask.program
        if self.backend == "reference":
            reference = Reference(program, self.scale)
            return lambda call, _: reference(call)
        if self.backend == "torch":
            return TorchBackend(self.plan, self.scale)
        attention = TritonAttention(self.plan, self.plan_of, self._spec, self.scale, self.template)
        if self.tune:
            free = self._tiles == (None, None) and not program.segmented
            plan_with = self._plan_with if free else None
            attention.forward = Tuned(attention.rule, plan_with, self._predicted)
        return attention

    def __call__(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        /,
        *,
        return_lse: bool = False,
        q_offset: int | None = None,
        **inputs: Any,
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """Attention of q over k and v, (batch, heads, tokens, head_dim) or the layout it was
        compiled for.

        k and v have kv_heads heads. inputs: tensors (or arrays) by name. With return_lse also the
        natural log-sum-exp, float32 (batch, heads, queries).

        q_offset: where a shared space has fewer queries than keys (decoding), query i stands at
        position `keys - queries + i`, or `q_offset + i`. Raises BindError where arguments do not
        fit, EvalError where inputs make an expression fail.
        """
        call = check_call(self.mask.program, self.shapes, q, k, v, inputs, q_offset)
        out, lse = self._launch(call, return_lse)
        if self.shapes.layout == "bnhd":
            out = out.transpose(1, 2)
        return (out, lse) if return_lse else out

    def _launch(self, call: Call, return_lse: bool) -> Any:
        if call.first is None or self.backend == "reference":
            return self._run(call, return_lse)
        tensors = (call.q, call.k, call.v, *call.inputs.values())
        if torch.is_grad_enabled() and any(x.requires_grad for x in tensors):
            raise CompileError(
                f"gradients of fewer queries than keys are not supported by the "
                f"{self.backend} backend yet: use backend='reference', or torch.no_grad()"
            )
        return self._decode(call, return_lse)

    @cached_property
    def _decode(self) -> TorchDecode | TritonDecode:
        """Calls with fewer queries than keys."""
        if isinstance(self._run, TritonAttention):
            return TritonDecode(self.mask, self._run.rule)
        return TorchDecode(self.mask.program, self.scale)

    def __repr__(self) -> str:
        return f"<kernel of {self.mask!r} ({self.backend})>"


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


def _target_at_hand() -> str:
    """What Triton calls the GPU of this machine; a Hopper GPU where there is none."""
    if not torch.cuda.is_available():
        return "sm_90"
    if torch.version.hip:
        return str(torch.cuda.get_device_properties().gcnArchName).split(":")[0]
    major, minor = torch.cuda.get_device_capability()
    return f"sm_{major}{minor}"
