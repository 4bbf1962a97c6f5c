"""Every kernel of the tests, and some of real sizes, compiled ahead of time; no GPU is needed."""

from __future__ import annotations

import pytest
import torch
from kernels import CASES, RANDOM, Case, random_plan

from maskdsl import CompileError
from maskdsl.codegen import Emitted, Spec, emit
from maskdsl.runtime.resources import Resources, resources, resources_many

LARGE = {
    "causal": Case(
        "pattern causal over (n) keep causal(n)", {"n": 16384, "heads": 4}, (128,), (128,), 128, 128
    ),
    "narrow": Case(
        "pattern causal over (n) keep causal(n)", {"n": 16384, "heads": 4}, (128,), (128,), 64, 64
    ),
    "window": Case(
        "pattern window over (n) keep causal(n) and near(n, 4095)",
        {"n": 32768}, (128,), (64,), 128, 128,
    ),
    "video": Case(
        "pattern video over (t, h, w)"
        " keep neighborhood(t, 18) and neighborhood(h, 24) and neighborhood(w, 24)",
        {"t": 30, "h": 48, "w": 80, "heads": 24}, (2, 8, 8), (2, 8, 8), 128, 128,
    ),
}  # fmt: skip
SHARED_BYTES = {"sm_80": 163 << 10, "sm_90": 227 << 10, "sm_100": 227 << 10}


@pytest.fixture(scope="module")
def compiled() -> dict[tuple[str, str], Resources]:
    """By (case, target): all in one process."""
    jobs: dict[tuple[str, str], tuple[str | Emitted, str]] = {}
    for name, case in CASES.items():
        for target in ("sm_80", "sm_90"):
            jobs[name, target] = emit(case.plan(), case.spec(target)), target
    for seed in RANDOM:
        for target in ("sm_80", "sm_90"):
            kernel = emit(random_plan(seed, odd=seed % 2 == 0)[1], Spec(16, 16, "float32", target))
            jobs[f"random {seed}", target] = kernel, target
    for name, case in LARGE.items():
        case = Case(**{**case.__dict__, "dtype": torch.bfloat16})
        for target in SHARED_BYTES:
            jobs[f"large {name}", target] = emit(case.plan(), case.spec(target)), target
    return dict(zip(jobs, resources_many(list(jobs.values())), strict=True))


def test_every_kernel_compiles(compiled: dict[tuple[str, str], Resources]) -> None:
    for (name, target), found in compiled.items():
        assert 0 < found.registers <= 255, (name, target)
        assert found.shared <= SHARED_BYTES[target], (name, target)


def test_large_kernels_do_not_spill_and_use_the_tensor_cores(
    compiled: dict[tuple[str, str], Resources],
) -> None:
    for name in LARGE:
        assert compiled[f"large {name}", "sm_90"].spills <= (16 if name == "video" else 0), name
        for target, product in (("sm_80", "HMMA"), ("sm_90", "HGMMA")):
            found = compiled[f"large {name}", target]
            assert found.instructions[product] > 0, (name, target)
            assert found.instructions["MUFU.EX2"] > 0, (name, target)


def test_amd() -> None:
    case = CASES["window"]
    found = resources(emit(case.plan(), case.spec("gfx942")), target="gfx942")
    assert any("mfma" in opcode for opcode in found.instructions)


def test_errors_have_one_line() -> None:
    with pytest.raises(CompileError, match="no target 'cpu'"):
        resources("", target="cpu")
    with pytest.raises(CompileError, match="no kernel for the direction 'sideways'"):
        resources("", direction="sideways")
    with pytest.raises(CompileError, match="could not compile the kernel for sm_90: "):
        resources("import nothing_of_the_kind", target="sm_90")
