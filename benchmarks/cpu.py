"""Attention on a CPU: the torch backend against compiled FlexAttention, dense SDPA and NATTEN.

    python -m benchmarks.cpu --json FILE [--plot FILE.png] [--cases ...] [--memory]

Each case runs in a process of its own, with compiler caches of its own; ours and its peers are
called in turn, and samples during which other processes kept the cores busy are discarded.
FlexAttention counts with the best of its block sizes, and forward only: on a CPU it has no
backward. "Set-up" is the first call less a steady one, from text to kernel for us, compilation for
FlexAttention: cold, with nothing compiled yet (our C++ neither), and warm. Errors are of some
queries against float64, at logits of standard deviation 1 and 8.
Memory is the peak above inputs and outputs, at three lengths of a causal window.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import tempfile
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.cpu_cases import CASES, DIM, HEADS, TINY, window
from benchmarks.cpu_plots import plot
from benchmarks.cpu_sample import errors, ours, speed, tensors
from benchmarks.measure import in_a_fresh_process, machine, timed, versions

DTYPES = ("float32", "bfloat16")
PEERS = ("flex", "sdpa", "natten")
LENGTHS = (2**14, 2**16, 2**18)
LIMIT_S = 3600.0  # of one process
LEAST_SETUP = 0.01  # seconds: what steady calls differ by, at least

Sample = dict[str, Any]


def sample(name: str, dtype: str, peers: tuple[str, ...]) -> Sample:
    """What one case gives in this process."""
    case = (CASES | TINY)[name]()
    number = getattr(torch, dtype)
    return {**speed(case, number, peers), "errors": errors(case, number, peers)}


def memory(tokens: int, dtype: str) -> Sample:
    """Bytes above q, k, v and what a call returns: forward, and forward with backward."""
    case = window(tokens)
    number = getattr(torch, dtype)
    kernel = ours(case, number)
    one = HEADS * tokens * DIM * number.itemsize
    q, k, v = tensors(case, number)
    forward = timed(lambda: kernel(q, k, v))["first_bytes"] - one
    leaves = [x.requires_grad_() for x in (q, k, v)]
    do = torch.randn_like(q)
    out = kernel(*leaves)
    assert isinstance(out, torch.Tensor)
    backward = timed(lambda: torch.autograd.grad(out, leaves, do, retain_graph=True))
    return {
        "tokens": tokens,
        "dtype": dtype,
        "forward_bytes": forward,
        "backward_bytes": backward["first_bytes"] - 3 * one,
        "input_bytes": 3 * one,
    }


def judged(found: Sample) -> Sample:
    """The sample with its ratios: seconds of each peer by ours, forward; of set-up; of forward and
    backward by forward; errors by ours.
    """
    if "skipped" in found:
        return found
    ratios = found["forward"]["ratios"]
    flex = {n: r for n, r in ratios.items() if n.startswith("flex")}
    by_ours = {n: r for n, r in ratios.items() if n in PEERS}
    result = {**found, "by_ours": by_ours}
    if flex:
        best = min(flex, key=lambda n: flex[n])
        by_ours["flex"] = flex[best]
        result["best_flex"] = best
        setup = found["setup"]
        first = next(n for n in setup if n in flex)
        later = best if best != first else list(flex)[1]
        result["setup_by_ours"] = {
            "cold": setup[first] / max(setup["cold"], LEAST_SETUP),
            "warm": setup[later] / max(setup["ours"], LEAST_SETUP),
        }
        result["error_by_flex"] = {d: e["ours"] / e["flex"] for d, e in found["errors"].items()}
    result["both_by_forward"] = 1 / found["both"]["ratios"]["forward"]
    return result


def summary(samples: list[Sample]) -> Table:
    table = Table("case", "type", "ms", "flex", "sdpa", "natten", "set-up", "both", "error")
    for s in samples:
        if "skipped" in s:
            table.add_row(s["case"], s["dtype"], s["skipped"])
            continue
        ratio = (f"{s['by_ours'][p]:.2f}" if p in s["by_ours"] else "" for p in PEERS)
        error = "/".join(f"{x:.2f}" for x in s.get("error_by_flex", {}).values())
        seconds = s["forward"]["runs"]["ours"]["seconds"]
        setup = "/".join(f"{x:.0f}" for x in s.get("setup_by_ours", {}).values())
        both = f"{s['both_by_forward']:.2f}"
        table.add_row(s["case"], s["dtype"], f"{seconds * 1e3:.0f}", *ratio, setup, both, error)
    return table


def means(samples: list[Sample]) -> dict[str, Any]:
    """Geometric means over cases, per type."""
    found: dict[str, Any] = {}
    for dtype in dict.fromkeys(s["dtype"] for s in samples):
        own = [s for s in samples if s["dtype"] == dtype and "skipped" not in s]
        flex = [s["by_ours"]["flex"] for s in own if "flex" in s["by_ours"]]
        both = [s["both_by_forward"] for s in own]
        found[dtype] = {
            name: math.exp(sum(map(math.log, x)) / len(x))
            for name, x in (("flex", flex), ("both_by_forward", both))
            if x
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cpu")
    parser.add_argument("--json", type=Path, help="where the samples go")
    parser.add_argument("--plot", type=Path, help="a PNG")
    parser.add_argument("--cases", nargs="+", choices=CASES | TINY, default=list(CASES))
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=list(PEERS))
    parser.add_argument("--memory", action="store_true", help="measure memory too")
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS)
    parser.add_argument("--limit", type=float, default=LIMIT_S, help="seconds of one process")
    parser.add_argument("--sample", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--bytes", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.sample:
        print(json.dumps(sample(*options.sample, tuple(options.peers))))
        return
    if options.bytes:
        print(json.dumps(memory(int(options.bytes[0]), options.bytes[1])))
        return
    if options.json is None:
        parser.error("--json FILE is where the samples go")
    console = Console()
    samples: list[Sample] = []
    for dtype in options.dtypes:
        for name in options.cases:
            with tempfile.TemporaryDirectory() as folder:
                arguments = ["--sample", name, dtype, "--peers", *options.peers]
                caches = {
                    "TORCHINDUCTOR_CACHE_DIR": folder, "TORCHINDUCTOR_FX_GRAPH_CACHE": "0",
                    "MASKDSL_CACHE_DIR": folder,
                }  # fmt: skip
                got = in_a_fresh_process("benchmarks.cpu", arguments, options.limit, caches)
            samples.append({"case": name, "dtype": dtype, **judged(got)})
            write(options.json, samples, [])
            if console.is_terminal:
                console.print(summary(samples[-1:]))
    bytes_: list[Sample] = []
    for tokens in options.lengths if options.memory else ():
        for dtype in options.dtypes:
            arguments = ["--bytes", str(tokens), dtype]
            bytes_.append(in_a_fresh_process("benchmarks.cpu", arguments, options.limit, {}))
    write(options.json, samples, bytes_)
    if options.plot:
        plot(samples, options.plot)
    if console.is_terminal:
        console.print(summary(samples))


def write(path: Path, samples: list[Sample], bytes_: list[Sample]) -> None:
    record = {
        "date": datetime.date.today().isoformat(),
        "machine": machine(),
        "versions": versions("maskdsl", "numpy", "torch", "natten"),
        "shape": {"batch": 1, "heads": HEADS, "head_dim": DIM},
        "samples": samples,
        "geometric_means": means(samples),
        "memory": bytes_,
    }
    path.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
