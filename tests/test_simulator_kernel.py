"""Kernels as `simulate` takes them: their plans, their dtype, and what their machine code says."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from simulator_plans import one_line

import maskdsl
from benchmarks.suite.workloads import load_workloads
from maskdsl.errors import BindError
from maskdsl.simulator import CompiledKernel, simulate
from maskdsl.simulator.kernels import read_loops

CODE = CompiledKernel(340, 488, 300, warps=8, registers=152, shared=131_072)


def window(**options):
    mask = maskdsl.load("std/sliding_window").bind(n=4096, window=512, heads=2)
    options = {"backend": "triton", "target": "sm_90"} | options
    return maskdsl.compile(mask, 128, torch.bfloat16, **options)


def test_a_kernel_brings_its_plans_and_its_machine_code(monkeypatch) -> None:
    kernel = window()
    asked = []

    def compiled(name):
        asked.append(name)
        return CODE if name != "dkv" else None

    monkeypatch.setattr(kernel, "compiled", compiled)
    p = simulate(kernel, device="h100", batch=3)
    alone = simulate(kernel.plan, 128, device="h100", batch=3, compiled=CODE)
    assert p == alone and p.costs == "machine code" and asked == ["forward"]
    assert "machine code" in p.table()
    back = simulate(kernel, device="h100", direction="backward")
    assert asked == ["forward", "dq", "dkv"] and back.costs == "machine code"
    dq, dkv = back.sparse.passes
    tiles = [kernel.plan_of(name).tiles for name in ("dq", "dkv")]
    lanes = [kernel.plan_of(name) for name in ("dq", "dkv")]
    for one, counts, plan, products in zip((dq, dkv), tiles, lanes, (3, 4), strict=True):
        pairs = plan.q_tile.lanes * plan.kv_tile.lanes
        assert one.flops == (counts.full + counts.partial) * pairs * 2 * 128 * products
    # The machine code of another target says nothing of a device.
    assert simulate(kernel, device="a100").costs == "estimates"
    assert simulate(kernel, device="h100", queries=1).costs == "estimates"
    assert len(asked) == 3


def test_a_kernel_is_asked_about_as_it_was_compiled() -> None:
    kernel = window(value_dim=64)
    p = simulate(kernel, device="a100")
    assert (p.head_dim, p.value_dim, p.dtype) == (128, 64, "bf16")
    assert "d=128, 64" in p.table() and "machine code" not in p.table()
    simulate(kernel, 128, dtype=torch.bfloat16, device="a100")
    for wrong in ({"head_dim": 64}, {"dtype": "fp16"}, {"value_dim": 128}):
        with pytest.raises(BindError) as error:
            simulate(kernel, device="a100", **wrong)
        assert next(iter(wrong)) in one_line(error)
    exact = maskdsl.compile(
        kernel.mask, 64, torch.float32, backend="triton", target="sm_90", precision="tf32"
    )
    assert simulate(exact, device="a100").dtype == "tf32"


def test_kernels_of_other_backends_are_planned_as_tritons_would_be() -> None:
    kernel = window(backend="torch", target=None)
    expected = simulate(kernel.mask, 128, dtype="bf16", device="h100")
    assert simulate(kernel, device="h100") == expected


def loop(ordinary: int, exponentials: int):
    return {"FADD": ordinary - exponentials, "MUFU.EX2": exponentials}


def test_loops_are_read_by_their_exponentials() -> None:
    mask = maskdsl.load("std/sliding_window").bind(n=4096, window=512)
    plan = mask.plan(q_tile=128, kv_tile=64)  # 32 exponentials of each of 256 threads

    def resources(*loops, outside=100):
        total = {"EXIT": outside + sum(sum(x.values()) for x in loops)}
        return SimpleNamespace(
            registers=150, spills=8, shared=1000, instructions=total, loops={"k": loops}
        )

    found = read_loops(resources(loop(490, 32), loop(340, 34)), plan, 8)
    assert found == CompiledKernel(340, 490, 100, 8, 150, 1000, 8)
    unrolled = read_loops(resources(loop(490, 32), loop(600, 64)), plan, 8)
    assert unrolled == CompiledKernel(300, 490, 100, 8, 150, 1000, 8)
    assert read_loops(resources(loop(340, 32)), plan, 8) is None  # where is the other kind?
    assert read_loops(resources({"FFMA": 9}, loop(340, 32)), plan, 8) is None
    assert read_loops(resources(), plan, 8) is None
    full = maskdsl.load("std/full").bind(n=4096).plan(q_tile=128, kv_tile=64)
    assert read_loops(resources(loop(340, 32)), full, 8).partial_instructions == 340
    capped = maskdsl.load("std/softcap").bind(n=4096).plan(q_tile=128, kv_tile=64)
    two = resources(loop(700, 66), loop(800, 66))  # the score takes as many as the softmax
    assert read_loops(two, capped, 8).full_instructions == 700


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name == "window-32k" else pytest.mark.slow)
        for name, w in load_workloads().items()
        if w.queries is None
    ],
)
def test_machine_code_and_estimates_agree_on_the_suite(name: str, monkeypatch) -> None:
    w = load_workloads()[name]
    kernel = maskdsl.compile(
        w.mask(), w.head_dim, getattr(torch, w.dtype), backend="triton", target="sm_90", **w.tiles
    )
    directions = ("forward",) if name == "window-32k" else ("forward", "backward")
    read = [simulate(kernel, batch=w.batch, device="h100", direction=d) for d in directions]
    monkeypatch.setattr(kernel, "compiled", lambda name: None)
    counted = [simulate(kernel, batch=w.batch, device="h100", direction=d) for d in directions]
    for code, estimate, factor in zip(read, counted, (1.15, 1.3), strict=False):
        assert estimate.costs == "estimates"
        assert 1 / factor < code.time / estimate.time < factor
    if name == "window-32k":
        assert read[0].costs == "machine code"


def test_without_triton_a_kernel_is_estimated(monkeypatch) -> None:
    import sys

    kernel = window()
    expected = simulate(kernel, device="h100", compiled={})
    monkeypatch.setitem(sys.modules, "triton", None)
    assert kernel.compiled("forward") is None
    assert simulate(kernel, device="h100") == expected and expected.costs == "estimates"
