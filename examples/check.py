"""What the examples share: a check against dense attention, and a clock."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import maskdsl

BAND = 64  # queries that are checked together


def options(text: str, argv: Sequence[str] | None) -> argparse.Namespace:
    """The options of every example: .quick, scaled down; .out, where pictures go."""
    parser = argparse.ArgumentParser(description=text)
    parser.add_argument("--quick", action="store_true", help="scaled down, a few seconds")
    parser.add_argument("--out", type=Path, default=Path("out"), help="where pictures go")
    return parser.parse_args(argv)


def seconds(call: Callable[[], Any], repeat: int = 3) -> float:
    """The shortest of some runs, after one that does not count."""
    call()
    times = []
    for _ in range(repeat):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def dense_rows(
    mask: maskdsl.Mask, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, start: int, count: int,
    **inputs: Any,
) -> torch.Tensor:  # fmt: skip
    """Dense attention of the queries from `start` on, by the mask's definition, in float64:
    (batch, heads, count, dim) of q, k, v (batch, heads, tokens, dim).
    """
    heads, scale = mask.shape[0], q.shape[-1] ** -0.5
    group = heads // k.shape[1]
    out = torch.zeros(len(q), heads, count, v.shape[-1], dtype=torch.float64)
    for b in range(len(q)):
        for h in range(heads):
            at = {"head": h, "batch": b, "q_offset": start, **inputs}
            kept = torch.from_numpy(mask.dense(queries=count, **at))
            logits = scale * (q[b, h, start : start + count].double() @ k[b, h // group].double().T)
            logits = torch.as_tensor(np.asarray(mask.scores(logits.numpy(), **at)))
            logits = torch.where(kept, logits, -torch.inf)
            weights = torch.nan_to_num(torch.softmax(logits, -1))  # no key: zeros
            out[b, h] = weights @ v[b, h // group].double()
    return out


def exactness(
    mask: maskdsl.Mask, kernel: maskdsl.Kernel, head_dim: int, batch: int = 1, bands: int = 4,
    **inputs: Any,
) -> str:  # fmt: skip
    """One line on whether a kernel without scores keeps exactly the mask's keys.

    In every band of queries: with logits of 0 the output, times the number of keys, is a sum of
    ints, which must come out equal; and random queries must agree with dense attention. Then huge
    numbers go to the keys that one query does not see: not a bit of its output may change.
    """
    heads, queries, keys = mask.shape
    group = mask.program.kv_heads
    torch.manual_seed(0)
    q = torch.randn(batch, heads, queries, head_dim)
    k, v = (torch.randn(batch, group, keys, head_dim) for _ in range(2))
    ints = torch.randint(0, 256, v.shape).float()
    out, sums = kernel(q, k, v, **inputs), kernel(q * 0, k, ints, **inputs)
    last = (queries - 1) // BAND
    starts = (np.unique(np.linspace(0, last, bands).astype(int)) * BAND).tolist()
    error, checked, wrong = 0.0, 0, 0
    for start in starts:
        count = min(BAND, queries - start)
        here = slice(start, start + count)
        error = max(
            error, (out[:, :, here] - dense_rows(mask, q, k, v, start, count, **inputs)).abs().max()
        )
        for b in range(batch):
            for h in range(heads):
                at = {"head": h, "batch": b, "queries": count, "q_offset": start, **inputs}
                kept = torch.from_numpy(mask.dense(**at)).double()
                wanted = kept @ ints[b, h * group // heads].double()
                got = (sums[b, h, here].double() * kept.sum(1, keepdim=True)).round()
                wrong += int((got != wanted).any(1).sum())
                checked += count
    row = starts[-1]
    for h in range(heads):
        kept = torch.from_numpy(mask.dense(head=h, queries=1, q_offset=row, **inputs))[0]
        bad_k, bad_v = k.clone(), v.clone()
        bad_k[0, h * group // heads, ~kept] = 1e15
        bad_v[0, h * group // heads, ~kept] = 1e30
        wrong += not torch.equal(kernel(q, bad_k, bad_v, **inputs)[0, h, row], out[0, h, row])
    told = f"exact in {checked} rows" if not wrong else f"WRONG in {wrong} of {checked} rows"
    return f"{told}, error {error:.1e}"
