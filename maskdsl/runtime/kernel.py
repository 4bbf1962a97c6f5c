"""`Kernel`: attention under one mask, as `compile` gives it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import astuple
from functools import cached_property
from typing import Protocol

import torch

from maskdsl.errors import CompileError
from maskdsl.ir.storage import Writer
from maskdsl.pattern import Mask
from maskdsl.runtime.boundary import Call, Shapes, check_call
from maskdsl.runtime.call import Attention
from maskdsl.runtime.planned import Choices, Planned
from maskdsl.runtime.reference import Reference
from maskdsl.runtime.torch_backend import TorchBackend
from maskdsl.runtime.torch_decode import TorchDecode
from maskdsl.runtime.triton_attention import TritonAttention
from maskdsl.runtime.triton_decode import TritonDecode
from maskdsl.runtime.tuning import Tuned

Pair = tuple[torch.Tensor, torch.Tensor]
Tensors = Sequence[torch.Tensor]


class Runs(Protocol):
    """A backend."""

    def forward(self, call: Call, /) -> Pair:
        """(out, lse)"""

    def gradients(
        self, call: Call, out: torch.Tensor, lse: torch.Tensor, do: torch.Tensor,
        grad_lse: torch.Tensor, wanted: tuple[str, ...], /,
    ) -> list[torch.Tensor | None]:  # fmt: skip
        """Of q, k, v and each input."""


class Kernel(Planned, Attention):
    """What `compile` gives: attention under one mask.

    plan: the tiles it visits. backend: "triton", "torch" or "reference". key: what its emitted
    source is cached under.
    """

    def __init__(self, mask: Mask, choices: Choices) -> None:
        Planned.__init__(self, mask, choices)
        program = mask.program
        c = choices
        _, queries, keys = mask.shape
        self.shapes = Shapes(
            program.heads, program.kv_heads, queries, keys, c.head_dim, c.value_dim, c.dtype,
            c.layout,
        )  # fmt: skip
        Attention.__init__(self, program, handle_of(mask, choices))
        _ = self._run  # what cannot run fails here, not at the first call

    @property
    def backend(self) -> str:
        return self.choices.backend

    @property
    def target(self) -> str:
        return self.choices.target

    @property
    def dtype(self) -> torch.dtype:
        return self.choices.dtype

    @property
    def composite(self) -> bool:
        return self.backend == "reference"

    @cached_property
    def _run(self) -> Runs:
        program, c = self.mask.program, self.choices
        if c.backend == "reference":
            return Reference(program, c.scale)
        if c.backend == "torch":
            return TorchBackend(self.plan, c.scale)
        attention = TritonAttention(self.plan, self.plan_of, self._spec, c.scale, c.template)
        if c.tune:
            free = c.q_tile is None and c.kv_tile is None and not program.segmented
            plan_with = self._plan_with if free else None
            attention.kernel = Tuned(attention.rule, plan_with, self._predicted)
        return attention

    @cached_property
    def _decode(self) -> TorchDecode | TritonDecode:
        """Calls with fewer queries than keys."""
        if isinstance(self._run, TritonAttention):
            return TritonDecode(self.mask, self._run.rule)
        return TorchDecode(self.mask.program, self.choices.scale)

    def forward(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, inputs: Tensors,
        q_offset: int | None,
    ) -> Pair:  # fmt: skip
        """(out, lse). Raises BindError, EvalError, CompileError."""
        call = self._call(q, k, v, inputs, q_offset)
        if call.first is None or isinstance(self._run, Reference):
            out, lse = self._run.forward(call)
        else:
            out, lse = self._decode(call)
        return self._turned(out), lse

    def gradients(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, out: torch.Tensor,
        lse: torch.Tensor, do: torch.Tensor, grad_lse: torch.Tensor | None, inputs: Tensors,
        wanted: Sequence[bool],
    ) -> list[torch.Tensor]:  # fmt: skip
        """Those wanted of q, k, v and the inputs."""
        call = self._call(q, k, v, inputs, None)
        named = tuple(n for n, w in zip(call.inputs, wanted[3:], strict=True) if w)
        grad_lse = torch.zeros_like(lse) if grad_lse is None else grad_lse
        own = (self._turned(out), lse, self._turned(do), grad_lse)
        found = self._run.gradients(call, *own, named)
        results = [self._turned(x) for x in found[:3] if x is not None]
        for x, given in zip(found[3:], inputs, strict=True):
            zeros = given.new_zeros(given.shape) if x is None else x.to(given.dtype)
            results.append(zeros.contiguous())
        return [x for x, w in zip(results, wanted, strict=True) if w]

    def differentiable(self, q: torch.Tensor, k: torch.Tensor, inputs: Tensors) -> Sequence[bool]:
        """Which inputs may have a gradient. Raises CompileError where this call has none."""
        axis = 2 if self.choices.layout == "bhnd" else 1
        few = q.ndim == k.ndim == 4 and q.shape[axis] < self.shapes.queries
        if few and self.backend != "reference":
            raise CompileError(
                f"gradients of fewer queries than keys are not supported by the "
                f"{self.backend} backend yet: use backend='reference', or torch.no_grad()"
            )
        return self._able

    def empty(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> Pair:
        """(out, lse) as `forward` lays them, with anything in them."""
        q, v = self._turned(q), self._turned(v)
        shape = q.shape[:3]
        order = [0, 1, 2]
        if self.backend == "triton" and q.stride(1) < q.stride(2):
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
        if self.backend == "torch":
            q = self._turned(named[0])
            found[0] = self._turned(q.new_empty(q.shape))
        found += [x.new_empty(x.shape) for x in inputs]
        return [x for x, w in zip(found, wanted, strict=True) if w]

    def _call(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, inputs: Tensors,
        q_offset: int | None,
    ) -> Call:  # fmt: skip
        named = dict(zip((a.name for a in self._inputs), inputs, strict=True))
        return check_call(self.mask.program, self.shapes, q, k, v, named, q_offset)

    def _turned(self, x: torch.Tensor) -> torch.Tensor:
        """From the layout asked for to (batch, heads, tokens, dim), and back."""
        return x.transpose(1, 2) if self.choices.layout == "bnhd" else x

    def __repr__(self) -> str:
        return f"<kernel of {self.mask!r} ({self.backend})>"


def handle_of(mask: Mask, choices: Choices) -> str:
    """A name and a digest of all that a kernel is compiled from."""
    writer = Writer()
    record = writer.program(mask.program)
    text = json.dumps([record, writer.tables, [repr(x) for x in astuple(choices)]])
    digest = hashlib.blake2b(text.encode(), digest_size=12)
    return f"{mask.pattern.name}-{digest.hexdigest()}"
