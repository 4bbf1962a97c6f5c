"""Kernels of the benchmark's workloads, scaled down, forward and backward, under Triton's
interpreter against the definition in float64.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from kernel_truth import Problem, check_hidden, check_values

from benchmarks.suite import load_workloads
from maskdsl import MaskError

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


def named(name: str) -> Any:
    refused = "kernels take as many queries as keys so far"
    marks = [pytest.mark.xfail(raises=MaskError, reason=refused, strict=False)]
    return pytest.param(name, marks=marks if SUITE[name].queries else [])


def test_all_workloads_are_here() -> None:
    assert len(SUITE) == 17
    assert any(w.queries for w in SUITE.values())


@pytest.mark.parametrize("name", [named(n) for n in SUITE])
def test_values_and_gradients(name: str) -> None:
    check_values(problem(name))


@pytest.mark.parametrize("name", [named(n) for n in SUITE])
def test_values_and_gradients_in_float16(name: str) -> None:
    check_values(problem(name, torch.float16))


@pytest.mark.parametrize("name", [named(n) for n in SUITE])
def test_what_may_not_be_seen_changes_nothing(name: str) -> None:
    check_hidden(problem(name, torch.float16))
