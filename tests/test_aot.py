"""Every kernel of the tests, and some of real sizes, compiled ahead of time; no GPU is needed."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from kernels import CASES, RANDOM, Case, random_plan

import maskdsl
from maskdsl import CompileError
from maskdsl.codegen import Emitted, GradientEmission, Spec, emit
from maskdsl.codegen.spec import SHARED
from maskdsl.runtime.compile import Kernel
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
PRODUCT = {"sm_80": "HMMA", "sm_90": "HGMMA"}
SHARED_BYTES = {"sm_80": 163 << 10, "sm_90": 227 << 10, "sm_100": 227 << 10}


Jobs = dict[tuple[str, str], tuple[str | Emitted, str]]
PARTS = ["some", pytest.param("all", marks=pytest.mark.slow)]


def large_jobs(part: str) -> list[tuple[str, str]]:
    """(case, target): of some, every case for one target, every target for one case."""
    return [
        (name, target)
        for i, name in enumerate(LARGE)
        for j, target in enumerate(SHARED_BYTES)
        if part == "all" or (j - i) % 3 == 1
    ]


def small_jobs(part: str, odd: bool) -> list[tuple[str, Case, str]]:
    """(name, case, target): of some, every case forward or (odd) backward."""
    return [
        (name, case, ("sm_80", "sm_90")[(number // 2 + odd) % 2])
        for number, (name, case) in enumerate(CASES.items())
        if part == "all" or number % 2 == odd
    ]


@pytest.fixture(scope="module", params=PARTS)
def compiled(request: pytest.FixtureRequest) -> dict[tuple[str, str], Resources]:
    """By (case, target): all in one process."""
    jobs: Jobs = {}
    for name, case, target in small_jobs(request.param, odd=False):
        jobs[name, target] = emit(case.plan(), case.spec(target)), target
    for seed in RANDOM if request.param == "all" else RANDOM[::5]:
        target = ("sm_90", "sm_80")[seed // 2 % 2]
        kernel = emit(random_plan(seed, odd=seed % 2 == 0)[1], Spec(16, 16, "float32", target))
        jobs[f"random {seed}", target] = kernel, target
    for name, target in large_jobs(request.param):
        case = replace(LARGE[name], dtype=torch.bfloat16)
        jobs[f"large {name}", target] = emit(case.plan(), case.spec(target)), target
    return dict(zip(jobs, resources_many(list(jobs.values())), strict=True))


@pytest.fixture(scope="module", params=PARTS)
def gradients(request: pytest.FixtureRequest) -> dict[tuple[str, str], Resources]:
    """Backward modules by (case, target): all in one process."""
    jobs: Jobs = {}
    for name, case, target in small_jobs(request.param, odd=True):
        inputs = [n for n, (_, kind) in case.inputs.items() if kind == "float"]
        for kernel in ("dq", "dkv"):
            module = GradientEmission(kernel, case.plan(), case.spec(target), inputs)
            jobs[f"{name} {kernel}", target] = module.emitted(), target
    for seed in RANDOM[:: 3 if request.param == "all" else 8]:
        for kernel in ("dq", "dkv"):
            plan = random_plan(seed, odd=True)[1]
            module = GradientEmission(kernel, plan, Spec(16, 16, "float16"))
            jobs[f"random {seed} {kernel}", "sm_90"] = module.emitted(), "sm_90"
    for name, target in large_jobs(request.param):
        for kernel, source in large(LARGE[name], target).sources.items():
            if kernel != "forward":
                jobs[f"large {name} {kernel}", target] = source, target
    return dict(zip(jobs, resources_many(list(jobs.values())), strict=True))


def large(case: Case, target: str) -> Kernel:
    return maskdsl.compile(
        case.mask(), case.head_dim, torch.bfloat16, backend="triton", target=target,
        q_tile=case.q_tile, kv_tile=case.kv_tile,
    )  # fmt: skip


def test_every_backward_kernel_compiles(gradients: dict[tuple[str, str], Resources]) -> None:
    for (name, target), found in gradients.items():
        assert 0 < found.registers <= 255, (name, target)
        assert found.shared <= SHARED_BYTES[target], (name, target)


def test_large_backward_kernels_hardly_spill_and_use_the_tensor_cores(
    gradients: dict[tuple[str, str], Resources],
) -> None:
    known = {key: found for key, found in gradients.items() if key[0].startswith("large")}
    assert len(known) >= 8
    for (name, target), found in known.items():
        if target in PRODUCT:
            assert found.spills <= (160 if "video" in name else 64), (name, target)
            assert found.instructions[PRODUCT[target]] > 0, (name, target)
            assert found.instructions["MUFU.EX2"] > 0, (name, target)


SCORES = {
    "by_pair": "input x[n, n]: float keep near(n, 40) score logit * x[q.n, k.n]",
    "by_key": "input x[n]: float keep near(n, 40) score logit + x[k.n]",
    "by_distance": "input x[_]: float keep near(n, 40) score logit + x[q.n - k.n + 40]",
    "sink": "input x[heads]: float keep causal(n) sink x[head] score tanh(logit) * x[head]",
}


def test_gradients_of_inputs_compile() -> None:
    plans = [
        maskdsl.parse(f"pattern p over (n) {text}").bind(n=500, heads=4, kv_heads=2).plan(32, 32)
        for text in SCORES.values()
    ]
    spec = Spec(32, 32, "bfloat16")
    jobs = [
        (GradientEmission(kernel, p, spec, ["x"]).emitted(), "sm_90")
        for p in plans
        for kernel in ("dq", "dkv")
    ]
    found = resources_many(jobs)
    for name, dq, dkv in zip(SCORES, found[::2], found[1::2], strict=True):
        instructions = dq.instructions.keys() | dkv.instructions.keys()
        atomics = {"RED", "REDG", "ATOMG", "ATOM"} & instructions
        assert bool(atomics) == name.startswith("by_"), name
    assert resources(emit(plans[-1], spec)).registers > 0


@pytest.mark.parametrize("dim", [64, 128, 256])
@pytest.mark.parametrize("target", SHARED)
def test_backward_tiles_fit_every_target(target: str, dim: int) -> None:
    for dtype in ("bfloat16", "float32"):
        spec = Spec(dim, dim, dtype, target)
        for kernel in ("dq", "dkv"):
            queries, keys = spec.lanes(kernel)
            assert min(queries, keys) >= 16
            assert spec.settings(queries, keys, kernel)[1] >= 1


def test_every_kernel_compiles(compiled: dict[tuple[str, str], Resources]) -> None:
    for (name, target), found in compiled.items():
        assert 0 < found.registers <= 255, (name, target)
        assert found.shared <= SHARED_BYTES[target], (name, target)


def test_large_kernels_do_not_spill_and_use_the_tensor_cores(
    compiled: dict[tuple[str, str], Resources],
) -> None:
    known = {key: found for key, found in compiled.items() if key[0].startswith("large")}
    assert len(known) >= 4
    for (name, target), found in known.items():
        if target == "sm_90":
            assert found.spills <= (16 if "video" in name else 0), name
        if target in PRODUCT:
            assert found.instructions[PRODUCT[target]] > 0, (name, target)
            assert found.instructions["MUFU.EX2"] > 0, (name, target)


def test_amd() -> None:
    case = CASES["window"]
    found = resources(emit(case.plan(), case.spec("gfx942")), target="gfx942")
    assert any("mfma" in opcode for opcode in found.instructions)
    case = replace(LARGE["narrow"], q_tile=(32,), kv_tile=(32,))
    found = large(case, "gfx942").resources(direction="backward")
    assert any("mfma" in opcode for opcode in found.instructions)
    assert found.shared <= SHARED["gfx942"]


def test_errors_have_one_line() -> None:
    with pytest.raises(CompileError, match="no target 'cpu'"):
        resources("", target="cpu")
    with pytest.raises(CompileError, match="no kernel for the direction 'sideways'"):
        large(LARGE["causal"], "sm_90").resources(direction="sideways")
    with pytest.raises(CompileError, match="could not compile the kernel for sm_90: "):
        resources("import nothing_of_the_kind", target="sm_90")
