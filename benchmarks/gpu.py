"""All workloads of `benchmarks/suite` on the GPU at hand: correctness, times, predictions, peers.

    python -m benchmarks.gpu --json FILE [--budget SECONDS] [--only NAME ...] [--forward-only]
    python -m benchmarks.gpu --list
    python -m benchmarks.gpu --json FILE --tiny        # scaled down, on the CPU: a check of itself

Workloads run one after another in a process of their own. What they compile is compiled before, by
many processes at once, into the caches of torch and Triton (`first_s` of a result is then the time
to load it; `compiled` has the seconds of each compilation). The file is written anew after every
workload. `python -m benchmarks.report FILE` makes tables and plots of it.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress

from benchmarks.measure import machine, versions
from benchmarks.peers import FLEX_OPTIONS
from benchmarks.suite import Workload, load_workloads
from benchmarks.timing import FACTS, smi
from benchmarks.trial import SAMPLES_S, Effort, trial, warm
from benchmarks.worker import Record, Task, Worker, in_parallel

BUDGET_S = 520.0
WARM_SHARE = 0.3  # of the budget, at most
WARMERS = 10  # processes that compile, at most
GENEROUS = 1.4  # times its even share that one workload may take
GRACE_S = 15.0  # past a workload's time before its process is ended
TINY_S = 60.0  # of a workload scaled down
TINY_SAMPLES_S = 0.02
PACKAGES = ("maskdsl", "torch", "triton", "numpy", "natten")


def run_trial(
    workload: Workload, device: str, effort: Effort, save: Callable[[Record], None]
) -> Record:
    if device == "cpu":
        torch.set_num_threads(1)  # the problems are small, and others work here
    return trial(workload, torch.device(device), effort, save)


def run_warm(
    workload: Workload, direction: str, name: str, save: Callable[[Record], None]
) -> Record:
    return warm(workload, torch.device("cuda"), direction, name)


def device_facts() -> Record:
    """The GPU, its driver and clocks; the CPU where there is none."""
    if not torch.cuda.is_available():
        return {"kind": "cpu"}
    p = torch.cuda.get_device_properties(0)
    return {
        "kind": "cuda",
        "name": p.name,
        "multiprocessors": p.multi_processor_count,
        "memory_bytes": p.total_memory,
        "cuda": torch.version.cuda,
        "smi": smi(FACTS),
    }


def compilations(workloads: list[Workload], directions: tuple[str, ...]) -> list[Task]:
    """What may be compiled beforehand, in the order in which it will be wanted: the default
    options of all workloads before the other ones.
    """
    tasks: list[tuple[int, Task]] = []
    for direction in directions:
        for w in workloads:
            if direction == "backward" and w.queries is not None:
                continue
            own = ["ours", "overlap"] if direction == "forward" else ["ours"]
            names = [*own, *(f"flex/{option}" for option in FLEX_OPTIONS[direction])]
            tasks += [
                (max(0, i - len(own)), (run_warm, (w, direction, name)))
                for i, name in enumerate(names)
            ]
    return [task for _, task in sorted(tasks, key=lambda t: t[0])]


def write(record: Record, path: Path) -> None:
    """At once, so that a reader never sees half of it."""
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(plain(record), indent=1, allow_nan=False) + "\n")
    part.replace(path)


def plain(value: Any) -> Any:
    """With texts for the numbers that JSON lacks: the error of a wrong result may be infinite."""
    if isinstance(value, dict):
        return {key: plain(x) for key, x in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(x) for x in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def measure(
    workloads: list[Workload], options: argparse.Namespace, tick: Callable[[str, int], None]
) -> None:
    start = time.monotonic()
    directions = ("forward",) if options.forward_only else ("forward", "backward")
    on_gpu = not options.tiny
    record: Record = {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "tiny": options.tiny,
        "budget_s": options.budget,
        "machine": machine(),
        "device": device_facts() if on_gpu else {"kind": "cpu"},
        "versions": versions(*(name for name in PACKAGES if importlib.util.find_spec(name))),
        "compiled": [],
        "workloads": [],
    }
    write(record, options.json)
    if on_gpu:
        limit = options.budget * WARM_SHARE
        count = min(WARMERS, max(1, len(os.sched_getaffinity(0)) - 2))
        tick("compiling", 0)
        for (_, (w, direction, name)), got in in_parallel(
            compilations(workloads, directions), count, limit
        ):
            where = {"workload": w.name, "direction": direction, "contender": name}
            record["compiled"].append(where | got)
        write(record, options.json)
    worker = Worker()
    try:
        for i, w in enumerate(workloads):
            tick(w.title, 0)
            left = options.budget - (time.monotonic() - start)
            share = left / (len(workloads) - i) * GENEROUS if on_gpu else TINY_S
            share = min(share, left)
            if share <= 0:
                why = {"skipped": "the budget is spent"}
                record["workloads"].append({"name": w.name, "title": w.title} | why)
                continue
            effort = Effort(share, directions, SAMPLES_S if on_gpu else TINY_SAMPLES_S)
            task = run_trial, (w, "cuda" if on_gpu else "cpu", effort)
            got = worker.ask(task, share + GRACE_S)
            record["workloads"].append({"name": w.name, "title": w.title} | got)
            record["seconds"] = time.monotonic() - start
            write(record, options.json)
            if "stopped" in got or "broken" in got:
                worker.end()
                worker = Worker()
            tick(w.title, 1)
    finally:
        worker.end()
    write(record, options.json)


def main(arguments: list[str] | None = None) -> None:
    suite = load_workloads()
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu")
    parser.add_argument("--json", type=Path, help="where the results go")
    parser.add_argument("--budget", type=float, default=BUDGET_S, help="seconds of all")
    parser.add_argument("--only", nargs="+", choices=suite, metavar="NAME", default=list(suite))
    parser.add_argument("--list", action="store_true", help="name the workloads")
    parser.add_argument("--tiny", action="store_true", help="scaled down, on the CPU")
    parser.add_argument("--forward-only", action="store_true")
    options = parser.parse_args(arguments)
    if options.list:
        for name, w in suite.items():
            print(f"{name:24} {w.title}")
        return
    if options.json is None:
        parser.error("--json FILE is where the results go")
    if not options.tiny and not torch.cuda.is_available():
        parser.error("there is no GPU here; --tiny runs the workloads scaled down on the CPU")
    chosen = [suite[name] for name in dict.fromkeys(options.only)]
    if options.tiny:
        chosen = [w.scaled_down() for w in chosen]
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task("", total=len(chosen))

        def tick(what: str, step: int, bar: Any = bar) -> None:
            progress.update(bar, description=what, advance=step)

        measure(chosen, options, tick)


if __name__ == "__main__":
    main()
