"""The Triton backend: attention under one plan, and its gradients, by emitted kernels."""

from __future__ import annotations

from collections.abc import Callable

import torch

from maskdsl.codegen import Spec
from maskdsl.planner import Plan
from maskdsl.runtime.boundary import Call
from maskdsl.runtime.one_for_all import OneForAll
from maskdsl.runtime.sink_gradients import sink_gradients
from maskdsl.runtime.triton_backend import TritonForward, TritonGradient
from maskdsl.runtime.tuning import Tuned


class TritonAttention:
    """Attention under one plan, and its gradients.

    plan_of: gives the plan of a backward kernel, "dq" or "dkv", which are emitted at the first
    backward pass. scale: of the products. template: of the forward kernel. one: see
    TritonForward. Raises CompileError where a plan is beyond kernels.
    """

    def __init__(
        self, plan: Plan, plan_of: Callable[[str], Plan], spec: Spec, scale: float,
        template: str = "plain", one: OneForAll | None = None,
    ) -> None:  # fmt: skip
        self.spec, self.scale, self.one = spec, scale, one
        self.rule = TritonForward(plan, spec, scale, template, one)
        self.kernel: TritonForward | Tuned = self.rule
        self._program = plan.program
        self._plan_of = plan_of
        self._kernels: dict[tuple[str, tuple[str, ...]], TritonGradient] = {}

    def _kernel(self, name: str, wanted: tuple[str, ...]) -> TritonGradient:
        found = self._kernels.get((name, wanted))
        if found is None:
            plan = self._plan_of(name)
            one = self._one_of_both(wanted)
            found = TritonGradient(name, plan, self.spec, self.scale, wanted, one)
            self._kernels[name, wanted] = found
        return found

    def _one_of_both(self, wanted: tuple[str, ...]) -> OneForAll | None:
        """What emits the backward kernels. Which of the two adds to an input's gradient is decided
        by its index, which bound extents may make simpler: so both are of all extents, or neither.
        """
        if self.one is None or not wanted:
            return self.one
        for name in ("dq", "dkv"):
            if self.one.gradient(name, self._plan_of(name), self.rule.spec, wanted) is None:
                return None
        return self.one

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

    def forward(self, call: Call) -> tuple[torch.Tensor, torch.Tensor]:
        """(out, lse): see TritonForward."""
        out, lse = self.kernel(call.q, call.k, call.v, call.inputs, return_lse=True)
        assert lse is not None
        return out, lse
