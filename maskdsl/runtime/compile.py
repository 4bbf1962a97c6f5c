"""`compile`: a mask, a head size and a device kind to a kernel that is called like an attention
function.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch

from maskdsl.codegen import BackwardEmission, Emission, Spec
from maskdsl.errors import BindError, CompileError, nearest
from maskdsl.language.binding import real, whole
from maskdsl.pattern import Mask, Pattern
from maskdsl.planner import Plan, Tile, TilesLike
from maskdsl.runtime.boundary import DTYPES, Call, Shapes, check_call
from maskdsl.runtime.reference import Reference
from maskdsl.runtime.resources import Resources, resources
from maskdsl.runtime.torch_backend import TorchBackend
from maskdsl.runtime.torch_layout import torch_plan
from maskdsl.runtime.triton_autograd import TritonAttention
from maskdsl.runtime.triton_backend import LEAST_SCALE

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
) -> Kernel:
    """A kernel for one mask.

    head_dim: of queries and keys; value_dim: of values and output (default head_dim).
    backend: "auto" (triton on a GPU, torch elsewhere), "triton", "torch" or "reference" (dense).
    target: what triton compiles for, such as "sm_90"; default the GPU at hand.
    scale: of the products (default head_dim ** -0.5). layout: "bhnd" or "bnhd" of q, k, v and out.
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
    return Kernel(mask, shapes, backend, target, scale, q_tile, kv_tile)


class Kernel:
    """What `compile` gives: attention under one mask.

    plan: the tiles it visits. backend: "triton", "torch" or "reference". key: what its emitted
    source is cached under.
    """

    def __init__(
        self, mask: Mask, shapes: Shapes, backend: str, target: str | None, scale: float,
        q_tile: TilesLike | None, kv_tile: TilesLike | None,
    ) -> None:  # fmt: skip
        self.mask = mask
        self.shapes = shapes
        self.backend = backend
        self.target = target or _target_at_hand()
        self.scale = scale
        self._tiles = q_tile, kv_tile
        self._run = self._backend()

    @cached_property
    def _spec(self) -> Spec:
        s = self.shapes
        rising = self.scale > LEAST_SCALE
        return Spec(s.head_dim, s.value_dim, DTYPES[s.dtype], self.target, rising)

    @cached_property
    def _emission(self) -> Emission:
        """What a GPU would run, also for the other backends."""
        return Emission(self.plan, self._spec)

    @cached_property
    def plan(self) -> Plan:
        """The tiles to visit: those asked for, or the backend's default ones."""
        q_tile, kv_tile = self._tiles
        if self.backend == "triton":
            dim = max(self.shapes.head_dim, self.shapes.value_dim)
            return self.mask.plan(q_tile, kv_tile, target=self.target, head_dim=dim)
        if self.backend == "torch" and q_tile is None and kv_tile is None:
            return torch_plan(self.mask)
        return self.mask.plan(q_tile, kv_tile)

    @cached_property
    def backward_plan(self) -> Plan:
        """The tiles that the backward kernels visit: the forward's, halved until they fit."""
        plan = self.plan
        if plan.program.segmented:
            return plan
        most = self._spec.backward_lanes
        grids = (plan.q_grid_, plan.kv_grid_)
        q_tile, kv_tile = (smaller(g.tile, n) for g, n in zip(grids, most, strict=True))
        if (q_tile, kv_tile) == (plan.q_tile, plan.kv_tile):
            return plan
        return self.mask.plan(q_tile, kv_tile)

    @property
    def source(self) -> str:
        """The emitted Triton module. Raises CompileError where the plan is beyond kernels."""
        return self._emission.render()

    @property
    def backward_source(self) -> str:
        """The emitted Triton module for gradients. Raises CompileError as `source` does."""
        return BackwardEmission(self.backward_plan, self._spec).render()

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
        source = self.source if direction == "forward" else self.backward_source
        return resources(source, target or self.target)

    def _backend(self) -> Callable[[Call, bool], tuple[torch.Tensor, torch.Tensor | None]]:
        program = self.mask.program
        if self.backend == "reference":
            reference = Reference(program, self.scale)
            return lambda call, _: reference(call)
        if self.backend == "torch":
            return TorchBackend(self.plan, self.scale)
        return TritonAttention(self.plan, lambda: self.backward_plan, self._spec, self.scale)

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
        natural log-sum-exp,
        float32 (batch, heads, queries). Raises BindError where arguments do not fit, EvalError
        where inputs make an
        expression fail.
        """
        if q_offset is not None:
            raise BindError(
                "q_offset (decoding) is not supported by kernels yet; mask.dense takes it"
            )
        call = check_call(self.mask.program, self.shapes, q, k, v, inputs)
        out, lse = self._run(call, return_lse)
        if self.shapes.layout == "bnhd":
            out = out.transpose(1, 2)
        return (out, lse) if return_lse and lse is not None else out

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
