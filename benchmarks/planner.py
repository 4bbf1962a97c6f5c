"""The planner against torch's `create_block_mask`, and its growth with the number of tokens.

    python -m benchmarks.planner --json FILE [--plot FILE.png] [--growth]

Every measurement runs in a process of its own: seconds of the first call (which compiles, where
that is what is measured) and of the fastest later one; peak of resident memory. Both leave out the
imports, also those that torch puts off to its first use.
"plan" is text to rows, "to_flex" text to BlockMask, parsing and binding included; "eager" and
"compiled" are `create_block_mask` of a mask_mod written by hand. "plan" takes box tiles where a
pattern has several axes, the others blocks of flattened tokens. What would outgrow the free memory
or the time limit, by the size before, is skipped, and says so.
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import itertools
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch.nn.attention.flex_attention import create_block_mask

import maskdsl
from benchmarks.measure import free_bytes, in_a_fresh_process, machine, timed, versions
from benchmarks.planner_cases import BLOCK, COMPARED, GROWN, Case
from benchmarks.planner_plots import plot_comparison, plot_growth

METHODS = ("plan", "to_flex", "eager", "compiled")
SIZES = (4096, 16384, 65536)
GROWTH = tuple(2**e for e in range(14, 25, 2))
LIMIT_S = 240.0  # of one process
SHARE = 0.7  # of the free memory that one measurement may take

LATE = ("torch._dynamo", "torch._inductor.compile_fx")  # imported by torch at its first use

Sample = dict[str, Any]


def method(name: str, case: Case) -> Callable[[], object]:
    """What is measured."""
    if name == "plan":
        return lambda: [
            c.runs for c in case.mask().plan(q_tile=case.tile, kv_tile=case.tile).head_classes
        ]
    if name == "to_flex":
        return lambda: maskdsl.to_flex(case.mask(), BLOCK)
    queries, keys = case.mask().shape[1:]
    create = create_block_mask if name == "eager" else torch.compile(create_block_mask)
    return lambda: create(case.mask_mod, None, None, queries, keys, "cpu", BLOCK_SIZE=BLOCK)


def growth(pattern: str, tokens: list[int]) -> list[Sample]:
    """Plans of a bound mask, without rows: seconds, and how many boxes were looked at."""
    found = []
    for n in tokens:
        case = GROWN[pattern](n)
        mask = case.mask()

        def plan(mask: maskdsl.Mask = mask, tile: tuple[int, ...] = case.tile) -> maskdsl.Plan:
            return mask.plan(q_tile=tile, kv_tile=tile)

        trees = [t for c in plan().head_classes for t in c.all_trees]
        boxes = sum(level.kind.size for t in trees for level in t.levels)
        seconds = timed(plan)["steady_s"]
        found.append({"pattern": pattern, "tokens": n, "seconds": seconds, "boxes": boxes})
    return found


def compare(sizes: list[int], patterns: list[str], limit_s: float, tick: Any) -> list[Sample]:
    """Samples of every method, pattern and size; {"skipped": why} where there is none."""
    found: list[Sample] = []
    with tempfile.TemporaryDirectory() as folder:
        # Kernels are compiled anew; what all of them share, such as precompiled headers, is there.
        environment = {"TORCHINDUCTOR_CACHE_DIR": folder, "TORCHINDUCTOR_FX_GRAPH_CACHE": "0"}
        measure("compiled", "causal", 512, limit_s, environment)
        for name, pattern in itertools.product(METHODS, patterns):
            last: Sample | None = None
            for n in sizes:
                tick(f"{name}, {pattern}, {n}")
                why = (
                    "" if last is None or name in ("plan", "to_flex") else beyond(last, n, limit_s)
                )
                got = {"skipped": why} if why else measure(name, pattern, n, limit_s, environment)
                sample = {"method": name, "pattern": pattern, "tokens": n, **got}
                found.append(sample)
                last = sample if "skipped" not in sample else last
    return found


def measure(
    name: str, pattern: str, tokens: int, limit_s: float, environment: dict[str, str]
) -> Sample:
    arguments = ["--sample", name, pattern, str(tokens)]
    return in_a_fresh_process("benchmarks.planner", arguments, limit_s, environment)


def beyond(last: Sample, tokens: int, limit_s: float) -> str:
    """Why a method whose cost grows with the square of the tokens is not tried, or nothing."""
    ratio = (tokens / last["tokens"]) ** 2
    need, free = last["first_bytes"] * ratio, SHARE * free_bytes()
    if need > free:
        return f"needs about {need / 2**30:.0f} GiB, {free / 2**30:.0f} GiB may be taken"
    if last["steady_s"] * ratio > limit_s:
        return f"takes about {last['steady_s'] * ratio:.0f} s, the limit is {limit_s:.0f} s"
    return ""


def summary(samples: list[Sample], sizes: list[int]) -> list[Table]:
    """A table per size: milliseconds and megabytes of each method."""
    tables = []
    for n in sizes:
        table = Table("pattern", title=f"{n} tokens: ms of the first call, of a later one, MB")
        rows: dict[str, list[str]] = {}
        for name in METHODS:
            table.add_column(name, justify="right")
        for s in samples:
            if s["tokens"] == n:
                text = "skipped"
                if "skipped" not in s:
                    seconds = f"{s['first_s'] * 1e3:.0f}, {s['steady_s'] * 1e3:.1f}"
                    text = f"{seconds}, {s['first_bytes'] / 1e6:.0f}"
                rows.setdefault(s["pattern"], []).append(text)
        for pattern, texts in rows.items():
            table.add_row(pattern, *texts)
        tables.append(table)
    return tables


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.planner")
    parser.add_argument("--json", type=Path, help="where the samples go")
    parser.add_argument("--plot", type=Path, help="a PNG; that of growth goes beside it")
    parser.add_argument("--growth", action="store_true", help="measure growth to 2^24 tokens too")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--growth-sizes", type=int, nargs="+", default=GROWTH)
    parser.add_argument("--patterns", nargs="+", choices=COMPARED, default=list(COMPARED))
    parser.add_argument("--limit", type=float, default=LIMIT_S, help="seconds of one process")
    parser.add_argument("--sample", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--grow", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.sample:
        name, pattern, tokens = options.sample
        for late in LATE if name != "plan" else ():
            importlib.import_module(late)
        print(json.dumps(timed(method(name, COMPARED[pattern](int(tokens))))))
        return
    if options.grow:
        print(json.dumps({"samples": growth(options.grow, options.growth_sizes)}))
        return
    if options.json is None:
        parser.error("--json FILE is where the samples go")
    console = Console()
    grown: list[Sample] = []
    total = len(METHODS) * len(options.patterns) * len(options.sizes)
    total += len(GROWN) if options.growth else 0
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=total)

        def tick(what: str) -> None:
            progress.update(task, description=what, advance=1)

        samples = compare(options.sizes, options.patterns, options.limit, tick)
        for pattern in GROWN if options.growth else ():
            tick(f"growth, {pattern}")
            arguments = ["--grow", pattern, "--growth-sizes", *map(str, options.growth_sizes)]
            got = in_a_fresh_process("benchmarks.planner", arguments, options.limit, {})
            grown += got.get("samples", [{"pattern": pattern, **got}])
    record = {
        "date": datetime.date.today().isoformat(),
        "machine": machine(),
        "versions": versions("maskdsl", "numpy", "torch"),
        "block": BLOCK,
        "samples": samples,
        "growth": grown,
    }
    options.json.write_text(json.dumps(record, indent=1) + "\n")
    if options.plot:
        plot_comparison(samples, options.plot)
        if grown:
            plot_growth(grown, options.plot.with_stem(f"{options.plot.stem}-growth"))
    if console.is_terminal:
        console.print(*summary(samples, options.sizes))


if __name__ == "__main__":
    main()
