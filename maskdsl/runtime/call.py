"""What every kernel is to its caller: attention of q over k and v by one operator."""

from __future__ import annotations

from typing import Any

import torch

from maskdsl.errors import BindError
from maskdsl.ir.definition import match_inputs
from maskdsl.ir.differentiate import variables
from maskdsl.ir.nodes import Array
from maskdsl.ir.program import Program
from maskdsl.language.binding import whole
from maskdsl.runtime.boundary import tensor_of
from maskdsl.runtime.op import attention, register


class Attention:
    """A kernel as it is called. handle: what the operator knows it by."""

    def __init__(self, program: Program, handle: str) -> None:
        self._inputs = program.inputs
        self._able = _differentiable(program)
        self.handle = handle
        self.batch_dims = tuple(_batch_dim(a) for a in program.inputs)
        register(handle, self)  # type: ignore[arg-type]

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
        position `keys - queries + i`, or `q_offset + i`. Under autocast q, k and v are taken in the
        dtype the kernel was compiled for. Raises BindError where arguments do not
        fit, EvalError where inputs make an expression fail.
        """
        for name, x in (("q", q), ("k", k), ("v", v)):
            if not isinstance(x, torch.Tensor):
                raise BindError(f"{name} must be a tensor, not {type(x).__name__}")
        given = [tensor_of(a, x, q.device) for a, x in match_inputs(self._inputs, inputs)]
        if q_offset is not None and not isinstance(q_offset, torch.SymInt):
            q_offset = whole("q_offset", q_offset, least=0)
        out, lse = attention(q, k, v, given, self.handle, q_offset)
        return (out, lse) if return_lse else out


def _batch_dim(array: Array) -> int | None:
    """The dimension that counts batch entries."""
    return next((i for i, d in enumerate(array.dims) if d == "batch"), None)


def _differentiable(program: Program) -> tuple[bool, ...]:
    """Which inputs the scores and the sink read as real numbers."""
    roots = [b.score for b in program.all_blocks if b.score is not None]
    if program.sink is not None:
        roots.append(program.sink)
    names = {n.value.name for root in roots for n in variables(root) if n.op == "load"}
    return tuple(a.name in names for a in program.inputs)
