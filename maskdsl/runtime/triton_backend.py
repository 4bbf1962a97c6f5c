"""The Triton backend: emits a plan's kernels, loads them from the cache and launches them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch

from maskdsl.codegen import Emission, GradientEmission, OverlapEmission, Spec
from maskdsl.errors import CompileError
from maskdsl.planner import Plan
from maskdsl.runtime.cache import load_source
from maskdsl.runtime.input_lists import InputLists
from maskdsl.runtime.one_for_all import OneForAll

MAX_PROGRAMS = 2**31 - 1
LEAST_SCALE = 1e-30  # a scale this large may multiply minus infinity
# the forward module, by the name of its template
FORWARD: dict[str, type[Emission] | type[OverlapEmission]] = {
    "plain": Emission,
    "overlap": OverlapEmission,
}
_SIGNED = {torch.uint8: torch.int32, torch.uint16: torch.int32, torch.uint32: torch.int64}

Inputs = Mapping[str, torch.Tensor]
Gradients = tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]  # and of inputs, by name


class _Loaded:
    """An emitted module in this process, and its tables on each device.

    source: its text. key: what it is cached under. scale: of the products.
    """

    def __init__(
        self, emission: Emission | OverlapEmission | GradientEmission, scale: float
    ) -> None:
        self.scale = scale
        self.key = emission.key
        self.source = emission.render()
        self._module: Any = load_source(self.key, lambda: self.source)
        self._tables = {name: torch.from_numpy(x) for name, x in emission.tables.items()}
        self._on_device: dict[torch.device, dict[str, torch.Tensor]] = {}
        home = "k" if emission.direction == "dkv" else "q"
        self._lists = InputLists(emission.plan, home) if emission.asks_inputs else None

    def _tables_on(self, device: torch.device) -> dict[str, torch.Tensor]:
        found = self._on_device.get(device)
        if found is None:
            found = {name: x.to(device) for name, x in self._tables.items()}
            self._on_device[device] = found
        return found

    def _walk(self, q: torch.Tensor, inputs: Inputs) -> dict[str, torch.Tensor]:
        """The tables of a call, on q's device, with what its inputs leave to visit."""
        found = self._tables_on(q.device)
        if self._lists is None:
            return found
        return found | self._lists(inputs, q.shape[0], q.device)


class TritonForward(_Loaded):
    """Forward attention under one plan; template: "plain" or "overlap". one: emits the module of
    all extents, where the plan's are open. Raises CompileError where the plan is beyond kernels, or
    the template does not apply.
    """

    def __init__(
        self, plan: Plan, spec: Spec, scale: float, template: str = "plain",
        one: OneForAll | None = None,
    ) -> None:  # fmt: skip
        scale = float(scale)
        self.plan, self.one = plan, one
        self.spec = replace(spec, rising=scale > LEAST_SCALE)
        shared = one.forward(plan, self.spec) if one and template == "plain" else None
        emission = shared or FORWARD[template](plan, self.spec)
        self.template = template
        super().__init__(emission, scale)
        self._merged = emission.merged
        self._programs = plan.q_tiles * plan.program.heads
        self._interpreted = not hasattr(getattr(self._module, emission.kernels[0]), "cache_key")

    @cached_property
    def by_pointers(self) -> TritonForward:
        """The same for tensors that no descriptor sees."""
        spec = replace(self.spec, descriptors=False)
        return TritonForward(self.plan, spec, self.scale, one=self.one)

    def __call__(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        inputs: Inputs,
        return_lse: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(out, lse or None) for checked q, k, v (batch, heads, tokens, dim), of any strides.

        lse: float32 (batch, heads, queries), natural. Raises CompileError where it cannot run here.
        """
        self._check(q)
        if self._merged is not None and not all(described(x, self._merged) for x in (q, k, v)):
            return self.by_pointers(q, k, v, inputs, return_lse)
        out, lse = launched(
            q.device, lambda: self._module.forward(
                q, k, v, self.scale, self._walk(q, inputs), signed(inputs)
            )
        )  # fmt: skip
        return out, lse if return_lse else None

    def _check(self, q: torch.Tensor) -> None:
        if q.device.type == "cpu" and self.template == "overlap":
            raise CompileError("the overlap template runs on a GPU alone: use the plain template")
        if q.device.type == "cpu" and not self._interpreted:
            raise CompileError(
                "a triton kernel runs on a CPU only under its interpreter: set TRITON_INTERPRET=1 "
                "before triton is imported, or use backend='torch'"
            )
        if self._interpreted and q.dtype == torch.bfloat16:
            raise CompileError(
                "triton's interpreter multiplies bfloat16 wrongly: use float16 or float32 there"
            )
        if q.shape[0] * self._programs > MAX_PROGRAMS:
            raise CompileError(
                f"a launch has at most {MAX_PROGRAMS} tiles of queries over batch and heads"
            )


class TritonGradient(_Loaded):
    """One of the backward kernels of a plan, "dq" or "dkv", with the gradients of some float
    inputs. one: see `TritonForward`. Raises CompileError where it is beyond kernels.
    """

    def __init__(
        self, kernel: str, plan: Plan, spec: Spec, scale: float, wanted: tuple[str, ...],
        one: OneForAll | None = None,
    ) -> None:  # fmt: skip
        scale = float(scale)
        self.what = kernel, plan, wanted
        self.one = one
        self.spec = replace(spec, rising=scale > LEAST_SCALE)
        emission = one.gradient(kernel, plan, self.spec, wanted) if one else None
        emission = emission or GradientEmission(kernel, plan, self.spec, wanted)
        super().__init__(emission, scale)
        self._merged = emission.merged
        program = plan.program
        self._programs = max(plan.q_tiles * program.heads, plan.kv_tiles * program.kv_heads)

    @cached_property
    def by_pointers(self) -> TritonGradient:
        """The same for tensors that no descriptor sees."""
        kernel, plan, wanted = self.what
        spec = replace(self.spec, descriptors=False)
        return TritonGradient(kernel, plan, spec, self.scale, wanted, self.one)

    def __call__(
        self, tensors: tuple[torch.Tensor, ...], *others: torch.Tensor, inputs: Inputs
    ) -> Gradients:
        """What the module's `gradients` gives. tensors: of tokens, its first arguments in order,
        q first; others: those after them, up to the scale. Raises CompileError where it cannot run.
        """
        q = tensors[0]
        if q.shape[0] * self._programs > MAX_PROGRAMS:
            raise CompileError(f"a launch has at most {MAX_PROGRAMS} tiles over batch and heads")
        if self._merged is not None and not all(described(x, self._merged) for x in tensors):
            return self.by_pointers(tensors, *others, inputs=inputs)
        found: Gradients = launched(
            q.device, lambda: self._module.gradients(
                *tensors, *others, self.scale, self._walk(q, inputs), signed(inputs)
            )
        )  # fmt: skip
        return found


def described(x: torch.Tensor, merged: bool) -> bool:
    """Whether tensor descriptors see x (batch, heads, tokens, dim): aligned to 16 bytes, elements
    of a token side by side; merged: with batch and heads as one axis.
    """
    batch, heads, _, dim = x.shape
    per_batch, per_head, per_token, per_element = x.stride()
    unit = 16 // x.element_size()
    return (
        (per_element == 1 or dim == 1)
        and x.data_ptr() % 16 == 0
        and not (per_batch % unit or per_head % unit or per_token % unit)
        and min(per_batch, per_head, per_token) > 0
        and (not merged or batch == 1 or per_batch == heads * per_head)
    )


def signed(inputs: Inputs) -> dict[str, torch.Tensor]:
    """Inputs in the types that kernels read."""
    return {n: x.to(_SIGNED[x.dtype]) if x.dtype in _SIGNED else x for n, x in inputs.items()}


def launched(device: torch.device, launch: Callable[[], Any]) -> Any:
    """What `launch` gives, run on this device; raises CompileError where tiles do not fit it."""
    try:
        if device.type != "cuda":
            return launch()
        with torch.cuda.device(device):
            return launch()
    except Exception as error:
        if type(error).__name__ != "OutOfResources":
            raise
        raise CompileError(f"these tiles do not fit the device ({error})") from error
