"""The reference backend: dense attention by the definition, in float64 when asked. Differentiable
by autograd.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from maskdsl.errors import BindError
from maskdsl.ir.definition import dense, host_array, parts, raise_where
from maskdsl.ir.evaluate import evaluate
from maskdsl.ir.logic import FALSE
from maskdsl.ir.nodes import Node, postorder
from maskdsl.ir.program import Program
from maskdsl.runtime.boundary import Call
from maskdsl.runtime.torch_space import TorchSpace, sink_of

MAX_PAIRS = 2**28  # of one head: a dense mask and its scores are held at once


class Reference:
    """Attention of every head over a dense mask: time and memory grow with queries * keys.

    rows: queries that a call gives, where it does not give all.
    """

    def __init__(self, program: Program, scale: float, rows: int | None = None) -> None:
        self.program = program
        self.scale = scale
        queries, keys = rows or program.query_tokens, program.key_tokens
        if queries * keys > MAX_PAIRS:
            raise BindError(f"{queries} x {keys} pairs are too many for the reference backend")
        self.per_head, self.per_batch = varies(program)
        self._decisive = _decisive(program)

    def forward(self, call: Call) -> tuple[torch.Tensor, torch.Tensor]:
        """(out, lse): (batch, heads, queries, value_dim) in q's dtype, (batch, heads, queries) in
        float32 or float64. What keys and values that nobody may see hold does not matter, be it
        infinite or NaN.
        """
        q, k, v, first = call.q, call.k, call.v, call.first or 0
        batch, heads = q.shape[:2]
        group = heads // k.shape[1] if k.shape[1] else 1
        compute = torch.float64 if q.dtype == torch.float64 else torch.float32
        outs, lses = [], []
        masks: dict[tuple[int, int], torch.Tensor] = {}
        host = {n: host_array(n, call.inputs[n]) for n in self._decisive}
        for b in range(batch):
            for h in range(heads):
                key = (b if self.per_batch else 0, h if self.per_head else 0)
                if key not in masks:
                    keep = dense(self.program, h, b, first, q.shape[2], host)
                    masks[key] = torch.from_numpy(keep).to(q.device)
                own = (q[b, h], k[b, h // group], v[b, h // group])
                queries, keys, values = (x.to(compute) for x in own)
                wild = _wild(keys, values, masks[key])
                s = _products(queries, keys, wild) * self.scale
                s = self._score(s, h, b, first, call.inputs)
                s = s.masked_fill(~masks[key], -math.inf)
                lse = torch.logsumexp(s, -1)
                sink = sink_of(self.program, call, b, torch.tensor([h], device=s.device), compute)
                lse = lse if sink is None else torch.logaddexp(lse, sink)
                p = torch.exp(s - lse[:, None].masked_fill(lse[:, None] == -math.inf, 0))
                outs.append(_sums(p, values, wild).to(q.dtype))
                lses.append(lse)
        if not batch:
            return _nothing(call, compute)
        out, lse = torch.stack(outs), torch.stack(lses)
        return out.view(batch, heads, *out.shape[1:]), lse.view(batch, heads, q.shape[2])

    def gradients(
        self, call: Call, out: torch.Tensor, lse: torch.Tensor, do: torch.Tensor,
        grad_lse: torch.Tensor, wanted: tuple[str, ...],
    ) -> list[torch.Tensor | None]:  # fmt: skip
        """Of q, k, v and of each input, by autograd over the same once more."""
        with torch.enable_grad():
            q, k, v = (x.detach().requires_grad_() for x in (call.q, call.k, call.v))
            inputs = {n: x.detach().requires_grad_(n in wanted) for n, x in call.inputs.items()}
            results = self.forward(Call(q, k, v, inputs, call.first))
            leaves = [q, k, v, *(x for x in inputs.values() if x.requires_grad)]
            found = torch.autograd.grad(results, leaves, (do, grad_lse), allow_unused=True)
        own = dict(zip((n for n, x in inputs.items() if x.requires_grad), found[3:], strict=True))
        return [*found[:3], *(own.get(n) for n in inputs)]

    def _score(
        self, s: torch.Tensor, h: int, b: int, first: int, inputs: dict[str, torch.Tensor]
    ) -> torch.Tensor:
        program = self.program
        if all(block.score is None for block in program.all_blocks):
            return s
        scored = s.clone()
        space = TorchSpace(s.device, s.dtype)
        for part in parts(program, h, b, first, s.shape[0]):
            block = part.block
            if block.score is None:
                continue
            leaves = {k: torch.as_tensor(x, device=s.device) for k, x in part.leaves.items()}
            leaves["logit"] = s[part.rows, part.columns]
            if block.score_error != FALSE:
                failed = evaluate(block.score_error, leaves, inputs, space)
                if isinstance(failed, torch.Tensor) and bool(failed.any()):
                    host = {k: _host(x) for k, x in leaves.items()}
                    arrays = {k: _host(x) for k, x in inputs.items()}
                    raise_where(program, block.score_error, _host(failed), host, arrays)
            value = evaluate(block.score, leaves, inputs, space)
            scored[part.rows, part.columns] = value
        return scored


Wild = dict[int, torch.Tensor]


def _wild(keys: torch.Tensor, values: torch.Tensor, keep: torch.Tensor) -> Wild:
    """The keys that are not finite or whose values are not, and the queries that see each."""
    fine = (torch.isfinite(keys) & torch.isfinite(values.sum(-1, keepdim=True))).all(-1)
    return {j: keep[:, j].nonzero()[:, 0] for j in (~fine).nonzero()[:, 0].tolist()}


def _tame(x: torch.Tensor, wild: Wild) -> torch.Tensor:
    at = torch.tensor(list(wild), device=x.device, dtype=torch.int64)
    return x.index_fill(0, at, 0) if wild else x


def _products(queries: torch.Tensor, keys: torch.Tensor, wild: Wild) -> torch.Tensor:
    """Queries times keys; of wild keys only with the queries that see them."""
    s = queries @ _tame(keys, wild).mT
    for j, rows in wild.items():
        s = s.index_put((rows, torch.tensor(j, device=s.device)), queries[rows] @ keys[j])
    return s


def _sums(weights: torch.Tensor, values: torch.Tensor, wild: Wild) -> torch.Tensor:
    """Weighted sums of values; of wild ones only where they are seen."""
    out = weights @ _tame(values, wild)
    for j, rows in wild.items():
        out = out.index_add(0, rows, weights[rows, j, None] * values[j])
    return out


def _nothing(call: Call, compute: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """(out, lse) of an empty batch, which has gradients, all of them zero."""
    floats = [x for x in call.inputs.values() if x.is_floating_point()]
    zero = sum((x.sum() * 0 for x in (call.k, call.v, *floats)), call.q.sum())
    lse = call.q.new_zeros(call.q.shape[:3], dtype=compute) + zero.to(compute)
    out = call.q.new_zeros((*call.q.shape[:3], call.v.shape[3])) + zero.to(call.q.dtype)
    return out, lse


def _host(x: Any) -> Any:
    return x.detach().cpu().numpy() if isinstance(x, torch.Tensor) else np.asarray(x)


def varies(program: Program) -> tuple[bool, bool]:
    """Whether which keys are kept may differ between heads, and between batch entries."""
    reads = postorder(*(n for b in program.all_blocks for n in (b.keep, b.error)))
    return any(n.op == "head" for n in reads), any(_reads_batch(n) for n in reads)


def _decisive(program: Program) -> set[str]:
    """Names of the inputs that say which keys are kept, or what fails. Others may be tensors
    without values on the host, as of torch.func.
    """
    reads = list(postorder(*(n for b in program.all_blocks for n in (b.keep, b.error))))
    loads = {n.value.name for n in reads if n.op == "load" and n.value.is_input}
    return loads | {n.value[0] for n in reads if n.op == "beyond"}


def _reads_batch(node: Node) -> bool:
    return node.op == "batch" or (node.op == "load" and node.value.is_input)
