"""What every kernel is to its caller: attention of q over k and v by one operator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from maskdsl.errors import BindError
from maskdsl.ir.definition import match_inputs
from maskdsl.ir.differentiate import variables
from maskdsl.ir.nodes import Array
from maskdsl.ir.program import Program
from maskdsl.pattern import Mask
from maskdsl.runtime.boundary import check_plain, place, tensor_of
from maskdsl.runtime.choices import Choices
from maskdsl.runtime.op import attention, register

Pair = tuple[torch.Tensor, torch.Tensor]
Tensors = Sequence[torch.Tensor]


class Attention:
    """A kernel as it is called. handle: what the operator knows it by."""

    def __init__(self, mask: Mask, choices: Choices, handle: str) -> None:
        program = mask.program
        self.mask, self.choices = mask, choices
        self._inputs = program.inputs
        self.differentiable = _differentiable(program)
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
        return attend(self._inputs, self.handle, q, k, v, inputs, return_lse, q_offset)

    @property
    def backend(self) -> str:
        return self.choices.backend

    @property
    def target(self) -> str:
        return self.choices.target

    @property
    def precision(self) -> str:
        """Of triton's float32 products."""
        return self.choices.precision

    @property
    def dtype(self) -> torch.dtype:
        return self.choices.dtype

    @property
    def composite(self) -> bool:
        return self.backend == "reference"

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.mask, self.choices)

    def __deepcopy__(self, memo: Any) -> Attention:
        return self  # nothing of it changes

    def empty(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, inputs: Tensors,
        q_offset: int | None,
    ) -> Pair:  # fmt: skip
        """(out, lse) as `forward` lays them, with anything in them."""
        for name, x in (("q", q), ("k", k), ("v", v)):
            if x.ndim != 4:
                raise BindError(f"{name} must have 4 dimensions, not shape {tuple(x.shape)}")
        q, v = self._turned(q), self._turned(v)
        shape = q.shape[:3]
        order = [0, 1, 2]
        if self._in_order_of(q) and q.stride(1) < q.stride(2):
            order = [0, 2, 1]
        out = q.new_empty([*(shape[i] for i in order), v.shape[3]])
        out = out.permute(*(order.index(i) for i in range(3)), 3)
        compute = torch.float64 if q.dtype == torch.float64 else torch.float32
        return self._turned(out), q.new_empty(shape, dtype=compute)

    def empty_gradients(
        self, named: Tensors, inputs: Tensors, wanted: Sequence[bool]
    ) -> list[torch.Tensor]:
        """As `gradients` lays them, with anything in them."""
        found = [torch.empty_like(x) for x in named]
        if not self._in_order_of(named[0]):
            q = self._turned(named[0])
            found[0] = self._turned(q.new_empty(q.shape))
        found += [x.new_empty(x.shape) for x in inputs]
        return [x for x, w in zip(found, wanted, strict=True) if w]

    def _in_order_of(self, q: torch.Tensor) -> bool:
        """Whether results lie in memory as q does."""
        on_gpu = q.device.type == "cuda" or not self.choices.anywhere
        return self.backend == "triton" and on_gpu

    def _turned(self, x: torch.Tensor) -> torch.Tensor:
        """From the layout asked for to (batch, heads, tokens, dim), and back."""
        return x.transpose(1, 2) if self.choices.layout == "bnhd" else x


def attend(
    arrays: tuple[Array, ...], handle: str, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor,
    inputs: Mapping[str, Any], return_lse: bool, q_offset: int | None,
) -> torch.Tensor | Pair:  # fmt: skip
    """A call of the kernel that the operator knows by `handle`; arrays: its inputs."""
    for name, x in (("q", q), ("k", k), ("v", v)):
        check_plain(name, x)
    given: list[torch.Tensor] = []
    if arrays or inputs:
        given = [tensor_of(a, x, q.device) for a, x in match_inputs(arrays, inputs)]
    if q_offset is not None:
        q_offset = place(q_offset)
    out, lse = attention(q, k, v, given, handle, q_offset)
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
