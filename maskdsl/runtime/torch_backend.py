"""The torch backend: attention in plain tensor operations, driven by the plan. The default on a
CPU.

Rows that are equal up to a translation run together: their keys are gathered, one batched product
gives the logits of all keys a
row sees, and one mask serves all. Memory beyond inputs and output is bounded by `BUDGET`, whatever
the number of tokens.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from maskdsl.ir.evaluate import evaluate
from maskdsl.ir.program import Program
from maskdsl.planner.plan import HeadClass, Plan
from maskdsl.runtime.boundary import Call
from maskdsl.runtime.failures import raise_at_call
from maskdsl.runtime.groups import Group, groups_of
from maskdsl.runtime.merge import merge
from maskdsl.runtime.torch_space import TorchSpace

BUDGET = 2**19  # logits held at a time: 2 MB, which a core keeps in its cache and malloc reuses
KEYS = 2**14  # keys of one product: longer rows are cut and merged


@dataclass(frozen=True)
class Part:
    """Some rows of a group on the device: token indices (rows, queries) and (rows, keys)."""

    group: Group
    queries: torch.Tensor
    keys: torch.Tensor
    cap: torch.Tensor | None  # (queries, keys - shared) in float: +inf where kept, -inf where not
    contiguous: bool  # the keys of its one row follow each other


class TorchBackend:
    def __init__(self, plan: Plan, scale: float) -> None:
        self.plan = plan
        self.program = plan.program
        self.scale = scale
        self.groups = [(c, groups_of(plan, c)) for c in plan.head_classes]

    def __call__(self, call: Call, return_lse: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(out, lse): (batch, heads, queries, value_dim) in q's dtype; (batch, heads, queries) in
        float32 (float64 for float64).
        """
        raise_at_call(self.program, call)
        q, v = call.q, call.v
        batch, heads, queries, _ = q.shape
        out = q.new_zeros((batch, heads, queries, v.shape[3]))
        compute = torch.float64 if q.dtype == torch.float64 else torch.float32
        lse = None
        if return_lse:
            lse = torch.full((batch, heads, queries), -math.inf, dtype=compute, device=q.device)
            for b in range(batch):  # what a query without keys has
                sink = sink_of(self.program, call, b, torch.arange(heads, device=q.device), compute)
                if sink is not None:
                    lse[b] = sink[:, None]
        if not batch or not v.shape[3]:
            return out, lse
        with torch.no_grad():
            for c, groups in self.groups:
                for b in range(batch):
                    attend = _Attend(self, call, c, b, compute)
                    for group in groups:
                        for part in _parts(group, len(c.heads), q.device, compute):
                            attend(part, out, lse)
        return out, lse


def _parts(group: Group, heads: int, device: torch.device, compute: torch.dtype) -> Iterator[Part]:
    """The rows of a group, few enough at a time to stay within the budget."""
    queries = torch.from_numpy(group.query_offsets).to(device)
    offsets = torch.from_numpy(group.key_offsets).to(device)
    cap = None
    if group.keep is not None:
        kept = torch.from_numpy(group.keep[:, group.shared :].copy()).to(device)
        limit = torch.tensor(math.inf, dtype=compute, device=device)
        cap = torch.where(kept, limit, -limit)
    segment = torch.from_numpy(group.key_segment).to(device)
    row = len(queries) * min(len(offsets), KEYS) * heads
    step = max(1, BUDGET // max(row, 1))
    for i in range(0, len(group.queries), step):
        q_base = torch.from_numpy(group.queries[i : i + step]).to(device)
        k_base = torch.from_numpy(group.keys[i : i + step]).to(device)
        keys = k_base[:, segment] + offsets
        follow = len(q_base) == 1 and bool((keys[0].diff() == 1).all())
        yield Part(group, q_base[:, None] + queries, keys, cap, follow)


class _Attend:
    """Attention of parts, for some heads of one batch entry."""

    def __init__(
        self, backend: TorchBackend, call: Call, c: HeadClass, b: int, compute: torch.dtype
    ) -> None:
        heads = c.heads
        self.program = backend.program
        self.keeps = c.keeps
        self.scale = backend.scale
        self.call = call
        self.b = b
        self.compute = compute
        device = call.q.device
        group = self.program.heads // self.program.kv_heads
        self.heads = torch.tensor(heads, device=device)
        self.q = call.q[b] if len(heads) == call.q.shape[1] else call.q[b, list(heads)]
        kv = [h // group for h in heads]
        same = kv == list(range(call.k.shape[1]))
        self.k = call.k[b] if same else call.k[b][kv]
        self.v = call.v[b] if same else call.v[b][kv]
        self.sink = sink_of(self.program, call, b, self.heads, compute)
        self.exact = TorchSpace(device, torch.float64)
        self.space = TorchSpace(device, compute)

    def __call__(self, part: Part, out: torch.Tensor, lse: torch.Tensor | None) -> None:
        rows, queries = part.queries.shape
        heads = len(self.heads)
        q = self.q[:, part.queries.reshape(-1)].to(self.compute)
        q = (q * self.scale).reshape(heads * rows, queries, -1)
        pieces = [self._piece(q, part, i) for i in range(0, part.keys.shape[1], KEYS)]
        o, l = pieces[0] if len(pieces) == 1 else merge(pieces)
        if self.sink is not None:
            total = torch.logaddexp(l, self.sink[:, None, None])
            o, l = o * torch.exp(l - total)[..., None], total
        at = part.queries.reshape(-1)
        value = o.reshape(heads, rows * queries, -1).to(out.dtype)
        out[self.b, self.heads[:, None], at[None, :]] = value
        if lse is not None:
            lse[self.b, self.heads[:, None], at[None, :]] = l.reshape(heads, rows * queries)

    def _piece(self, q: torch.Tensor, part: Part, first: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(out, lse) over at most KEYS keys of each row."""
        rows, queries = part.queries.shape
        heads = len(self.heads)
        keys = part.keys[:, first : first + KEYS]
        count = keys.shape[1]
        k, v = self._gather(self.k, keys, part), self._gather(self.v, keys, part)
        s = torch.bmm(q, k.mT).view(heads, rows, queries, count)
        s = self._score(s, part, keys, slice(first, first + count))
        shared = max(0, min(part.group.shared - first, count))
        if part.cap is not None and shared < count:
            at = first + shared - part.group.shared
            partial = s[..., shared:]
            # Forbidden logits become -inf whatever they are, infinities and NaN of overflowing
            # products included.
            torch.nan_to_num(partial, nan=math.inf, posinf=math.inf, neginf=-math.inf, out=partial)
            torch.minimum(partial, part.cap[:, at : at + count - shared], out=partial)
        m = s.amax(-1)
        p = torch.softmax(s, -1)
        empty = m == -math.inf
        l = m - torch.log(p.amax(-1))  # the largest weight is exp(m - lse)
        if bool(empty.any()):
            p = torch.where(empty[..., None], 0, p)
            l = torch.where(empty, -math.inf, l)
        o = torch.bmm(p.view(heads * rows, queries, count), v)
        return o.view(heads, rows, queries, -1), l

    def _gather(self, x: torch.Tensor, keys: torch.Tensor, part: Part) -> torch.Tensor:
        if part.contiguous:
            first = int(keys[0, 0])
            return x[:, first : first + keys.shape[1]].to(self.compute)
        rows, count = keys.shape
        found = x[:, keys.reshape(-1)].to(self.compute)
        return found.view(x.shape[0] * rows, count, x.shape[2])

    def _score(
        self, s: torch.Tensor, part: Part, keys: torch.Tensor, columns: slice
    ) -> torch.Tensor:
        """The score clauses, and the keep clauses where an input decides, block by block."""
        group = part.group
        numbers = group.key_segment[columns]
        whole = len(group.segments) == 1
        for at, number in enumerate(group.segments):
            block = self.program.blocks[group.query_segment][number]
            if block.score is None and not group.varies:
                continue
            chosen = torch.from_numpy(np.flatnonzero(numbers == at)).to(s.device)
            logits = s if whole else s[..., chosen]
            seen = keys if whole else keys[:, chosen]
            scored = self._score_block(logits, group, number, part.queries, seen)
            if whole:
                return scored
            s[..., chosen] = scored
        return s

    def _score_block(
        self, s: torch.Tensor, group: Group, number: int, queries: torch.Tensor, keys: torch.Tensor
    ) -> torch.Tensor:
        block = self.program.blocks[group.query_segment][number]
        leaves: dict[Any, Any] = {"batch": self.b, "head": self.heads[:, None, None, None]}
        for side, segment, at in (
            ("q", block.queries, queries[None, :, :, None]),
            ("k", block.keys, keys[None, :, None, :]),
        ):
            flat = at - segment.offset
            for name, extent in reversed(segment.axes):
                assert extent is not None
                leaves[side, name] = flat % extent
                flat = flat // extent
        if block.score is not None:
            value = evaluate(block.score, leaves | {"logit": s}, self.call.inputs, self.space)
            same = isinstance(value, torch.Tensor)
            s = (value.expand(s.shape) if same else torch.full_like(s, value)).contiguous()
        if group.varies:
            keep = self.keeps[group.query_segment][number]
            truth = evaluate(keep, leaves, self.call.inputs, self.exact)
            kept = torch.as_tensor(truth, device=s.device)
            s = torch.where(kept.expand(s.shape), s, -math.inf)
        return s


def sink_of(
    program: Program, call: Call, b: int, heads: torch.Tensor, compute: torch.dtype
) -> torch.Tensor | None:
    """The sink's logit of each of these heads, (heads,)."""
    if program.sink is None:
        return None
    space = TorchSpace(heads.device, compute)
    value = evaluate(program.sink, {"batch": b, "head": heads}, call.inputs, space)
    return torch.as_tensor(value, dtype=compute, device=heads.device).expand(len(heads))
