"""Fewer queries than keys, wherever they stand, against the definition in float64."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from kernels import CASES, Case

import maskdsl
from maskdsl import BindError, CompileError
from maskdsl.codegen import Spec
from maskdsl.runtime.boundary import Call
from maskdsl.runtime.triton_backend import TritonForward
from maskdsl.runtime.triton_decode import TritonDecode, splits_for

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

SHARED = [n for n, c in CASES.items() if c.mask().program.shared]
HEADS = """pattern heads over (n) input slope[heads]: float input gate[heads, n]: int
keep causal(n) and (head % 3 != 1 or near(n, 20)) and gate[head, k.n] < 3
score logit - slope[head] * (q.n - k.n)
sink slope[head] * 2.0
"""
SEGMENTS = """pattern video_text over video(t, s) then text(n)
keep video -> video: near(t, 1) and near(s, 3)
keep any -> text, text -> any: true
score video -> text: logit * 0.5
"""
MORE = {
    "heads": Case(
        HEADS, {"n": 75, "heads": 12, "kv_heads": 2}, (16,), (16,), batch=2,
        inputs={"slope": ((12,), "float"), "gate": ((12, 75), "int")},
    ),
    "seven": Case(
        "pattern seven over (n) input slope[heads]: float keep causal(n)"
        " score logit - slope[head] * (q.n - k.n) sink slope[head]",
        {"n": 75, "heads": 14, "kv_heads": 2}, (16,), (16,), value_dim=40, layout="bnhd",
        inputs={"slope": ((14,), "float")},
    ),
    "one_key_head": Case(
        "pattern one over (a, b, c) keep near(a, 1) and causal(b) and near(c, 2)",
        {"a": 3, "b": 5, "c": 7, "heads": 8, "kv_heads": 1}, (1, 4, 8), (1, 4, 8), batch=2,
    ),
    "segments": Case(SEGMENTS, {"t": 4, "s": 9, "n": 21, "heads": 2}, ((2, 8), 16), ((2, 8), 16)),
}  # fmt: skip
ALL = {n: CASES[n] for n in SHARED} | MORE


def decoder(case: Case, target: str = "sm_90") -> TritonDecode:
    mask = case.mask()
    plan = mask.plan(case.q_tile, case.kv_tile)
    return TritonDecode(mask, TritonForward(plan, case.spec(target), case.head_dim**-0.5))


def truth(case: Case, q: Any, k: Any, v: Any, first: int, inputs: Any) -> Any:
    """(out, lse) in float64 by `mask.dense` and `mask.scores`; sinks by a plain reading."""
    mask = case.mask()
    batch, heads, count, dim = q.shape
    out = torch.zeros((batch, heads, count, v.shape[3]), dtype=torch.float64)
    lse = torch.full((batch, heads, count), -math.inf, dtype=torch.float64)
    group = heads // k.shape[1]
    for b in range(batch):
        for h in range(heads):
            at = {"head": h, "batch": b, "q_offset": first, **inputs}
            keep = mask.dense(queries=count, **at)
            logits = (q[b, h].double() @ k[b, h // group].double().T * dim**-0.5).numpy()
            s = torch.from_numpy(np.where(keep, mask.scores(logits, **at), -np.inf))
            total = torch.logsumexp(s, 1)
            if case.text == HEADS:
                total = torch.logaddexp(total, inputs["slope"][h].double() * 2)
            elif "sink" in case.text:
                total = torch.logaddexp(total, inputs["slope"][h].double())
            lse[b, h] = total
            weights = torch.exp(s - total.masked_fill(total == -math.inf, 0)[:, None])
            out[b, h] = weights @ v[b, h // group].double()
    return out, lse


def check(case: Case, found: Any, want: Any) -> None:
    (out, lse), (right, right_lse) = found, want
    tolerance = 1e-5 if case.dtype == torch.float32 else 2e-3
    assert out.dtype == case.dtype
    torch.testing.assert_close(out.double(), right, atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(lse.double(), right_lse, atol=1e-5, rtol=1e-5)


def places(keys: int) -> list[tuple[int, int]]:
    """(first, queries): at both ends, in the middle, across tiles, all but one."""
    return [(0, 1), (keys - 1, 1), (keys // 2, 3), (keys - 16, 16), (7, min(40, keys - 7)), (1, keys - 1)]


@pytest.mark.parametrize("splits", [1, 2, 5, 64])
@pytest.mark.parametrize("name", ALL)
def test_values(name: str, splits: int) -> None:
    case = ALL[name]
    q, k, v, inputs = case.tensors()
    run = decoder(case, "sm_90" if splits != 2 else "sm_80")
    for first, count in places(k.shape[2])[splits % 2 :: 2] if splits > 2 else places(k.shape[2]):
        own = q[:, :, first : first + count]
        found = run(Call(own, k, v, inputs, first), True, splits)
        assert not found[0].isnan().any()
        check(case, found, truth(case, own, k, v, first, inputs))
