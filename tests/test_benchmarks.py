"""The benchmarks run, and compare like with like."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.attention.flex_attention import create_mask

from benchmarks.cpu_cases import TINY as CPU_TINY
from benchmarks.cpu_cases import alibi, dilated, neighborhood
from benchmarks.measure import timed
from benchmarks.planner import beyond
from benchmarks.planner_cases import COMPARED, GROWN, radial

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("name", COMPARED | GROWN)
def test_a_pattern_and_its_twin_in_torch_are_the_same(name: str) -> None:
    cases = [(n, (COMPARED | GROWN)[name](n)) for n in (1024, 2048)]
    if name == "radial":  # with frames far enough apart to thin out
        cases.append((2048, radial(2048, frame=32)))
    for tokens, case in cases:
        mask = case.mask()
        _, queries, keys = mask.shape
        assert queries == keys == tokens
        twin = create_mask(case.mask_mod, 1, 1, queries, keys, "cpu")[0, 0]
        assert np.array_equal(twin.numpy(), mask.dense())


def test_what_would_not_fit_is_skipped_with_the_reason() -> None:
    last = {"tokens": 1024, "first_bytes": 2**30, "steady_s": 1.0}
    assert beyond({**last, "first_bytes": 1024}, 2048, limit_s=5.0) == ""
    assert "takes about 4 s" in beyond({**last, "first_bytes": 1024}, 2048, limit_s=3.0)
    assert "needs about 65536 GiB" in beyond(last, 2**18, limit_s=3.0)


def test_memory_is_the_peak_and_not_what_is_left() -> None:
    found = timed(lambda: int(np.ones(2**23).sum()))  # 64 MiB, given back at once
    assert 60e6 < found["first_bytes"] < 100e6
    assert 0 < found["steady_s"] <= 1


@pytest.mark.slow
def test_the_planner_benchmark_runs(tmp_path: Path) -> None:
    command = [
        sys.executable, "-m", "benchmarks.planner",
        "--json", str(tmp_path / "a.json"), "--plot", str(tmp_path / "a.png"),
        "--sizes", "256", "--patterns", "causal", "--growth", "--growth-sizes", "1024", "4096",
    ]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == ""  # quiet where there is no terminal
    record = json.loads((tmp_path / "a.json").read_text())
    assert [s["method"] for s in record["samples"]] == ["plan", "to_flex", "eager", "compiled"]
    assert all(0 < s["steady_s"] < 60 and s["first_bytes"] >= 0 for s in record["samples"])
    assert [s["tokens"] for s in record["growth"]] == [1024, 4096] * len(GROWN)
    assert record["machine"]["cores"] >= 1 and record["versions"]["torch"]
    for name in ("a.png", "a-growth.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("make", [*CPU_TINY.values(), lambda: dilated(2048), lambda: alibi(2048)])
def test_a_case_of_the_cpu_benchmark_and_its_twin_in_torch_are_the_same(make: Any) -> None:
    case = make()
    mask = case.mask()
    n = mask.shape[1]
    twin = create_mask(case.mask_mod, 1, 1, n, n, "cpu")[0, 0]
    assert np.array_equal(twin.numpy(), mask.dense())
    if case.score_mod is not None:
        q, k = torch.arange(n)[:, None], torch.arange(n)[None]
        logits = torch.randn(n, n)
        want = case.score_mod(logits, 0, torch.tensor(3), q, k)[twin]
        got = mask.scores(logits, head=3)[twin.numpy()]
        np.testing.assert_allclose(got, want.numpy(), rtol=1e-5)


def test_neighborhoods_of_the_cpu_benchmark_in_three_dimensions() -> None:
    case = neighborhood((6, 9, 10), (4, 5, 8))
    twin = create_mask(case.mask_mod, 1, 1, 540, 540, "cpu")[0, 0]
    assert np.array_equal(twin.numpy(), case.mask().dense())


@pytest.mark.slow
def test_the_cpu_benchmark_runs(tmp_path: Path) -> None:
    command = [
        sys.executable, "-m", "benchmarks.cpu",
        "--json", str(tmp_path / "a.json"), "--plot", str(tmp_path / "a.png"),
        "--cases", *CPU_TINY, "--dtypes", "float32", "--peers", "sdpa",
        "--memory", "--lengths", "2048", "4096",
    ]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == ""
    record = json.loads((tmp_path / "a.json").read_text())
    assert [s["case"] for s in record["samples"]] == list(CPU_TINY)
    for s in record["samples"]:
        assert "skipped" not in s and s["both_by_forward"] > 1
        assert 0 < s["errors"]["1"]["ours"] < 1e-6
        assert set(s["forward"]["runs"]) == {"ours", "sdpa"}
    assert [m["tokens"] for m in record["memory"]] == [2048, 4096]
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
