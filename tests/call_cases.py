"""Random calls of kernels, right and wrong ones, and what each of them must give.

A case is a subject, a seed and the names of changes; all else follows from them, so that a failing
case can be shrunk by leaving changes out.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch

import maskdsl

FINE, WRONG, EITHER = "fine", "wrong", "either"


@dataclass(frozen=True)
class Subject:
    """A kernel to be called, and how to make its inputs: name to (kind, dims)."""

    text: str
    extents: dict[str, int]
    dtype: torch.dtype = torch.float32
    heads: int = 1
    kv_heads: int = 1
    layout: str = "bhnd"
    head_dim: int = 8
    value_dim: int = 8
    backend: str = "torch"

    @cached_property
    def mask(self) -> maskdsl.Mask:
        pattern = maskdsl.parse(self.text)
        return pattern.bind(**self.extents, heads=self.heads, kv_heads=self.kv_heads)

    @cached_property
    def kernel(self) -> Any:
        options = {"target": "sm_90"} if self.backend == "triton" else {}
        return maskdsl.compile(
            self.mask, self.head_dim, self.dtype, value_dim=self.value_dim, layout=self.layout,
            backend=self.backend, **options,
        )  # fmt: skip

    @property
    def reads_batch(self) -> bool:
        return "batch" in self.text


CAUSAL = "pattern causal over (n) keep 0 <= q.n - k.n < 6"
GRID = "pattern grid over (y, x) keep near(y, 1) and near(x, 1)"
CROSS = "pattern cross over (n) -> (m) keep (q.n + k.m) % 3 == 0"
NOTHING = "pattern few over (n) keep k.n < 3 and q.n > 4"
DOCUMENTS = (
    "pattern documents over (n) input doc[batch, n]: int keep doc[batch, q.n] == doc[batch, k.n]"
)
ALIBI = """pattern alibi over (n) input slope[heads]: float input extra[heads]: float
keep q.n >= k.n score logit - slope[head] * (q.n - k.n) sink extra[head]"""
TABLE = """pattern table over (n) input reach[_]: int input on[heads, n]: bool
keep on[head, k.n] and abs(q.n - k.n) <= reach[q.n // 2]"""
PICKED = """pattern picked over (n) input picked[batch, heads, n // 4, n // 4]: bool
keep picked[batch, head, q.n // 4, k.n // 4]"""
HEAT = """pattern heat over (n) input heat[batch, n]: float
keep heat[batch, q.n] >= heat[batch, k.n] or q.n == k.n score logit * 0.5"""
PARTS = """pattern parts over a(t) then b(n)
keep a -> a: near(t, 2) keep any -> b, b -> any: true score 2 * tanh(logit / 2)"""

SUBJECTS = [
    Subject(CAUSAL, {"n": 13}, heads=4, kv_heads=2),
    Subject(CAUSAL, {"n": 13}, torch.float64, heads=2, kv_heads=2, layout="bnhd", value_dim=5),
    Subject(CAUSAL, {"n": 9}, torch.bfloat16),
    Subject(GRID, {"y": 4, "x": 5}, torch.float16, heads=2, kv_heads=1),
    Subject(CROSS, {"n": 7, "m": 11}, heads=2, kv_heads=2, layout="bnhd"),
    Subject(NOTHING, {"n": 11}, head_dim=1, value_dim=1),
    Subject(DOCUMENTS, {"n": 12}, heads=2, kv_heads=2),
    Subject(ALIBI, {"n": 10}, heads=4, kv_heads=2, value_dim=3),
    Subject(ALIBI, {"n": 10}, torch.float64, heads=2, kv_heads=1, layout="bnhd"),
    Subject(TABLE, {"n": 12}, heads=2, kv_heads=2),
    Subject(PICKED, {"n": 16}, heads=2, kv_heads=1),
    Subject(HEAT, {"n": 11}),
    Subject(PARTS, {"t": 6, "n": 3}, heads=2, kv_heads=2),
]


@dataclass
class Arguments:
    """Of one call, in the kernel's layout. mode: of torch, in which it is made."""

    subject: Subject
    rng: random.Random
    batch: int
    tensors: dict[str, Any]
    inputs: dict[str, Any]
    options: dict[str, Any] = field(default_factory=dict)
    no_grad: bool = False
    mode: Callable[[], AbstractContextManager[Any]] = nullcontext

    def any_tensor(self) -> str:
        return self.rng.choice("qkv")

    def any_input(self) -> str | None:
        return self.rng.choice(sorted(self.inputs)) if self.inputs else None


def small(rng: random.Random, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Small whole numbers: every product and every sum of them is exact."""
    generator = torch.Generator().manual_seed(rng.getrandbits(40))
    return torch.randint(-2, 3, shape, generator=generator).to(dtype)


def good_arguments(subject: Subject, seed: int) -> Arguments:
    """What the kernel must accept."""
    rng = random.Random(seed)
    batch = rng.choice([1, 1, 2, 2, 3])
    _, queries, keys = subject.mask.shape
    sizes = {
        "q": (batch, subject.heads, queries, subject.head_dim),
        "k": (batch, subject.kv_heads, keys, subject.head_dim),
        "v": (batch, subject.kv_heads, keys, subject.value_dim),
    }
    tensors = {}
    for name, size in sizes.items():
        x = small(rng, size, subject.dtype)
        tensors[name] = x if subject.layout == "bhnd" else x.transpose(1, 2).contiguous()
    inputs: dict[str, Any] = {}
    for name, array in subject.mask.pattern.inputs.items():
        bound = next(a for a in subject.mask.program.inputs if a.name == name)
        shape = tuple(batch if d == "batch" else keys if d is None else int(d) for d in bound.dims)
        if array.type == "bool":
            inputs[name] = small(rng, shape, torch.int64) > -1
        elif array.type == "int":
            inputs[name] = small(rng, shape, torch.int64).abs()
        else:
            inputs[name] = small(rng, shape, torch.float32)
    return Arguments(subject, rng, batch, tensors, inputs)


Change = Callable[[Arguments], str | None]  # FINE, WRONG or EITHER; None where it does not apply
CHANGES: dict[str, Change] = {}


def change(function: Change) -> Change:
    CHANGES[function.__name__] = function
    return function


@dataclass(frozen=True)
class Case:
    subject: int
    seed: int
    changes: tuple[str, ...]

    def arguments(self) -> tuple[Arguments, str]:
        """(arguments, what must come of them)"""
        given = good_arguments(SUBJECTS[self.subject], self.seed)
        outcomes = []
        for name in self.changes:
            given.rng = random.Random(self.seed ^ zlib.crc32(name.encode()))
            try:
                outcomes.append(CHANGES[name](given))
            except (AttributeError, TypeError, IndexError, RuntimeError, ValueError):
                if len(self.changes) == 1:
                    raise
                outcomes.append(EITHER)  # it does not apply to what another change left
        for outcome in (WRONG, EITHER):
            if outcome in outcomes:
                return given, outcome if len(self.changes) == 1 or outcome == EITHER else EITHER
        return given, FINE


def random_case(number: int) -> Case:
    rng = random.Random(number)
    names = sorted(CHANGES)
    count = rng.choice([0, 1, 1, 1, 1, 2, 2, 3])
    return Case(number % len(SUBJECTS), number, tuple(rng.sample(names, count)))


def host(x: Any) -> Any:
    """A tensor as numpy, in float64 where it holds floats."""
    if not isinstance(x, torch.Tensor):
        return x
    x = x.detach().resolve_neg()
    return (x.double() if x.is_floating_point() else x).numpy()


def expected(given: Arguments, **moved: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(out, lse, sound) by the definition, float64 in bhnd order: dense masks, and softmax in
    numpy. sound: rows (batch, heads, queries) whose query and all of whose keys and values are
    finite; what others hold is not looked at. moved: arrays in place of some arguments.
    """
    subject, mask = given.subject, given.subject.mask
    values = {n: host(x) for n, x in {**given.tensors, **given.inputs}.items()} | moved
    inputs = {n: values[n] for n in given.inputs}
    q, k, v = (values[n] if subject.layout == "bhnd" else values[n].swapaxes(1, 2) for n in "qkv")
    batch, heads, queries, dim = q.shape
    group = heads // k.shape[1]
    out = np.zeros((batch, heads, queries, v.shape[3]))
    lse = np.full((batch, heads, queries), -np.inf)
    sound = np.ones((batch, heads, queries), dtype=bool)
    offset = given.options.get("q_offset")
    first = {"q_offset": offset} if mask.program.shared else {}
    for b in range(batch):
        for h in range(heads):
            keep = mask.dense(h, b, queries, offset, **inputs)
            bad = ~(np.isfinite(k[b, h // group]).all(-1) & np.isfinite(v[b, h // group]).all(-1))
            sound[b, h] = np.isfinite(q[b, h]).all(-1) & ~(keep & bad).any(-1)
            own = np.where(bad[:, None], 0, v[b, h // group])
            keys = np.where(bad[:, None], 0, k[b, h // group])
            logits = np.where(sound[b, h][:, None], q[b, h], 0) @ keys.T / np.sqrt(dim)
            if "score" in subject.text:
                logits = mask.scores(logits, h, b, **first, **inputs)
            logits = np.where(keep, logits, -np.inf)
            if "sink" in subject.text:
                column = np.full((queries, 1), float(inputs["extra"][h]))
                logits = np.concatenate([logits, column], 1)
                own = np.concatenate([own, np.zeros((1, own.shape[1]))])
            top = np.maximum(logits.max(-1, keepdims=True, initial=-np.inf), -1e300)
            weights = np.exp(logits - top)
            total = weights.sum(-1, keepdims=True)
            seen = total[:, 0] > 0
            out[b, h, seen] = (weights @ own)[seen] / total[seen]
            lse[b, h, seen] = (np.log(total[seen]) + top[seen])[:, 0]
    return out, lse, sound
