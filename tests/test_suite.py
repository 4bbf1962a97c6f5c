"""The GPU benchmark, without a GPU: its workloads, its reference, and a run scaled down."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import maskdsl
from benchmarks import gpu, report
from benchmarks.problem import Attention, Problem
from benchmarks.suite import Workload, load_workloads
from benchmarks.suite.flex_masks import flex_use
from benchmarks.timing import Stopwatch, in_turn, smi
from benchmarks.trial import attempt, warm
from benchmarks.truth import Truth
from benchmarks.worker import Worker, in_parallel

SUITE = load_workloads()
CPU = torch.device("cpu")


def by_name(*names: str) -> Any:
    return pytest.mark.parametrize("name", names or tuple(SUITE))


# Workloads


def near(extent: int, window: int) -> int:
    """Pairs of a window that is cut off at the start."""
    return sum(min(i + 1, window) for i in range(extent))


def radial_pairs(frames: int, size: int, decay: float) -> int:
    """By the definition of Radial Attention's code, a gap between frames at a time; the first frame
    is seen whole.
    """
    total = 0
    for gap in range(frames):
        share = 2 ** size.bit_length() / 2 ** gap.bit_length()
        reach = size if gap <= 1 else int(max(share * decay, 128))
        every = 1 if share >= 128 else int(128 / share)
        i = np.arange(size)
        kept = np.minimum(i + reach, size - 1) - np.maximum(i - reach, 0) + 1
        inside = int(kept.sum()) if gap % every == 0 else 0
        later, earlier = frames - gap, frames - gap if gap else 0
        # Of the pairs of frames at this gap, one has the first frame as its key.
        total += size * size + (later - 1) * inside + earlier * inside
    return total


PAIRS = {
    "dense-16k": 16384**2 * 16,
    "causal-16k": 16384 * 16385 // 2 * 16,
    "causal-16k-d64": 16384 * 16385 // 2 * 32,
    "window-32k": near(32768, 4096) * 16,
    "sinks-window-128k": sum(min(i + 1, 1020) + min(max(i - 1019, 0), 4) for i in range(131072))
    * 16,
    "flux": 256**2 * 80**2 * 24,
    "flux-stride-16": 256**2 * 80**2 * 24,
    "hunyuan": 30 * 48 * 80 * 18 * 24 * 24 * 24,
    "hunyuan-stride-16-8-8": 30 * 48 * 80 * 18 * 24 * 24 * 24,
    "sliding-tile": 30 * 48 * 80 * (3 * 6) * (3 * 8) * (3 * 8) * 24,
    "radial": radial_pairs(30, 3840, 0.95) * 24,
    "dilated-32k": sum(min(i // 4, 2048) + min((32767 - i) // 4, 2048) + 1 for i in range(32768))
    * 16,
    "strided-16k": (near(16384, 128) + sum(i // 128 + 1 for i in range(16384))) * 8,
    "swin": ((31 * 8**2 + 2 * 4**2) ** 2) * 4,
    "alibi-16k": 16384 * 16385 // 2 * 16,
    "decode-128k": near(131072, 8192) * 32,
}


def test_the_workloads_are_those_of_the_suite() -> None:
    assert set(SUITE) == {*PAIRS, "documents-64k"}
    sizes = {name: (w.head_dim, w.groups, w.dtype) for name, w in SUITE.items()}
    assert {n for n, s in sizes.items() if s[0] != 128} == {"causal-16k-d64", "swin"}
    assert sizes["decode-128k"] == (128, 8, "bfloat16") and SUITE["decode-128k"].queries == 1
    assert all(s[2] == "bfloat16" for s in sizes.values())


@by_name()
def test_plans_at_full_size(name: str) -> None:
    w = SUITE[name]
    mask = w.mask()
    plan = mask.plan(**w.tiles, target="sm_90", head_dim=w.head_dim)
    assert plan.pairs == PAIRS.get(name)
    assert plan.tiles.total == w.heads * plan.q_tiles * plan.kv_tiles
    lanes = plan.q_grid_.tile.lanes * plan.kv_grid_.tile.lanes
    if name in PAIRS:
        assert plan.tiles.full * lanes <= PAIRS[name]
        assert (plan.tiles.full + plan.tiles.partial) * lanes >= PAIRS[name]


@by_name()
def test_masks_for_flex_are_the_definition(name: str) -> None:
    w = SUITE[name].scaled_down()
    mask, arrays = w.mask(), w.arrays()
    heads, queries, keys = mask.shape
    rows = w.queries or queries
    tensors = {n: torch.from_numpy(x) for n, x in arrays.items()}
    use = flex_use(w, tensors, CPU, keys - rows)
    kept = 0
    for b in range(w.batch):
        for h in range(heads):
            want = mask.dense(head=h, batch=b, queries=w.queries, **arrays)
            kept += int(want.sum())
            assert want.any(1).all()  # FlexAttention is told that no row is empty
            if use is None:
                assert want.all()
                continue
            place = torch.tensor(b), torch.tensor(h)
            got = use.mask_mod(*place, torch.arange(rows)[:, None], torch.arange(keys))
            assert np.array_equal(got.numpy(), want)
    assert Problem.of(w, CPU).pairs() == kept


@by_name("alibi-16k")
def test_scores_for_flex_are_the_definition(name: str) -> None:
    w = SUITE[name].scaled_down()
    arrays = w.arrays()
    use = flex_use(w, {n: torch.from_numpy(x) for n, x in arrays.items()}, CPU)
    assert use is not None and use.score_mod is not None
    n = w.bind["n"]
    logits = np.random.default_rng(0).normal(size=(n, n))
    for h in range(w.heads):
        at = torch.arange(n)
        place = torch.tensor(0), torch.tensor(h), at[:, None], at
        got = use.score_mod(torch.from_numpy(logits), *place)
        keep = w.mask().dense(head=h, **arrays)
        want = w.mask().scores(logits, head=h, **arrays)
        assert np.allclose(got.numpy()[keep], want[keep], rtol=1e-6)


@by_name()
def test_every_query_sees_itself_at_full_size(name: str) -> None:
    w = SUITE[name]
    mask, arrays = w.mask(), w.arrays()
    for row in np.random.default_rng(0).integers(0, mask.shape[1], 3).tolist():
        assert mask.dense(head=w.heads - 1, queries=1, q_offset=row, **arrays)[0, row]


def test_a_file_with_an_unknown_field_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "some.toml"
    file.write_text('[[workload]]\nname = "a"\nheadz = 3\n')
    with pytest.raises(ValueError, match="headz"):
        load_workloads(file)


# The reference rows


def problem(name: str) -> Problem:
    return Problem.of(SUITE[name].scaled_down(), CPU)


def grouped() -> Problem:
    w = Workload("grouped", "", "std/causal", {"n": 70}, heads=6, kv_heads=2, batch=2)
    return Problem.of(Workload(**{**vars(w), "dtype": "float32", "head_dim": 16}), CPU)


def truth_of(p: Problem) -> Truth:
    return Truth(p.mask, p.q, p.k, p.v, p.arrays)


def by_definition(p: Problem) -> Any:
    """Dense attention by the reference backend, differentiable."""
    w = p.workload
    kernel = maskdsl.compile(p.mask, w.head_dim, p.q.dtype, backend="reference")
    return lambda q, k, v: kernel(q, k, v, **p.inputs)


@pytest.mark.parametrize("make", [
    lambda: problem("strided-16k"), lambda: problem("alibi-16k"), lambda: problem("documents-64k"),
    lambda: problem("swin"), grouped,
], ids=["heads", "scores", "inputs", "batches", "groups"])  # fmt: skip
def test_reference_rows_agree_with_dense_attention(make: Callable[[], Problem]) -> None:
    p = make()
    truth, attention = truth_of(p), by_definition(p)
    forward = truth.check_forward(attention)
    assert forward["ok"] and forward["error"] < 1e-5 and forward["poisoned_error"] < 1e-5
    backward = truth.check_backward(attention)
    assert backward["ok"] and backward["error"] < 1e-5 and backward["stray"] == 0
    kernel = maskdsl.compile(p.mask, 16, p.q.dtype, backend="reference")
    _, lse = kernel(p.q, p.k, p.v, return_lse=True, **p.inputs)
    assert truth.check_lse(lse, True)["ok"]
    assert not truth.check_lse(lse + 0.01, True)["ok"]
    assert not truth.check_lse(lse * float("nan"), True)["ok"]


def softmax(p: Problem, forbidden: float, shift: int = 0) -> Attention:
    """Attention that writes `forbidden` where a pair is not kept, of a mask moved by `shift`."""
    keep = torch.from_numpy(np.stack([p.mask.dense(h) for h in range(p.q.shape[1])]))
    keep = keep.roll(shift, -1)

    def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        s = (q @ k.mT * q.shape[-1] ** -0.5).masked_fill(~keep, forbidden)
        return torch.softmax(s, -1) @ v

    return attention


def test_the_reference_finds_what_is_wrong() -> None:
    p = problem("window-32k")
    truth = truth_of(p)
    right = softmax(p, -torch.inf)
    assert truth.check_forward(right)["ok"] and truth.check_backward(right)["ok"]
    moved = truth.check_forward(softmax(p, -torch.inf, shift=1))
    assert not moved["ok"] and moved["error"] > 1e-2
    leak = truth.check_forward(softmax(p, -20.0))  # seen only where values are huge
    assert leak["error"] < 1e-4 and not leak["ok"] and leak["poisoned_error"] > 1

    def unwritten(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = right(q, k, v).clone()
        out[0, 1, 77] = torch.nan
        return out

    assert not truth.check_forward(unwritten)["ok"]
    assert not truth.check_forward(lambda q, k, v: right(q, k, v)[:, :, 1:])["ok"]


class Skewed(torch.autograd.Function):
    """The identity, with a gradient that is a little off at one token."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Tensor:
        off = upstream.clone()
        off[0, 0, 5] += 0.1
        return off


@pytest.mark.parametrize("side", range(3), ids="qkv")
def test_the_reference_finds_wrong_gradients(side: int) -> None:
    p = problem("window-32k")
    right = softmax(p, -torch.inf)

    def attention(*qkv: Tensor) -> Tensor:
        return right(*(Skewed.apply(x) if i == side else x for i, x in enumerate(qkv)))

    assert not truth_of(p).check_backward(attention)["ok"]


# Timing and processes


def test_runs_are_timed_in_turn() -> None:
    order: list[str] = []

    def run(name: str, seconds: float) -> Callable[[], None]:
        def body() -> None:
            order.append(name)
            time.sleep(seconds)

        return body

    runs = {"a": run("a", 0.002), "b": run("b", 0.02)}
    got = in_turn(Stopwatch(CPU), runs, {"a": 0.002, "b": 0.02}, 0.0)
    assert order == ["a", "b"] * 4  # one round first, to see how long one takes
    assert got["a"]["samples"] == 3 and got["a"]["method"] == "clock"
    assert got["a"]["seconds"] >= 0.002 and got["b"]["seconds"] >= 0.02
    low, high = got["b"]["spread_s"]
    assert low <= got["b"]["seconds"] <= high


def test_a_machine_without_nvidia_smi_has_no_clocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert smi(["clocks.sm"]) is None


def test_failures_are_told_apart() -> None:
    def refuse() -> dict[str, Any]:
        raise maskdsl.PlanError("too many tiles\nand more")

    def fail() -> dict[str, Any]:
        raise RuntimeError("no kernel\nin detail")

    record: dict[str, Any] = {}
    assert attempt(refuse, record) == {"refused": "too many tiles"}
    assert attempt(fail, record) == {"failed": "RuntimeError: no kernel"}
    assert record == {}


def step(how: str, save: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """A task for the processes below."""
    save({"begun": how})
    if how == "die":
        os._exit(3)
    if how == "raise":
        raise RuntimeError("no\nmore")
    if how == "hang":
        time.sleep(600)
    return {"did": how}


def test_what_breaks_a_process_breaks_no_other() -> None:
    worker = Worker()
    try:
        assert worker.ask((step, ("work",)), 120) == {"did": "work"}
        assert worker.ask((step, ("raise",)), 120) == {"failed": "RuntimeError: no"}
        hung = worker.ask((step, ("hang",)), 1)
        assert hung == {"begun": "hang", "stopped": "ran past 1 s"}
    finally:
        worker.end()
    worker = Worker()
    try:
        died = worker.ask((step, ("die",)), 120)
        assert died == {"begun": "die", "stopped": "its process ended (3)"}
    finally:
        worker.end()


@pytest.mark.slow
def test_tasks_run_in_parallel() -> None:
    tasks = [(step, (how,)) for how in ("work", "die", "work", "raise")]
    died = {"failed": "its process ended"}
    got = [(how, result) for (_, (how,)), result in in_parallel(tasks, 2, 120)]
    raised = {"failed": "RuntimeError: no"}
    want = [("work", {"did": "work"})] * 2 + [("die", died), ("raise", raised)]
    assert sorted(got, key=str) == sorted(want, key=str)
    assert list(in_parallel([(step, ("hang",))], 1, 1)) == []


def test_contenders_can_be_run_once_beforehand() -> None:
    w = SUITE["causal-16k"].scaled_down()
    assert warm(w, CPU, "forward", "ours")["seconds"] > 0
    tasks = gpu.compilations([SUITE["causal-16k"], SUITE["decode-128k"]], ("forward", "backward"))
    names = [(w.name, direction, name) for _, (w, direction, name) in tasks]
    assert len(names) == len(set(names))
    assert names[0] == ("causal-16k", "forward", "ours")
    assert ("decode-128k", "forward", "flex/default") in names
    assert not any(n == "decode-128k" and d == "backward" for n, d, _ in names)


# Runs and reports


def run_tiny(folder: Path, *arguments: str) -> dict[str, Any]:
    file = folder / "tiny.json"
    gpu.main(["--tiny", "--json", str(file), *arguments])
    found: dict[str, Any] = json.loads(file.read_text())
    return found


def check_workload(w: dict[str, Any]) -> None:
    """Ours and FlexAttention are right, and all else has a reason."""
    for direction in ("forward", "backward"):
        for name, result in w[direction].get("contenders", {}).items():
            reasons = {"refused", "skipped", "failed"} & set(result)
            assert bool(reasons) != ("quick_s" in result), (w["name"], name, result)
            if "quick_s" in result and result["masked"]:
                assert result["check"]["ok"], (w["name"], name, result)
    forward = w["forward"]["contenders"]
    assert "seconds" in forward["flex/default"] and forward["sdpa_cudnn"]["skipped"]
    assert forward["ours"]["seconds"] > 0 and "lse_error" in forward["ours"]["check"]
    assert w["plan"]["total"] > 0 and 0 < w["density"] <= 1
    assert w["forward"]["predicted"]["seconds"] > 0


def test_a_tiny_run_and_its_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = run_tiny(tmp_path, "--only", "strided-16k", "alibi-16k", "decode-128k")
    assert [w["name"] for w in found["workloads"]] == ["strided-16k", "alibi-16k", "decode-128k"]
    for w in found["workloads"]:
        check_workload(w)
    assert found["versions"]["torch"] == torch.__version__ and found["date"]
    capsys.readouterr()
    report.main([str(tmp_path / "tiny.json"), "--plots", str(tmp_path / "plots")])
    told = capsys.readouterr().out
    assert "Not measured on a GPU" in told and "| ALiBi causal, 16K |" in told
    assert "GQA 32/8 decode, 128K keys, window 8192: skipped: decoding has no backward" in told
    for kind in ("speedups", "predictions"):
        png = (tmp_path / "plots" / f"tiny-{kind}.png").read_bytes()
        assert png.startswith(b"\x89PNG") and len(png) > 10_000


@pytest.mark.slow
def test_all_workloads_run_tiny(tmp_path: Path) -> None:
    found = run_tiny(tmp_path)
    assert [w["name"] for w in found["workloads"]] == list(SUITE)
    for w in found["workloads"]:
        check_workload(w)
    natten = [w["forward"]["contenders"].get("natten/tiled") for w in found["workloads"]]
    assert sum(r is not None for r in natten) == 4


def result(seconds: float, masked: bool = True, ok: bool = True) -> dict[str, Any]:
    return {"masked": masked, "seconds": seconds, "tflops": 1.0, "check": {"ok": ok}}


def test_a_report_compares_with_the_best_that_is_right() -> None:
    contenders = {
        "ours": result(2e-3),
        "flex/default": result(6e-3),
        "flex/safe": result(5e-3),
        "flex/64x64": result(1e-3, ok=False),
        "sdpa_cudnn": result(8e-3, masked=False),
        "sdpa_flash": result(9e-3, masked=False),
        "sdpa_cudnn_causal": result(3e-3),
        "natten/flat": {"masked": True, "skipped": "natten does not import"},
    }
    forward = {"contenders": contenders, "predicted": {"seconds": 1.5e-3}}
    record = {"name": "some", "title": "some", "density": 0.25, "forward": forward}
    s = report.summary(record, "forward")
    assert s["flex_name"] == "flex/safe" and s["flex_ratio"] == pytest.approx(2.5)
    assert s["dense_name"] == "sdpa_cudnn" and s["dense_ratio"] == pytest.approx(4)
    assert s["error"] == pytest.approx(-0.25) and s["bound"] == 4 and "natten" not in s
    whole = {"device": {"kind": "cuda"}, "workloads": [record]}
    row = report.table(whole, "forward").splitlines()[2]
    assert "2.50x" in row and "4.00x" in row and "-25%" in row and "5 (safe)" in row
    assert "sdpa_cudnn_causal takes 3 ms, 1.50 times ours" in report.table(whole, "forward")
    stopped = {"name": "x", "title": "x", "stopped": "ran past 9 s"}
    assert "x: stopped: ran past 9 s" in report.table(whole | {"workloads": [stopped]}, "forward")


def test_files_hold_only_what_json_knows(tmp_path: Path) -> None:
    file = tmp_path / "some.json"
    gpu.write({"a": [float("inf"), 1.5], "b": {"c": float("nan")}}, file)
    assert json.loads(file.read_text()) == {"a": ["inf", 1.5], "b": {"c": "nan"}}
    assert list(tmp_path.iterdir()) == [file]


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gpu.main(["--list"])
    assert len(capsys.readouterr().out.splitlines()) == len(SUITE)
    with pytest.raises(SystemExit):
        gpu.main(["--json", str(tmp_path / "x"), "--only", "nothing"])
    if not torch.cuda.is_available():
        with pytest.raises(SystemExit):
            gpu.main(["--json", str(tmp_path / "x")])
        assert "no GPU" in capsys.readouterr().err


def test_a_spent_budget_is_told(tmp_path: Path) -> None:
    found = run_tiny(tmp_path, "--only", "causal-16k", "--budget", "0")
    assert found["workloads"][0]["skipped"] == "the budget is spent"
