"""Kernels of the benchmark's workloads, scaled down, forward and backward, under Triton's
interpreter against the definition in float64.
"""

from __future__ import annotations

from functools import cache

import pytest
import torch
from kernel_truth import HUGE, TOLERANCE, Problem, check_hidden, check_values

from benchmarks.suite import load_workloads

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

SUITE = load_workloads()
# Small enough for several rows and columns of tiles, by dtype and axes.
TILES = {
    torch.float32: {1: ((64,), (32,)), 2: ((8, 8), (4, 8)), 3: ((2, 4, 8), (2, 4, 4))},
    torch.float16: {1: ((128,), (64,)), 2: ((8, 16), (8, 8)), 3: ((2, 8, 8), (2, 4, 8))},
}
OWN = {"radial": ((1, 64), (1, 64))}


@cache
def problem(name: str, dtype: torch.dtype = torch.float32) -> Problem:
    workload = SUITE[name].scaled_down()
    mask = workload.mask()
    q_tile, kv_tile = OWN.get(name, TILES[dtype][len(mask.pattern.axes)])
    number = list(SUITE).index(name)
    return Problem(
        mask,
        {"q_tile": q_tile, "kv_tile": kv_tile},
        workload.arrays(),
        head_dim=workload.head_dim,
        value_dim=workload.head_dim,
        dtype=dtype,
        layout=("bhnd", "bnhd")[number % 2],
        batch=workload.batch,
        queries=workload.queries,
    )


TRAINED = [name for name, w in SUITE.items() if w.queries is None]
FEW = ("documents-64k", "alibi-16k", "flux")  # in float32 too
DECODED = [name for name, w in SUITE.items() if w.queries is not None]


def test_all_workloads_are_here() -> None:
    assert len(SUITE) == 17
    assert any(w.queries for w in SUITE.values())


SLOW = [pytest.param(n, marks=() if n in FEW else pytest.mark.slow) for n in TRAINED]


@pytest.mark.parametrize("name", SLOW)
def test_values_and_gradients(name: str) -> None:
    check_values(problem(name))


@pytest.mark.parametrize("name", TRAINED)
def test_values_and_gradients_in_float16(name: str) -> None:
    check_values(problem(name, torch.float16))


@pytest.mark.parametrize("name", TRAINED)
def test_what_may_not_be_seen_changes_nothing(name: str) -> None:
    check_hidden(problem(name, torch.float16))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("name", DECODED)
def test_decoding(name: str, dtype: torch.dtype) -> None:
    """Forward alone. Hidden keys and values are huge, and change no bit."""
    p = problem(name, dtype)
    q, k, v = p.tensors.q, p.tensors.k.clone(), p.tensors.v.clone()
    out, lse = p.kernel(q, k, v, return_lse=True)
    for found, want in ((out, p.wanted["out"]), (lse, p.wanted["lse"])):
        largest = max(float(want.abs().max()), 1.0)
        assert float((found.double() - want).abs().max()) <= TOLERANCE[dtype] * largest
    hidden = ~p.keep.view(p.batch, p.mask.kv_heads, -1, p.keep.shape[3]).any(2)
    assert hidden.any()
    k[hidden], v[hidden] = HUGE[dtype], HUGE[dtype]
    assert torch.equal(p.kernel(q, k, v), out)
