"""Gradients of calls with fewer queries than keys: dense, some queries at a time."""

from __future__ import annotations

from typing import Any

import torch

from maskdsl.ir.program import Program
from maskdsl.runtime.boundary import Call
from maskdsl.runtime.reference import Reference

PAIRS = 2**22  # of queries and keys of all heads, whose logits are held at a time


class FewQueries:
    """By the definition, in float32 or float64. Time grows with queries * keys; memory beyond
    inputs and gradients is bounded by `PAIRS`, or by the keys of all heads.
    """

    def __init__(self, program: Program, scale: float) -> None:
        self._keys = program.key_tokens
        self._rows = Reference(program, scale, rows=1)

    def gradients(
        self, call: Call, out: torch.Tensor, lse: torch.Tensor, do: torch.Tensor,
        grad_lse: torch.Tensor, wanted: tuple[str, ...],
    ) -> list[torch.Tensor | None]:  # fmt: skip
        """Of q, k, v and of each input; call says where its queries stand."""
        assert call.first is not None
        compute = torch.float64 if call.q.dtype == torch.float64 else torch.float32
        q, k, v, do = (x.to(compute) for x in (call.q, call.k, call.v, do))
        batch, heads, queries, _ = q.shape
        dq, dk, dv = (torch.zeros_like(x) for x in (q, k, v))
        sums: list[torch.Tensor | None] = []
        for name, x in call.inputs.items():
            sums.append(x.new_zeros(x.shape, dtype=compute) if name in wanted else None)
        step = max(1, PAIRS // max(1, self._keys * batch * heads))
        for low in range(0, queries if batch else 0, step):
            rows = slice(low, min(low + step, queries))
            part = Call(q[:, :, rows], k, v, call.inputs, call.first + low)
            o, l, d_o, d_l = (x[:, :, rows] for x in (out, lse, do, grad_lse))
            with _recorded():
                found = self._rows.gradients(part, o, l, d_o, d_l, wanted)
            for total, y in zip((dq[:, :, rows], dk, dv, *sums), found, strict=True):
                if total is not None and y is not None:
                    total += y
        named = (call.q, call.k, call.v)
        return [*(x.to(y.dtype) for x, y in zip((dq, dk, dv), named, strict=True)), *sums]


def _recorded() -> Any:
    """Inside an operator nothing is recorded for gradients. Here it is."""
    c = torch._C
    excluded = c._dispatch_tls_local_exclude_set()
    for key in (c.DispatchKey.AutogradFunctionality, c.DispatchKey.ADInplaceOrView):
        excluded = excluded.remove(key)
    return c._ForceDispatchKeyGuard(c._dispatch_tls_local_include_set(), excluded)
