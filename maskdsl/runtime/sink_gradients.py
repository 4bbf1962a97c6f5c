"""Gradients of the float inputs that a sink reads: the sink is one more logit in each row."""

from __future__ import annotations

import torch

from maskdsl.ir.differentiate import variables
from maskdsl.ir.program import Program
from maskdsl.runtime.boundary import Call
from maskdsl.runtime.torch_scores import InputGradients
from maskdsl.runtime.torch_space import sink_of


def add_sink(
    found: InputGradients, program: Program, call: Call, b: int, lse: torch.Tensor,
    delta: torch.Tensor,
) -> None:  # fmt: skip
    """Add those of batch entry b.

    lse: (heads, queries), the sink included. delta: the sum of do * out over each row, less the
    gradient of lse. A sink's weight in a row is exp(sink - lse), its value is zero.
    """
    every = torch.arange(len(lse), device=lse.device)
    sink = sink_of(program, call, b, every, delta.dtype)
    if sink is None or program.sink is None:
        return
    weight = torch.exp(sink[:, None] - lse).nan_to_num(nan=0)  # a row may hold nothing at all
    found.add_all(program.sink, {"batch": b, "head": every}, -(weight * delta).sum(-1))


def sink_gradients(
    program: Program, call: Call, lse: torch.Tensor, delta: torch.Tensor, wanted: tuple[str, ...]
) -> dict[str, torch.Tensor]:
    """By name of those wanted inputs that the sink reads; lse, delta: (batch, heads, queries)."""
    if program.sink is None:
        return {}
    read = {n.value.name for n in variables(program.sink) if n.op == "load"}
    found = InputGradients(call, tuple(n for n in wanted if n in read), delta.dtype)
    for b in range(len(lse)):
        add_sink(found, program, call, b, lse[b], delta[b])
    return found.found
