"""What kernels must give, from `mask.dense` and `mask.scores` in float64 alone, and the ways to
catch them reading what they must not: everything by the public API.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor

import maskdsl

TOLERANCE = {torch.float32: 1e-4, torch.float16: 2e-3}  # of the largest entry of a head
HUGE = {torch.float32: 3e37, torch.float16: 3e4}  # keys and values nobody may see
LARGE = {torch.float32: 1e15, torch.float16: 100.0}  # queries and gradients that see nothing
GUARD = 1 << 14  # elements to either side of a tensor
STEP = 2.0**-13  # of difference quotients: their errors are about 1e-8

Sink = Callable[[Mapping[str, Tensor], int], Tensor]  # the logit of a head


@dataclass(frozen=True)
class Problem:
    """A kernel to call, on small whole numbers.

    inputs: numpy arrays by name. sink: its logit by head, where the pattern has one: neither
    `dense` nor `scores` tell. queries: fewer than keys (decoding), where given.
    """

    mask: maskdsl.Mask
    tiles: Mapping[str, Any] = field(default_factory=dict)
    inputs: Mapping[str, np.ndarray] = field(default_factory=dict)
    head_dim: int = 16
    value_dim: int = 16
    dtype: torch.dtype = torch.float32
    layout: str = "bhnd"
    batch: int = 2
    sink: Sink | None = None
    queries: int | None = None

    @cached_property
    def kernel(self) -> maskdsl.Kernel:
        return maskdsl.compile(
            self.mask, self.head_dim, self.dtype, value_dim=self.value_dim, backend="triton",
            target="sm_90", layout=self.layout, **self.tiles,
        )  # fmt: skip

    @property
    def group(self) -> int:
        return self.mask.heads // self.mask.kv_heads

    @cached_property
    def keep(self) -> Tensor:
        """The definition, bool (batch, heads, queries, keys)."""
        rows = [
            [
                self.mask.dense(head=h, batch=b, queries=self.queries, **self.inputs)
                for h in range(self.mask.heads)
            ]
            for b in range(self.batch)
        ]
        return torch.from_numpy(np.array(rows))

    @cached_property
    def tensors(self) -> Tensors:
        """Whole numbers from -2 to 2."""
        heads, _, keys = self.mask.shape
        g = torch.Generator().manual_seed(3)

        def make(heads: int, tokens: int, dim: int) -> Tensor:
            shape = (self.batch, heads, tokens, dim)
            return torch.randint(-2, 3, shape, generator=g).to(self.dtype)

        queries = self.keep.shape[2]
        return Tensors(
            make(heads, queries, self.head_dim),
            make(self.mask.kv_heads, keys, self.head_dim),
            make(self.mask.kv_heads, keys, self.value_dim),
            make(heads, queries, self.value_dim),
            torch.randint(-2, 3, (self.batch, heads, queries), generator=g).float(),
        )

    def run(self, x: Tensors) -> dict[str, Tensor]:
        """The kernel's results and gradients by name, in (batch, heads, tokens, dim)."""
        swap = self.layout == "bnhd"

        def given(y: Tensor) -> Tensor:
            y = y.transpose(1, 2) if swap else y
            return guarded(y.shape, y.dtype).copy_(y).requires_grad_()

        leaves = {"q": given(x.q), "k": given(x.k), "v": given(x.v)}
        named = {n: torch.from_numpy(y) for n, y in self.inputs.items()}
        for name, y in named.items():
            if y.is_floating_point():
                leaves[name] = named[name] = y.float().requires_grad_()
        q, k, v = (leaves[n] for n in "qkv")
        do = given(x.do).detach()
        with fouled_memory():
            out, lse = self.kernel(q, k, v, return_lse=True, **named)
            grads = torch.autograd.grad([out, lse], list(leaves.values()), [do, x.of_lse])
        found = {"out": out.detach(), **{f"d{n}": g for n, g in zip(leaves, grads, strict=True)}}
        if swap:
            four = ("out", "dq", "dk", "dv")
            found |= {n: found[n].transpose(1, 2) for n in four}
        return {**found, "lse": lse.detach()}

    @cached_property
    def found(self) -> dict[str, Tensor]:
        return self.run(self.tensors)

    @cached_property
    def wanted(self) -> dict[str, Tensor]:
        """As `found`, float64, by the definition."""
        x = self.tensors
        leaves = {n: getattr(x, n).double().requires_grad_() for n in "qkv"}
        named = {n: torch.from_numpy(y) for n, y in self.inputs.items()}
        for name, y in named.items():
            if y.is_floating_point():
                leaves[name] = named[name] = y.double().requires_grad_()
        q, k, v = (leaves[n] for n in "qkv")
        outs, lses = [], []
        for b in range(self.batch):
            for h in range(self.mask.heads):
                at = b, h // self.group
                logits = q[b, h] @ k[at].T * self.head_dim**-0.5
                scored = _Scores.apply(self.mask, b, h, tuple(named), logits, *named.values())
                sink = None if self.sink is None else self.sink(named, h)
                out, lse = _softmax(scored, self.keep[b, h], v[at], sink)
                outs.append(out)
                lses.append(lse)
        shape = self.batch, self.mask.heads, -1
        out = torch.stack(outs).view(*shape, self.value_dim)
        lse = torch.stack(lses).view(*shape[:2], out.shape[2])
        finite = lse.masked_fill(lse == -torch.inf, 0)  # what a query without keys gives is no sum
        upstream = [x.do.double(), x.of_lse.double()]
        grads = torch.autograd.grad([out, finite], list(leaves.values()), upstream)
        found = {f"d{n}": g for n, g in zip(leaves, grads, strict=True)}
        return {"out": out.detach(), **found, "lse": lse.detach()}


@dataclass(frozen=True)
class Tensors:
    """q, k, v, and the gradients of the output and of the log-sum-exp: (batch, heads, tokens, dim)
    and float32 (batch, heads, queries).
    """

    q: Tensor
    k: Tensor
    v: Tensor
    do: Tensor
    of_lse: Tensor

    def copy(self) -> Tensors:
        return Tensors(*(x.clone() for x in (self.q, self.k, self.v, self.do, self.of_lse)))


def guarded(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """A contiguous tensor of NaN (of huge ints) between others of them: what a kernel does not
    write, and what it reads past an end, shows.
    """
    size = math.prod(shape)
    foul: float = torch.nan
    if not dtype.is_floating_point:
        foul = 1 if dtype == torch.bool else torch.iinfo(dtype).max
    return torch.full((size + 2 * GUARD,), foul, dtype=dtype)[GUARD : GUARD + size].view(*shape)


@contextmanager
def fouled_memory() -> Iterator[None]:
    """Python's allocations of tensors are guarded."""

    def shaped(*shape: Any) -> Sequence[int]:
        return shape[0] if shape and not isinstance(shape[0], int) else shape

    def new_empty(like: Tensor, *shape: Any, dtype: torch.dtype | None = None, **_: Any) -> Tensor:
        return guarded(shaped(*shape), dtype or like.dtype)

    def empty(*shape: Any, dtype: torch.dtype | None = None, **_: Any) -> Tensor:
        return guarded(shaped(*shape), dtype or torch.float32)

    def empty_like(like: Tensor, **_: Any) -> Tensor:
        order = sorted(range(like.ndim), key=like.stride, reverse=True)
        dense = guarded([like.shape[i] for i in order], like.dtype)
        return dense.permute([order.index(i) for i in range(like.ndim)])

    with (
        patch.object(torch.Tensor, "new_empty", new_empty),
        patch.object(torch, "empty", empty),
        patch.object(torch, "empty_like", empty_like),
    ):
        yield


class _Scores(torch.autograd.Function):
    """`mask.scores`, differentiated by difference quotients: of logits and of the float inputs."""

    @staticmethod
    def forward(
        ctx: Any, mask: maskdsl.Mask, b: int, h: int, names: tuple[str, ...], logits: Tensor,
        *inputs: Tensor,
    ) -> Tensor:  # fmt: skip
        ctx.call = mask, b, h, names
        ctx.save_for_backward(logits, *inputs)
        return _scores(ctx.call, logits, inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        logits, *inputs = ctx.saved_tensors

        def quotient(up: tuple[Tensor, list[Tensor]], down: tuple[Tensor, list[Tensor]]) -> Tensor:
            return (_scores(ctx.call, *up) - _scores(ctx.call, *down)) / (2 * STEP)

        found: list[Tensor | None] = []
        for i, x in enumerate(inputs):
            if not x.is_floating_point():
                found.append(None)
                continue
            slopes = torch.zeros_like(x)
            for place in np.ndindex(*x.shape):
                step = torch.zeros_like(x)
                step[place] = STEP
                moved = [[*inputs[:i], y, *inputs[i + 1 :]] for y in (x + step, x - step)]
                slopes[place] = (grad * quotient((logits, moved[0]), (logits, moved[1]))).sum()
            found.append(slopes)
        slope = quotient((logits + STEP, inputs), (logits - STEP, inputs))
        return None, None, None, None, grad * slope, *found


def _scores(call: Any, logits: Tensor, inputs: Any) -> Tensor:
    mask, b, h, names = call
    named = {n: x.detach().numpy() for n, x in zip(names, inputs, strict=True)}
    return torch.from_numpy(mask.scores(logits.detach().numpy(), head=h, batch=b, **named))


def _softmax(s: Tensor, keep: Tensor, v: Tensor, sink: Tensor | None) -> tuple[Tensor, Tensor]:
    """(out, lse) of one head; the sink is one more logit, without a value."""
    s = torch.where(keep, s, -torch.inf)
    peak = s.detach().amax(1)
    if sink is not None:
        peak = torch.maximum(peak, sink.detach())
    peak = peak.masked_fill(peak == -torch.inf, 0)[:, None]
    weights = torch.exp(s - peak)
    total = weights.sum(1, keepdim=True)
    if sink is not None:
        total = total + torch.exp(sink - peak)
    some = total > 0
    lse = torch.where(some, torch.log(torch.where(some, total, 1)) + peak, -torch.inf)
    return weights @ v / torch.where(some, total, 1), lse[:, 0]


def check_values(p: Problem) -> None:
    """All results and gradients against float64; exact zeros where no pair is kept."""
    assert p.found.keys() == p.wanted.keys()
    for name, want in p.wanted.items():
        found = p.found[name].double()
        assert found.shape == want.shape, name
        heads = want[:, :, None] if want.ndim == 3 else want  # lse; inputs are taken whole
        if name not in ("out", "lse", "dq", "dk", "dv"):
            heads = want.reshape(1, 1, 1, -1)
        least = 1.0 if name in ("out", "lse") else 1e-3
        largest = heads.abs().nan_to_num(posinf=0).amax((2, 3)).clamp(min=least)
        off = (found - want).abs()
        off = torch.where(found == want, 0, off)  # both minus infinity
        worst = (off.reshape(*largest.shape, -1).amax(2) / largest).amax()
        assert worst <= TOLERANCE[p.dtype], f"{name}: {worst:.2e} of the largest"
    blind = ~p.keep.any(3)  # queries without keys
    unseen = ~p.keep.any(2)  # keys without queries
    unseen = unseen.view(p.batch, p.mask.kv_heads, p.group, -1).all(2)
    assert (p.found["out"][blind] == 0).all()
    assert (p.found["dq"][blind] == 0).all()
    if p.sink is None:
        assert (p.found["lse"][blind] == -torch.inf).all()
    assert (p.found["dk"][unseen] == 0).all()
    assert (p.found["dv"][unseen] == 0).all()


def check_hidden(p: Problem) -> None:
    """What a query may not see changes no bit of its output and gradient, and what may not see a
    key changes no bit of the key's: huge values where pairs are forbidden, NaN where no tile is
    visited. A query is asked in the first batch's first key head, a key in the last's last.
    """
    assert p.batch * p.mask.kv_heads > 1
    x = p.tensors.copy()
    query, key = _places(p)
    head = _hide_from_query(p, x, query)
    _hide_from_key(p, x, key)
    again = p.run(x)
    for name in ("out", "lse", "dq"):
        one = again[name][0, head, query]
        assert torch.equal(one, p.found[name][0, head, query]), (name, query)
    for name in ("dk", "dv"):
        assert torch.equal(again[name][-1, -1, key], p.found[name][-1, -1, key]), (name, key)


def check_hidden_from_inputs(p: Problem) -> None:
    """What a query may not see changes no bit of the gradients of float inputs: one query of each
    head has gradients, and values that it may not see are so huge that their products overflow.
    """
    names = [f"d{n}" for n, x in p.inputs.items() if x.dtype.kind == "f"]
    assert names
    query = 2 * p.keep.shape[2] // 3
    x = p.tensors.copy()
    x.do.zero_()
    x.do[:, :, query] = 2
    x.of_lse.zero_()
    found = p.run(x)
    seen = p.keep[:, :, query].view(p.batch, p.mask.kv_heads, p.group, -1).any(2)
    x.v[~seen] = HUGE[p.dtype]
    again = p.run(x)
    for name in names:
        assert (found[name] != 0).any(), name
        assert torch.equal(again[name], found[name]), name


def _places(p: Problem) -> tuple[int, int]:
    """A query of head 0 and a key of the last head that see and are seen, but not by all."""
    sees = p.keep[0, 0].sum(1)
    seen = p.keep[-1, -p.group :].any(0).sum(0)
    found = []
    for counts, most in ((sees, p.keep.shape[3]), (seen, p.keep.shape[2])):
        good = torch.nonzero((counts > 0) & (counts < most))[:, 0]
        good = good if len(good) else torch.nonzero(counts > 0)[:, 0]
        found.append(int(good[2 * len(good) // 3]) if len(good) else 0)
    return found[0], found[1]


def _hide_from_query(p: Problem, x: Tensors, query: int) -> int:
    """Fouls what it may not see, in batch 0 and head 0 (whose number is given)."""
    hidden = ~p.keep[0, 0, query]
    x.k[0, 0, hidden] = HUGE[p.dtype]
    x.v[0, 0, hidden] = HUGE[p.dtype]
    plan = p.kernel.plan
    shift = 0 if p.queries is None else p.mask.shape[1] - p.queries
    for row in range(plan.q_tiles):
        if query + shift in plan.tokens("q", row):
            visited = {tile for tile, _ in plan.rows(0)[row]}
            for tile in set(range(plan.kv_tiles)) - visited:
                tokens = torch.from_numpy(plan.tokens("k", tile))
                assert hidden[tokens].all()  # the plan is right
                x.k[0, 0, tokens] = torch.nan
                x.v[0, 0, tokens] = torch.nan
    return 0


def _hide_from_key(p: Problem, x: Tensors, key: int) -> None:
    """Fouls the queries, and the gradients of what they give, that may not see it, in the last
    batch and the last key head.
    """
    plan = p.kernel.plan
    columns = [t for t in range(plan.kv_tiles) if key in plan.tokens("k", t)]
    for head in range(p.mask.heads - p.group, p.mask.heads):
        blind = ~p.keep[-1, head, :, key]
        x.q[-1, head, blind] = LARGE[p.dtype]
        x.do[-1, head, blind] = LARGE[p.dtype]
        if p.queries is not None:
            continue  # rows of a plan are not rows of the call
        rows = plan.rows(head)
        for row in range(plan.q_tiles):
            if not any(tile in columns for tile, _ in rows[row]):
                tokens = torch.from_numpy(plan.tokens("q", row))
                assert blind[tokens].all()
                x.q[-1, head, tokens] = torch.nan
                x.do[-1, head, tokens] = torch.nan
