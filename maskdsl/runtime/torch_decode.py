"""The torch backend for calls with fewer queries than keys: a few queries at a time, over the keys
that any of them sees.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from maskdsl.ir.definition import dense, host_array, positions
from maskdsl.ir.evaluate import evaluate
from maskdsl.ir.program import Program
from maskdsl.runtime import native_decode
from maskdsl.runtime.boundary import Call
from maskdsl.runtime.failures import raise_at_call
from maskdsl.runtime.reference import varies
from maskdsl.runtime.torch_product import kept_products
from maskdsl.runtime.torch_scores import Scores
from maskdsl.runtime.torch_space import TorchSpace, sink_of
from maskdsl.runtime.torch_walk import Walk

PAIRS = 2**20  # of queries and keys whose logits are held at a time, or one query's


class TorchDecode:
    """Attention of few queries, whose masks are evaluated at the call by the definition. Forward
    only. Memory beyond inputs and output is bounded by `PAIRS`, or by the keys.
    """

    def __init__(self, program: Program, scale: float) -> None:
        self.program, self.scale = program, scale
        self.per_head, self.per_batch = varies(program)
        self._scores = Scores(program)

    def __call__(self, call: Call) -> tuple[torch.Tensor, torch.Tensor]:
        """(out, lse), as TorchBackend gives them, for a call that says where its queries
        stand. Raises EvalError.
        """
        raise_at_call(self.program, call)
        assert call.first is not None
        batch, heads, queries, _ = call.q.shape
        compute = torch.float64 if call.q.dtype == torch.float64 else torch.float32
        out = call.q.new_empty((batch, heads, queries, call.v.shape[3]))
        lse = torch.empty((batch, heads, queries), dtype=compute, device=call.q.device)
        host = {n: host_array(n, x) for n, x in call.inputs.items()}
        step = max(1, PAIRS // self.program.key_tokens)
        compiled = not self.per_head and native_decode.serves(self.program, call, self._scores)
        with torch.no_grad():
            for low in range(0, queries, step):
                rows = slice(low, min(low + step, queries))
                at = call.first + rows.start, rows.stop - rows.start
                masks: dict[tuple[int, int], np.ndarray] = {}
                for b in range(batch):
                    for h in range(1 if compiled else heads):
                        key = (b if self.per_batch else 0, h if self.per_head else 0)
                        if key not in masks:
                            masks = {key: dense(self.program, h, b, *at, host)}
                        if compiled:
                            self._attend_compiled(call, b, rows, masks[key], out[b], lse[b])
                        else:
                            o, l = self._attend(call, b, h, rows, masks[key], compute)
                            out[b, h, rows], lse[b, h, rows] = o.to(out.dtype), l
        return out, lse

    def _attend_compiled(
        self, call: Call, b: int, rows: slice, keep: np.ndarray, out: torch.Tensor,
        lse: torch.Tensor,
    ) -> None:  # fmt: skip
        """Write all heads' rows."""
        sink = sink_of(self.program, call, b, torch.arange(len(out)), lse.dtype)
        walk = Walk(
            self.program, tuple(range(len(out))), (), self._scores, self.scale, call, b
        )  # fmt: skip
        native_decode.attend(walk, rows, keep, sink, out, lse)

    def _attend(
        self, call: Call, b: int, h: int, rows: slice, keep: np.ndarray, compute: torch.dtype
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(out, lse) of one head's rows, of which `keep` says what they see."""
        assert call.first is not None
        device = call.q.device
        kv = h // (call.q.shape[1] // call.k.shape[1])
        seen = np.flatnonzero(keep.any(0))
        kept = torch.from_numpy(keep[:, seen]).to(device)
        columns = torch.from_numpy(seen).to(device)
        k, v = (x[b, kv].index_select(0, columns).to(compute) for x in (call.k, call.v))
        s = call.q[b, h, rows].to(compute) @ k.mT * self.scale
        s = self._score(s, call, b, h, call.first + rows.start, seen)
        s = s.masked_fill(~kept, -math.inf)
        lse = torch.logsumexp(s, -1)
        sink = sink_of(self.program, call, b, torch.tensor([h], device=device), compute)
        lse = lse if sink is None else torch.logaddexp(lse, sink)
        weights = torch.exp(s - lse.masked_fill(lse == -math.inf, 0)[:, None])
        found = weights @ v
        if not found.sum().isfinite():  # what some rows do not see may be infinite or NaN
            found = kept_products(weights[None], v.mT[None])[0]
        return found, lse

    def _score(
        self, s: torch.Tensor, call: Call, b: int, h: int, first: int, seen: np.ndarray
    ) -> torch.Tensor:
        """The score clauses applied to logits (rows, keys seen), block by block."""
        space = TorchSpace(s.device, s.dtype)
        rows = np.arange(first, first + len(s))
        for block in (x for x in self.program.all_blocks if x.score is not None):
            leaves: dict[Any, Any] = {"batch": b, "head": h}
            parts = []
            for side, segment, at in (("q", block.queries, rows), ("k", block.keys, seen)):
                ends = np.searchsorted(at, [segment.offset, segment.offset + segment.tokens])
                parts.append(slice(*ends.tolist()))
                places = positions(segment, side, at[parts[-1]] - segment.offset)
                shape = (-1, 1) if side == "q" else (1, -1)
                for name, x in places.items():
                    leaves[name] = torch.from_numpy(x).to(s.device).view(shape)
            part = tuple(parts)
            assert block.score is not None
            s[part] = evaluate(block.score, leaves | {"logit": s[part]}, call.inputs, space)
        return s
