"""Masks that kernels are tested with, and attention by the definition."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from random_patterns import random_case

import maskdsl
from maskdsl.codegen import Spec
from maskdsl.planner import Plan, Tile

RADIAL = """pattern radial(decay: float = 1.0, least: int = 128, anchor: bool = true)
over (t, s)                                  # frame, token inside the frame
let gap   = abs(q.t - k.t)
let share = 2 ** bit_length(s.size) / 2 ** bit_length(gap)
let reach = if gap <= 1 then s.size else max(share * decay, least)
let every = if share >= least then 1 else int(least / share)
keep abs(q.s - k.s) <= reach and gap % every == 0
keep anchor and k.t == 0                     # every frame sees the first
"""
PACKED = """pattern packed_alibi(window: int)
over (n)
input doc[batch, n]: int
input slope[heads]: float
let distance = q.n - k.n
keep distance >= 0 and doc[batch, q.n] == doc[batch, k.n]
     and (head < heads // 2 or distance < window)
score logit - slope[head] * distance
"""


@dataclass(frozen=True)
class Case:
    """A mask, its tiles and its shapes; inputs: names to (shape, "int" or "float")."""

    text: str
    values: dict[str, int | float]
    q_tile: tuple[int, ...]
    kv_tile: tuple[int, ...]
    head_dim: int = 16
    value_dim: int = 16
    dtype: torch.dtype = torch.float32
    layout: str = "bhnd"
    batch: int = 1
    inputs: dict[str, tuple[tuple[int, ...], str]] = field(default_factory=dict)

    def mask(self) -> maskdsl.Mask:
        return maskdsl.parse(self.text).bind(**self.values)

    def plan(self) -> Plan:
        return self.mask().plan(self.q_tile, self.kv_tile)

    def spec(self, target: str = "sm_90") -> Spec:
        return Spec(self.head_dim, self.value_dim, str(self.dtype).removeprefix("torch."), target)

    def tensors(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
        """Small whole numbers, (batch, heads, tokens, dim) in the case's layout."""
        mask = self.mask()
        heads, queries, keys = mask.shape
        g = torch.Generator().manual_seed(0)

        def make(heads: int, tokens: int, dim: int) -> torch.Tensor:
            shape = (self.batch, heads, tokens, dim)
            if self.layout == "bnhd":
                shape = (self.batch, tokens, heads, dim)
            x = torch.randint(-2, 3, shape, generator=g).to(self.dtype)
            return x.transpose(1, 2) if self.layout == "bnhd" else x

        q, k = make(heads, queries, self.head_dim), make(mask.kv_heads, keys, self.head_dim)
        inputs = {}
        for name, (shape, kind) in self.inputs.items():
            whole = torch.randint(0, 4, shape, generator=g).sort(-1).values
            real = torch.rand(shape, generator=g)
            inputs[name] = {"int": whole, "bool": whole > 1, "float": real}[kind]
        return q, k, make(mask.kv_heads, keys, self.value_dim), inputs


CASES = {
    "causal": Case(
        "pattern causal over (n) keep causal(n)", {"n": 101, "heads": 4, "kv_heads": 2},
        (32,), (32,), batch=2,
    ),
    "causal_divisible": Case("pattern causal over (n) keep causal(n)", {"n": 128}, (32,), (16,)),
    "full": Case("pattern full over (n) -> (m)", {"n": 37, "m": 70}, (16,), (16,), value_dim=40),
    "window": Case(
        "pattern window(w: int) over (n) keep causal(n) and near(n, w)", {"n": 211, "w": 40},
        (16,), (32,), head_dim=72, value_dim=72, dtype=torch.float16, layout="bnhd", batch=2,
    ),
    "dilated": Case(
        "pattern dilated over (n) keep dilated(n, 4, 3)", {"n": 97}, (16,), (16,), 80, 20
    ),
    "blocks": Case("pattern blocks over (n) keep block(n, 24)", {"n": 101}, (16,), (16,)),
    "neighborhood_1d": Case(
        "pattern near1 over (n) keep neighborhood(n, 9, stride=4, dilation=3)",
        {"n": 89}, (16,), (16,),
    ),
    "neighborhood_2d": Case(
        "pattern near2 over (h, w) keep neighborhood(h, 5, 2, 2) and neighborhood(w, 3, 1, 3)",
        {"h": 13, "w": 13, "heads": 2}, (4, 8), (4, 4), dtype=torch.float16,
    ),
    "neighborhood_3d": Case(
        "pattern near3 over (t, h, w) keep neighborhood(t, 3) and neighborhood(h, 5, 2)"
        " and neighborhood(w, 3, 1, 2, true)",
        {"t": 5, "h": 7, "w": 7}, (2, 4, 4), (1, 4, 4),
    ),
    "radial": Case(RADIAL, {"t": 13, "s": 11, "decay": 0.95, "least": 6}, (4, 8), (4, 8)),
    "packed": Case(
        PACKED, {"n": 101, "window": 30, "heads": 4, "kv_heads": 2}, (32,), (32,), batch=2,
        inputs={"doc": ((2, 101), "int"), "slope": ((4,), "float")},
    ),
    "mixture": Case(
        "pattern mixture over (n) keep causal(n) and (head < 2 or (q.n - k.n) % (head + 1) == 0)",
        {"n": 83, "heads": 4}, (16,), (16,),
    ),
    "some_see_nothing": Case(
        "pattern sparse over (n) keep q.n > 50 and k.n < 10", {"n": 101}, (16,), (16,)
    ),
    "soft_cap": Case(
        "pattern capped over (n) keep causal(n)"
        " score 2.0 * tanh(logit / 2.0) - exp(-0.5 * (q.n - k.n))"
        " score if logit > 1 then 1.0 else logit",
        {"n": 67}, (16,), (16,),
    ),
    "random": Case(
        "pattern random over (n) keep random(7, q.n // 8, k.n // 8) < 0.3 or q.n == k.n",
        {"n": 101}, (16,), (16,),
    ),
    "looked_up": Case(
        "pattern looked_up over (n) input pick[heads, _]: int input ok[n]: bool\n"
        "keep (0 <= q.n - k.n < 20 and pick[head, q.n - k.n] == 1) or (ok[q.n] and k.n < 3)",
        {"n": 43, "heads": 2}, (16,), (16,),
        inputs={"pick": ((2, 20), "int"), "ok": ((43,), "bool")},
    ),
    "four_axes": Case(
        "pattern four over (a, b, c, d)"
        " keep near(a, 1) and near(b, 1) and causal(c) and near(d, 2)",
        {"a": 3, "b": 3, "c": 3, "d": 5}, (1, 2, 2, 4), (1, 1, 4, 4),
    ),
    "wide": Case(
        "pattern wide over (n)"
        " keep (q.n * 2 ** 40 + k.n * 3 ** 20) % 1000003 < 300000 or q.n == k.n",
        {"n": 53}, (16,), (16,),
    ),
    "inexact": Case(
        "pattern inexact over (n) input x[n]: float"
        " keep q.n * 0.1 + x[k.n] * 3.0 < k.n * 0.3 + 2.0",
        {"n": 61}, (16,), (16,), inputs={"x": ((61,), "float")},
    ),
}  # fmt: skip


def dense_attention(
    mask: maskdsl.Mask,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    scale: float,
    **inputs: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(out, lse) in float64 by `mask.dense` and `mask.scores`."""
    batch, heads, queries, _ = q.shape
    out = torch.zeros((batch, heads, queries, v.shape[3]), dtype=torch.float64)
    lse = torch.full((batch, heads, queries), -math.inf, dtype=torch.float64)
    group = heads // k.shape[1]
    for b in range(batch):
        for h in range(heads):
            keep = mask.dense(head=h, batch=b, **inputs)
            logits = (q[b, h].double() @ k[b, h // group].double().T * scale).numpy()
            logits = np.where(keep, mask.scores(logits, head=h, batch=b, **inputs), -np.inf)
            some = torch.from_numpy(keep.any(1))
            lse[b, h] = torch.logsumexp(torch.from_numpy(logits), 1)
            weights = torch.softmax(torch.from_numpy(logits), 1)
            out[b, h] = torch.where(some[:, None], weights @ v[b, h // group].double(), 0.0)
    return out, lse


# Seeds of random patterns with few enough tiles for the interpreter.
RANDOM = tuple(s for s in range(30) if s not in (4, 7, 9, 13, 16, 26))


def random_plan(seed: int, odd: bool = False) -> tuple[maskdsl.Mask, Plan]:
    """A random pattern under tiles large enough for a matrix product (odd: also such that leave
    lanes empty or wrap).
    """
    case = random_case(seed, odd=odd)
    mask = case.mask()
    tiles = []
    for tile in (case.q_tile, case.kv_tile):
        last = max(tile.size[-1], 64 * tile.size[-1] // tile.lanes)
        pitch = (*tile.pitch[:-1], last - tile.size[-1] + tile.pitch[-1])
        tiles.append(Tile((*tile.size[:-1], last), tile.step, tile.origin, pitch, tile.wrap))
    return mask, mask.plan(*tiles)
