"""What attention gives for some query rows, in float64 from `mask.dense` and `mask.scores`: the
definition, a row at a time, at sizes where the whole mask fits no memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

import maskdsl

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]

ROWS = 8  # of every head looked at
OUT, GRADIENT = "out", "gradient"
# Of ||got - wanted|| / ||wanted||: bf16 and fp16 operands are good for 1e-3 to 1e-2, and gradients
# go through one more rounding.
TOLERANCE = {
    torch.bfloat16: {OUT: 1e-2, GRADIENT: 2e-2},
    torch.float16: {OUT: 3e-3, GRADIENT: 6e-3},
    torch.float32: {OUT: 1e-4, GRADIENT: 1e-4},
}
LSE_TOLERANCE = 1e-3  # products of bf16 are exact in float32, which sums them
POISONED = 2  # rows that are asked again with huge values where they must not look
HUGE = 2.0**-12  # of the largest float32, so that products of 128 features stay finite
STEP = 2.0**-10  # of the difference quotient of scores


@dataclass(frozen=True)
class Row:
    """One query of one head: what it keeps, bool (keys,), and its value."""

    batch: int
    head: int
    row: int
    keep: Tensor
    logits: Tensor
    slope: Tensor  # d score / d logit
    p: Tensor
    out: Tensor
    lse: float


class Truth:
    """Reference rows of one problem.

    mask: of the whole problem; q, k, v: (batch, heads, tokens, dim), k and v with kv_heads. inputs:
    as for `mask.dense`, arrays. Fewer queries than keys stand at the end.
    """

    def __init__(
        self, mask: maskdsl.Mask, q: Tensor, k: Tensor, v: Tensor, inputs: Mapping[str, Any]
    ) -> None:
        self.q, self.k, self.v = q, k, v
        self.mask, self.inputs = mask, inputs
        self.group = q.shape[1] // k.shape[1]
        self.first = k.shape[2] - q.shape[2]
        self.tolerance = TOLERANCE[q.dtype]
        self.rows = [self._row(b, h, r) for b, h, r in _places(*q.shape[:3])]

    def _row(self, batch: int, head: int, row: int) -> Row:
        at = self.first + row
        given = {"head": head, "batch": batch, "q_offset": at, **self.inputs}
        dense = self.mask.dense(queries=1, **given)[0]
        keep = torch.from_numpy(dense).to(self.q.device)
        k, v = (x[batch, head // self.group].double() for x in (self.k, self.v))
        logits = k @ self.q[batch, head, row].double() * self.q.shape[-1] ** -0.5
        host = logits.cpu().numpy()[None]

        def scores(values: np.ndarray) -> Tensor:
            return torch.from_numpy(self.mask.scores(values, **given)[0]).to(self.q.device)

        score = scores(host)
        slope = (scores(host + STEP) - scores(host - STEP)) / (2 * STEP)
        s = score.masked_fill(~keep, -torch.inf)
        lse = torch.logsumexp(s, 0)
        p = torch.exp(s - lse) if keep.any() else torch.zeros_like(s)
        slope = slope.masked_fill(~keep, 0.0)
        return Row(batch, head, row, keep, logits, slope, p, p @ v, float(lse))

    def check_forward(self, attention: Attention) -> dict[str, Any]:
        """Errors of the rows, and of rows whose forbidden keys are huge."""
        _foul(self.q)
        out = attention(self.q, self.k, self.v)
        if out.shape != (*self.q.shape[:3], self.v.shape[3]):
            return {"ok": False, "why": f"gave shape {tuple(out.shape)}"}
        got = torch.stack([out[r.batch, r.head, r.row].double() for r in self.rows])
        error = _relative(got, torch.stack([r.out for r in self.rows]))
        finite = bool(torch.isfinite(out).all())
        del out, got
        poisoned = [self._poisoned(attention, r) for r in self._partial_rows()]
        worst = max([error, *poisoned])
        return {
            "ok": finite and worst <= self.tolerance[OUT],
            "rows": len(self.rows),
            "error": error,
            "poisoned_error": max(poisoned, default=None),
            "finite": finite,
        }

    def check_lse(self, lse: Tensor, ok: bool) -> dict[str, Any]:
        """The largest error of the log-sum-exp (batch, heads, queries) at the rows. ok: whether all
        was right so far.
        """
        errors = [float(lse[r.batch, r.head, r.row]) - r.lse for r in self.rows]
        error = float(np.abs(errors).max())
        return {"ok": ok and error <= LSE_TOLERANCE, "lse_error": error}

    def check_backward(self, attention: Attention) -> dict[str, Any]:
        """Errors of all gradients for an upstream gradient that is zero but at the rows: then
        these rows alone decide what every key and value gets.
        """
        q, k, v = (x.detach().requires_grad_() for x in (self.q, self.k, self.v))
        out = attention(q, k, v)
        upstream = torch.zeros_like(out)
        generator = torch.Generator().manual_seed(1)
        for r in self.rows:
            noise = torch.randn(out.shape[-1], generator=generator, dtype=torch.float64)
            upstream[r.batch, r.head, r.row] = noise.to(upstream)
        got = dict(zip("qkv", torch.autograd.grad(out, (q, k, v), upstream), strict=True))
        wanted = self._gradients(upstream)
        errors = {}
        stray = 0.0  # where there must be none
        for name, parts in wanted.items():
            left = got[name].detach().clone()
            places = list(parts)
            have = torch.stack([left[at].double() for at in places])
            errors[name] = _relative(have, torch.stack([parts[at] for at in places]))
            for at in places:
                left[at] = 0
            most = float(left.abs().max())
            stray = max(stray, most) if np.isfinite(most) else float("inf")
        worst = max(errors.values())
        return {
            "ok": stray == 0 and worst <= self.tolerance[GRADIENT],
            "error": worst,
            "errors": errors,
            "stray": stray,
        }

    def _gradients(self, upstream: Tensor) -> dict[str, dict[tuple[int, ...], Tensor]]:
        """By "q", "k" and "v" what is not zero: rows of q, heads of k and v, in float64."""
        scale = self.q.shape[-1] ** -0.5
        dq: dict[tuple[int, ...], Tensor] = {}
        dk: dict[tuple[int, ...], Tensor] = {}
        dv: dict[tuple[int, ...], Tensor] = {}
        for r in self.rows:
            at = r.batch, r.head // self.group
            k, v = self.k[at].double(), self.v[at].double()
            up = upstream[r.batch, r.head, r.row].double()
            ds = r.p * (v @ up - up @ r.out) * r.slope * scale
            dq[r.batch, r.head, r.row] = ds @ k
            zero = torch.zeros_like(k)
            dk[at] = dk.get(at, zero) + torch.outer(ds, self.q[r.batch, r.head, r.row].double())
            dv[at] = dv.get(at, zero) + torch.outer(r.p, up)
        return {"q": dq, "k": dk, "v": dv}

    def _partial_rows(self) -> list[Row]:
        return [r for r in reversed(self.rows) if not bool(r.keep.all())][:POISONED]

    def _poisoned(self, attention: Attention, r: Row) -> float:
        """The error of a row whose forbidden keys and values are huge, and would win if seen."""
        huge = torch.finfo(torch.float32).max * HUGE
        huge = min(huge, torch.finfo(self.q.dtype).max)
        at = r.batch, r.head // self.group
        k, v = self.k.clone(), self.v.clone()
        k[at] = torch.where(
            r.keep[:, None], k[at], torch.sign(self.q[r.batch, r.head, r.row]) * huge
        )
        v[at] = torch.where(r.keep[:, None], v[at], torch.full_like(v[at], huge))
        out = attention(self.q, k, v)[r.batch, r.head, r.row].double()
        return _relative(out, r.out)


def _places(batches: int, heads: int, queries: int) -> list[tuple[int, int, int]]:
    """(batch, head, row) of what is looked at: ends, the middle and some at random."""
    generator = np.random.default_rng(0)
    found = []
    for b, h in dict.fromkeys(
        [(0, 0), (batches // 2, min(1, heads - 1)), (batches - 1, heads - 1)]
    ):
        fixed = [0, queries - 1, queries // 2, min(127, queries - 1), min(128, queries - 1)]
        some = generator.integers(0, queries, ROWS - len(fixed)).tolist()
        found += [(b, h, int(r)) for r in dict.fromkeys(fixed + some)]
    return found


def _relative(got: Tensor, wanted: Tensor) -> float:
    """||got - wanted|| / ||wanted||; infinity where something is no number."""
    error = float((got - wanted).norm() / wanted.norm().clamp(min=1e-30))
    return error if np.isfinite(error) else float("inf")


def _foul(like: Tensor) -> None:
    """Leaves NaN in the memory that the next output of this size is likely to get: what a kernel
    does not write shows.
    """
    torch.full_like(like, torch.nan)
