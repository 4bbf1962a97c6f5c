"""Measured settings: what is tried, chosen and remembered. Timings are stood in for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from kernels import dense_attention

import maskdsl
from maskdsl import BindError, CompileError
from maskdsl.codegen import Spec
from maskdsl.codegen.emit import plan_lanes
from maskdsl.runtime import tuning
from maskdsl.runtime.cache import cache_directory, remember
from maskdsl.runtime.compile import Kernel
from maskdsl.runtime.tuning import Tuned, settings_for


def kernel(**options: object) -> Kernel:
    mask = maskdsl.load("std/sliding_window").bind(n=500, window=90, heads=2)
    return maskdsl.compile(mask, 32, torch.float16, backend="triton", tune=True, **options)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Every kernel that is measured; the third is the fastest."""
    runs: list[object] = []

    def seconds(call: Callable[[], object]) -> float:
        call()
        runs.append(call)
        return abs(len(runs) - 3) + 1.0

    monkeypatch.setattr(tuning, "seconds", seconds)
    monkeypatch.setattr(tuning, "device_name", lambda device: "some-gpu")
    monkeypatch.setattr(tuning, "FEW", 4)
    return runs


def tuned_of(k: Kernel) -> Tuned:
    tuned = k._run.kernel
    assert isinstance(tuned, Tuned)
    return tuned


def test_the_fastest_setting_is_taken_and_remembered(measured: list[object]) -> None:
    q, k, v = (torch.randn(1, 2, 500, 32).half() for _ in range(3))
    for path in Path(cache_directory()).glob("*some-gpu-b1.json"):
        path.unlink()
    first = kernel()
    out = first(q, k, v)
    assert len(measured) == 4
    tuned = tuned_of(first)
    settings = settings_for(first.plan, first._spec, first._plan_with, first._predicted)
    (chosen,) = tuned._chosen.values()
    spec = chosen.spec
    assert (spec.num_warps, spec.num_stages) == (settings[2].num_warps, settings[2].num_stages)
    want, _ = dense_attention(first.mask, q, k, v, 32**-0.5)
    torch.testing.assert_close(out.double(), want, atol=2e-3, rtol=2e-3)
    again = kernel()
    assert torch.equal(again(q, k, v), out)
    assert len(measured) == 4  # what was remembered is not measured again
    assert next(iter(tuned_of(again)._chosen.values())).key == chosen.key


def test_every_length_has_the_measured_module(measured: list[object]) -> None:
    window = maskdsl.load("std/sliding_window").bind(window=90, heads=2)
    kernel = maskdsl.compile(window, 32, torch.float16, backend="triton", tune=True)
    modules = set()
    for n in (130, 200):
        q, k, v = (torch.randn(1, 2, n, 32).half() for _ in range(3))
        kernel(q, k, v)
        modules |= {x._module for x in tuned_of(kernel.bind(n=n))._chosen.values()}
    assert len(modules) == 1


@pytest.mark.parametrize("damage", ["", "[]", '{"lanes": [128, 64]}', '{"lanes": 3}', "\0"])
def test_a_damaged_memory_is_measured_anew(measured: list[object], damage: str) -> None:
    q, k, v = (torch.randn(1, 2, 500, 32).half() for _ in range(3))
    kernel()(q, k, v)
    measured.clear()
    (path,) = Path(cache_directory()).glob(f"{kernel().key}-some-gpu-b1.json")
    path.write_text(damage)
    with pytest.warns(UserWarning, match="does not count"):
        kernel()(q, k, v)
    assert len(measured) == 4
    remember(path.stem, damage)  # whole, but no setting
    kernel()(q, k, v)
    assert len(measured) == 8


def test_only_what_fits_the_target_is_tried() -> None:
    mask = maskdsl.load("std/causal").bind(n=4096)
    for target in ("sm_80", "sm_89", "sm_90", "gfx942"):
        plan = mask.plan(target=target, head_dim=128)
        spec = Spec(128, 128, "bfloat16", target)
        found = settings_for(plan, spec, lambda lanes: mask.plan(lanes=lanes), lambda _: 0.0)
        assert (found[0].num_warps, found[0].num_stages) == spec.settings(*plan_lanes(plan))
        assert len(set(found)) == len(found) <= tuning.FEW
        for s in found:
            lanes = plan_lanes(plan) if s.lanes == (0, 0) else s.lanes
            assert spec.fits(*lanes, s.num_stages)


def test_a_better_predicted_plan_is_measured_first() -> None:
    mask = maskdsl.load("std/causal").bind(n=4096)
    plan = mask.plan(lanes=(128, 64))
    spec = Spec(64, 64, "bfloat16", "sm_90")
    found = settings_for(
        plan, spec, lambda lanes: mask.plan(lanes=lanes), lambda p: plan_lanes(p) != (64, 128)
    )
    assert found[0].lanes == (0, 0)
    assert found[1].lanes == (64, 128)


def test_where_nothing_can_be_measured() -> None:
    q, k, v = (torch.randn(1, 2, 500, 32).half() for _ in range(3))
    with pytest.raises(CompileError, match="measured on a GPU, not on cpu"):
        kernel()(q, k, v)
    mask = maskdsl.load("std/causal").bind(n=64)
    with pytest.raises(BindError, match="the backend is torch"):
        maskdsl.compile(mask, 16, backend="torch", tune=True)
