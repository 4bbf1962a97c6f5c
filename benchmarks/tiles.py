"""Predictions against measurements: workloads of `benchmarks/suite` under ten choices of tiles, on
the GPU at hand.

    python -m benchmarks.tiles --json FILE [--budget SECONDS] [--only NAME ...]
                               [--device NAME_OR_TOML | --calibrate TOML]
    python -m benchmarks.tiles --json FILE --tiny      # scaled down, on the CPU: a check of itself

Forward. Prints a Markdown table: the error of the predicted time, by workload and over all, and how
much longer the choice predicted to be best takes than the one measured to be. `--calibrate` first
measures the GPU's rates and predicts from those.
"""

from __future__ import annotations

import argparse
import datetime
import functools
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch

import maskdsl
from benchmarks.gpu import device_facts, write
from benchmarks.measure import machine, versions
from benchmarks.problem import Problem
from benchmarks.suite import Workload, load_workloads
from benchmarks.timing import Stopwatch
from benchmarks.trial import attempt
from benchmarks.worker import Record, in_parallel
from maskdsl.planner.layout import kernel_lanes
from maskdsl.runtime.calibrate import calibrate

LANES = (
    (128, 64), (128, 128), (64, 64), (64, 128), (128, 32), (64, 32), (32, 64), (32, 128),
    (256, 64), (32, 32), (16, 128), (16, 64),
)  # fmt: skip
CHOICES = 10  # of a workload, the default one among them
BUDGET_S = 540.0
WARM_SHARE = 0.5  # of the budget, at most
WARMERS = 10


def choices(workload: Workload) -> list[tuple[int, int]]:
    """Lanes of query and key tiles, those of kernels by default first."""
    own = kernel_lanes(workload.head_dim)
    return [own, *(lanes for lanes in LANES if lanes != own)][:CHOICES]


def kernel_of(problem: Problem, lanes: tuple[int, int]) -> maskdsl.Kernel:
    """Raises MaskError where such tiles do not fit."""
    plan = problem.mask.plan(lanes=lanes)
    return maskdsl.compile(
        problem.mask, problem.workload.head_dim, problem.q.dtype,
        q_tile=plan.q_tile, kv_tile=plan.kv_tile,
    )  # fmt: skip


def run_of(problem: Problem, kernel: maskdsl.Kernel) -> Any:
    return functools.partial(kernel, problem.q, problem.k, problem.v, **problem.inputs)


def warm(workload: Workload, lanes: tuple[int, int]) -> Record:
    """Compiles into Triton's cache."""
    problem = Problem.of(workload, torch.device("cuda"))
    with torch.no_grad():
        run_of(problem, kernel_of(problem, lanes))()
    torch.cuda.synchronize()
    return {}


def one_choice(problem: Problem, lanes: tuple[int, int], device: str) -> Record:
    """Seconds predicted and measured."""
    kernel = kernel_of(problem, lanes)
    w, watch, run = problem.workload, Stopwatch(problem.device), run_of(problem, kernel)
    p = maskdsl.simulate(kernel, batch=w.batch, device=device, compiled={})  # type: ignore[arg-type]
    with torch.no_grad():
        watch.first(run)
        seconds = watch.quick(run)
    tiles = {"q_tile": str(kernel.plan.q_tile), "kv_tile": str(kernel.plan.kv_tile)}
    return tiles | {"predicted": p.time, "bottleneck": p.bottleneck, "seconds": seconds}


def summary(record: Record) -> Record:
    """Of one workload: the default choice's error, the mean absolute one of all choices, and what
    following the prediction costs.
    """
    timed = [c for c in record["choices"] if "seconds" in c]
    if not timed:
        return {"choices": 0}
    errors = [c["predicted"] / c["seconds"] - 1 for c in timed]
    chosen = min(timed, key=lambda c: c["predicted"])["seconds"]
    return {
        "choices": len(timed),
        "error": errors[0] if timed[0] is record["choices"][0] else None,
        "mean_error": statistics.fmean(map(abs, errors)),
        "loss": chosen / min(c["seconds"] for c in timed) - 1,
    }


def table(record: Record) -> str:
    """Markdown."""
    lines = [
        "| workload | choices | error | mean of all | chosen / best |",
        "|---|---|---|---|---|",
    ]
    found = [(w["title"], summary(w)) for w in record["workloads"]]
    for title, s in found:
        if s["choices"]:
            own = "" if s["error"] is None else f"{s['error']:+.0%}"
            cells = [title, s["choices"], own, f"{s['mean_error']:.0%}", f"{1 + s['loss']:.2f}"]
            lines.append(f"| {' | '.join(map(str, cells))} |")
        else:
            lines.append(f"| {title} | none | | | |")
    own = [abs(s["error"]) for _, s in found if s.get("error") is not None]
    losses = [s["loss"] for _, s in found if "loss" in s]
    if own and losses:
        lines.append(
            f"\nDefault tiles: mean absolute error {statistics.fmean(own):.1%} over {len(own)} "
            f"workloads. The predicted best takes at most {max(losses):.1%} longer than the best."
        )
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    suite = {name: w for name, w in load_workloads().items() if w.queries is None}
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tiles")
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--budget", type=float, default=BUDGET_S, help="seconds of all")
    parser.add_argument("--only", nargs="+", choices=suite, metavar="NAME", default=list(suite))
    parser.add_argument("--device", default="h200", help="predict for this one")
    parser.add_argument("--calibrate", type=Path, help="write a device file and predict for it")
    parser.add_argument("--tiny", action="store_true", help="scaled down, on the CPU")
    options = parser.parse_args(arguments)
    if not options.tiny and not torch.cuda.is_available():
        parser.error("there is no GPU here; --tiny runs the workloads scaled down on the CPU")
    start, device = time.monotonic(), options.device
    if options.calibrate is not None:
        calibrate(options.calibrate, report=print)
        device = str(options.calibrate)
    chosen = [suite[name] for name in dict.fromkeys(options.only)]
    chosen = [w.scaled_down() for w in chosen] if options.tiny else chosen
    record: Record = {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "machine": machine(),
        "device": {"kind": "cpu"} if options.tiny else device_facts(),
        "versions": versions("maskdsl", "torch", "triton"),
        "predicted_for": device,
        "workloads": [],
    }
    if not options.tiny:
        tasks = [(warm, (w, lanes)) for lanes in LANES for w in chosen if lanes in choices(w)]
        list(in_parallel(tasks, WARMERS, options.budget * WARM_SHARE))
    for w in chosen:
        own: Record = {"name": w.name, "title": w.title, "choices": []}
        record["workloads"].append(own)
        problem = Problem.of(w, torch.device("cpu" if options.tiny else "cuda"))
        for lanes in choices(w):
            if time.monotonic() - start > options.budget:
                found: Record = {"skipped": "the budget is spent"}
            else:
                found = attempt(functools.partial(one_choice, problem, lanes, device), own)
            own["choices"].append({"lanes": lanes} | found)
            if "broken" in own:
                break
        write(record, options.json)
        if "broken" in own:
            break
    print(table(json.loads(options.json.read_text())))


if __name__ == "__main__":
    main()
