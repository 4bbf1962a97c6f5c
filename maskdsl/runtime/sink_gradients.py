"""Gradients of the float inputs that a sink reads: the sink is one more logit in each row."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import torch

from maskdsl.ir.program import Program
from maskdsl.runtime.boundary import Call
from maskdsl.runtime.torch_backend import sink_of


def sink_gradients(
    program: Program, call: Call, lse: torch.Tensor, delta: torch.Tensor, wanted: Iterable[str]
) -> dict[str, torch.Tensor]:
    """By name of those wanted inputs that the sink reads.

    lse: (batch, heads, queries), the sink included; its type is that of the work. delta: the sum of
    do * out over each row, less the gradient of lse. A sink's weight in a row is exp(sink - lse),
    its value is zero.
    """
    batch, heads, _ = lse.shape
    if program.sink is None or not batch:
        return {}
    with torch.enable_grad():
        inputs = {n: x.detach() for n, x in call.inputs.items()}
        leaves = {n: inputs[n].requires_grad_() for n in wanted}
        every = torch.arange(heads, device=lse.device)
        again = replace(call, inputs=inputs)
        rows = (sink_of(program, again, b, every, lse.dtype) for b in range(batch))
        sinks = torch.stack([row for row in rows if row is not None])
    if not sinks.requires_grad:
        return {}
    finite = lse.masked_fill(lse == -torch.inf, 0)
    slopes = -(torch.exp(sinks.detach()[..., None] - finite) * delta).sum(-1)
    found = torch.autograd.grad(sinks, list(leaves.values()), slopes, allow_unused=True)
    return {n: x for n, x in zip(leaves, found, strict=True) if x is not None}
