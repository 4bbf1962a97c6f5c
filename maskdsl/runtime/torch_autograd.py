"""Attention as a differentiable function of q, k, v and the float inputs."""

from __future__ import annotations

from typing import Any, Protocol

import torch

from maskdsl.errors import CompileError
from maskdsl.runtime.boundary import Call


class Differentiable(Protocol):
    """What runs attention and its gradients; `forward` gives (out, lse)."""

    def forward(self, call: Call, /) -> tuple[torch.Tensor, torch.Tensor]: ...

    def gradients(
        self, call: Call, out: torch.Tensor, lse: torch.Tensor, do: torch.Tensor,
        grad_lse: torch.Tensor, wanted: tuple[str, ...], /,
    ) -> list[torch.Tensor | None]: ...  # fmt: skip


class Attention(torch.autograd.Function):
    """Saves q, k, v, out, lse and the inputs, nothing of the size of the mask."""

    @staticmethod
    def forward(
        ctx: Any, run: Differentiable, names: tuple[str, ...],
        q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *inputs: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
        out, lse = run.forward(Call(q, k, v, dict(zip(names, inputs, strict=True))))
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
        ctx: Any, run: Differentiable, names: tuple[str, ...], wanted: tuple[bool, ...],
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
            "gradients of gradients are not supported by the torch backend: use backend='reference'"
        )
