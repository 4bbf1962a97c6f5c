"""The Triton backend as a differentiable function of q, k, v and the float inputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from maskdsl.codegen import Spec
from maskdsl.errors import CompileError
from maskdsl.planner import Plan
from maskdsl.runtime.boundary import Call
from maskdsl.runtime.sink_gradients import sink_gradients
from maskdsl.runtime.triton_backend import TritonForward, TritonGradient
from maskdsl.runtime.tuning import Tuned


class TritonAttention:
    """Attention under one plan, and its gradients.

    plan_of: gives the plan of a backward kernel, "dq" or "dkv", which are emitted at the first
    backward pass. scale: of the products. template: of the forward kernel. Raises CompileError
    where a plan is beyond kernels.
    """

    def __init__(
        self, plan: Plan, plan_of: Callable[[str], Plan], spec: Spec, scale: float,
        template: str = "plain",
    ) -> None:  # fmt: skip
        self.spec, self.scale = spec, scale
        self.rule = TritonForward(plan, spec, scale, template)
        self.forward: TritonForward | Tuned = self.rule
        self._program = plan.program
        self._plan_of = plan_of
        self._kernels: dict[tuple[str, tuple[str, ...]], TritonGradient] = {}

    def _kernel(self, name: str, wanted: tuple[str, ...]) -> TritonGradient:
        found = self._kernels.get((name, wanted))
        if found is None:
            plan = self._plan_of(name)
            found = TritonGradient(name, plan, self.spec, self.scale, wanted)
            self._kernels[name, wanted] = found
        return found

    def gradients(
        self, call: Call, out: torch.Tensor, lse: torch.Tensor, do: torch.Tensor,
        grad_lse: torch.Tensor, wanted: tuple[str, ...],
    ) -> list[torch.Tensor | None]:  # fmt: skip
        """Of q, k, v and of each input: None where it is not wanted, or decides only which keys are
        kept.
        """
        q, k, v, inputs = call.q, call.k, call.v, call.inputs
        if 0 in do.stride():
            do = do.contiguous()  # such as the gradient of a sum, one number for all
        to_q, to_kv = (self._kernel(name, wanted) for name in ("dq", "dkv"))
        dq, delta, found = to_q((q, k, v, out, do), lse, grad_lse.contiguous(), inputs=inputs)
        dk, dv, more = to_kv((q, k, v, do), lse, delta, inputs=inputs)
        for parts in (more, sink_gradients(self._program, call, lse, delta, wanted)):
            for name, x in parts.items():
                found[name] = found[name] + x if name in found else x
        of_inputs = (found.get(n) for n in inputs)
        own = (
            None if g is None else g.to(x.dtype)
            for g, x in zip(of_inputs, inputs.values(), strict=True)
        )
        return [dq, dk, dv, *own]

    def __call__(self, call: Call, return_lse: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(out, lse or None): see TritonForward."""
        out, lse = _Attention.apply(  # type: ignore[no-untyped-call]
            self, tuple(call.inputs), call.q, call.k, call.v, *call.inputs.values()
        )
        return out, lse if return_lse else None


class _Attention(torch.autograd.Function):
    """Saves q, k, v, out, lse and the inputs, nothing of the size of the mask."""

    @staticmethod
    def forward(
        ctx: Any, run: TritonAttention, names: tuple[str, ...],
        q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *inputs: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:  # fmt: skip
        out, lse = run.forward(q, k, v, dict(zip(names, inputs, strict=True)), return_lse=True)
        ctx.run, ctx.names = run, names
        ctx.save_for_backward(q, k, v, out, lse, *inputs)
        return out, lse

    @staticmethod
    def backward(ctx: Any, do: torch.Tensor, grad_lse: torch.Tensor) -> Any:
        wanted = ctx.needs_input_grad[2:]
        found = _Gradients.apply(  # type: ignore[no-untyped-call]
            ctx.run, ctx.names, wanted, do, grad_lse, *ctx.saved_tensors
        )
        return None, None, *found


class _Gradients(torch.autograd.Function):
    """The gradients themselves, as a function that cannot be differentiated."""

    @staticmethod
    def forward(
        ctx: Any, run: TritonAttention, names: tuple[str, ...], wanted: tuple[bool, ...],
        do: torch.Tensor, grad_lse: torch.Tensor,
        q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, out: torch.Tensor, lse: torch.Tensor,
        *inputs: torch.Tensor,
    ) -> tuple[torch.Tensor | None, ...]:  # fmt: skip
        call = Call(q, k, v, dict(zip(names, inputs, strict=True)))
        of_inputs = tuple(n for n, w in zip(names, wanted[3:], strict=True) if w)
        found = run.gradients(call, out, lse, do, grad_lse, of_inputs)
        return tuple(x if w else None for x, w in zip(found, wanted, strict=True))

    @staticmethod
    def backward(ctx: Any, *_: torch.Tensor) -> Any:
        raise CompileError(
            "gradients of gradients are not supported by the triton backend: "
            "use backend='reference'"
        )
