"""`Kernel`: attention under one mask, as `compile` gives it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import astuple, replace
from functools import cached_property
from typing import Protocol

import torch

from maskdsl.ir.storage import Writer
from maskdsl.pattern import Mask
from maskdsl.runtime.boundary import Call, Shapes, check_call
from maskdsl.runtime.call import Attention, Pair, Tensors
from maskdsl.runtime.choices import Choices
from maskdsl.runtime.few_queries import FewQueries
from maskdsl.runtime.one_for_all import OneForAll
from maskdsl.runtime.planned import Planned
from maskdsl.runtime.reference import Reference
from maskdsl.runtime.torch_backend import TorchBackend
from maskdsl.runtime.torch_decode import TorchDecode
from maskdsl.runtime.triton_attention import TritonAttention
from maskdsl.runtime.triton_decode import TritonDecode
from maskdsl.runtime.tuning import Tuned


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
    source is cached under. plan_now: what cannot run fails here, not at the first call. one: of
    the mask with open extents that this one was bound of.
    """

    def __init__(
        self, mask: Mask, choices: Choices, plan_now: bool = True, one: OneForAll | None = None
    ) -> None:
        Planned.__init__(self, mask, choices)
        self._one = one
        Attention.__init__(self, mask, choices, handle_of(mask, choices))
        if plan_now:
            _ = self._run

    @cached_property
    def shapes(self) -> Shapes:
        """Of the tensors that calls give."""
        program, c = self.mask.program, self.choices
        _, queries, keys = self.mask.shape
        return Shapes(
            program.heads, program.kv_heads, queries, keys, c.head_dim, c.value_dim, c.dtype,
            c.layout,
        )  # fmt: skip

    @cached_property
    def _run(self) -> Runs:
        program, c = self.mask.program, self.choices
        if c.backend == "reference":
            return Reference(program, c.scale)
        if c.backend == "torch":
            return TorchBackend(self.plan, c.scale)
        attention = TritonAttention(
            self.plan, self.plan_of, self._spec, c.scale, c.template, self._one
        )
        if c.tune:
            free = c.q_tile is None and c.kv_tile is None and not program.segmented
            plan_with = self._plan_with if free else None
            attention.kernel = Tuned(attention.rule, plan_with, self._predicted)
        return attention

    @cached_property
    def _elsewhere(self) -> Kernel:
        """For tensors on no GPU."""
        return Kernel(self.mask, replace(self.choices, backend="torch", anywhere=False))

    def _here(self, q: torch.Tensor) -> Kernel:
        """What runs where q lies."""
        c = self.choices
        away = c.anywhere and c.backend == "triton" and q.device.type != "cuda"
        return self._elsewhere if away else self

    @cached_property
    def _decode(self) -> TorchDecode | TritonDecode:
        """Calls with fewer queries than keys."""
        if self.backend == "triton":
            assert isinstance(self._run, TritonAttention)
            return TritonDecode(self.mask, self._run.rule)
        return TorchDecode(self.mask.program, self.choices.scale)

    def forward(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, inputs: Tensors,
        q_offset: int | None,
    ) -> Pair:  # fmt: skip
        """(out, lse). Raises BindError, EvalError, CompileError."""
        own = self._here(q)
        if own is not self:
            return own.forward(q, k, v, inputs, q_offset)
        call = self._call(q, k, v, inputs, q_offset)
        if call.first is None or self.backend == "reference":
            out, lse = self._run.forward(call)
        else:
            out, lse = self._decode(call)
        return self._turned(out), lse

    def gradients(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, out: torch.Tensor,
        lse: torch.Tensor, do: torch.Tensor, grad_lse: torch.Tensor | None, inputs: Tensors,
        wanted: Sequence[bool], q_offset: int | None,
    ) -> list[torch.Tensor]:  # fmt: skip
        """Those wanted of q, k, v and the inputs."""
        own = self._here(q)
        if own is not self:
            return own.gradients(q, k, v, out, lse, do, grad_lse, inputs, wanted, q_offset)
        call = self._call(q, k, v, inputs, q_offset)
        named = tuple(n for n, w in zip(call.inputs, wanted[3:], strict=True) if w)
        grad_lse = torch.zeros_like(lse) if grad_lse is None else grad_lse
        given_back = (self._turned(out), lse, self._turned(do), grad_lse)
        few = call.first is not None and self.backend != "reference"
        run = FewQueries(self.mask.program, self.choices.scale) if few else self._run
        found = run.gradients(call, *given_back, named)
        results = [
            torch.zeros_like(given) if x is None else self._turned(x)
            for x, given in zip(found[:3], (q, k, v), strict=True)
        ]
        for x, given in zip(found[3:], inputs, strict=True):
            zeros = given.new_zeros(given.shape) if x is None else x.to(given.dtype)
            results.append(zeros.contiguous())
        return [x for x, w in zip(results, wanted, strict=True) if w]

    def empty(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, inputs: Tensors,
        q_offset: int | None,
    ) -> Pair:  # fmt: skip
        """(out, lse) as `forward` lays them, with anything in them. Raises BindError."""
        self._call(q, k, v, inputs, q_offset)
        return super().empty(q, k, v, inputs, q_offset)

    def _call(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, inputs: Tensors,
        q_offset: int | None,
    ) -> Call:  # fmt: skip
        named = dict(zip((a.name for a in self._inputs), inputs, strict=True))
        return check_call(self.mask.program, self.shapes, q, k, v, named, q_offset)

    def __repr__(self) -> str:
        return f"<kernel of {self.mask!r} ({self.backend})>"


def handle_of(mask: Mask, choices: Choices) -> str:
    """A name and a digest of all that a kernel is compiled from."""
    writer = Writer()
    record = writer.program(mask.program)
    text = json.dumps([record, writer.tables, [repr(x) for x in astuple(choices)]])
    digest = hashlib.blake2b(text.encode(), digest_size=12)
    return f"{mask.pattern.name}-{digest.hexdigest()}"
