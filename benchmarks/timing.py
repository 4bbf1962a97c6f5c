"""Times of runs on a device: medians of samples taken in turn, so that clocks that fall under load
fall for all alike.
"""

from __future__ import annotations

import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

Run = Callable[[], object]

FLUSHED_BYTES = 2**28  # several times any L2
SHORT_S = 1e-3  # what is shorter is replayed from a graph: launches from Python take as long
LEAST, MOST = 3, 100  # samples of each run
SLOW_S = 0.05  # what takes longer needs no second look to be ranked
FACTS = ("driver_version", "clocks.max.sm", "clocks.max.mem", "power.limit")
CLOCKS = ("clocks.sm", "clocks.mem", "power.draw", "temperature.gpu", "clocks_event_reasons.active")


class Stopwatch:
    """Seconds of one run on a device, with caches flushed before it."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.cuda = device.type == "cuda"
        self._flushed = torch.empty(FLUSHED_BYTES if self.cuda else 0, dtype=torch.int8)
        self._flushed = self._flushed.to(device)

    def synchronize(self) -> None:
        if self.cuda:
            torch.cuda.synchronize()

    def seconds(self, run: Run) -> float:
        """Of one run by events; the launch hides behind the flush. By the clock on a CPU."""
        if not self.cuda:
            start = time.perf_counter()
            run()
            return time.perf_counter() - start
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self._flushed.zero_()
        begin.record()
        run()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end)) * 1e-3

    def quick(self, run: Run) -> float:
        """Of a run that has been warmed up: the median of three, or one where that is slow."""
        once = self.seconds(run)
        return once if once > SLOW_S else statistics.median(self.seconds(run) for _ in range(3))

    def first(self, run: Run) -> float:
        """Seconds by the clock until the first run is through, compilation included."""
        start = time.perf_counter()
        run()
        self.synchronize()
        return time.perf_counter() - start


def replayed(run: Run) -> Run | None:
    """A CUDA graph of a run, or None where it cannot be captured (it waits for the device, say)."""
    graph = torch.cuda.CUDAGraph()
    try:
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            run()
        torch.cuda.current_stream().wait_stream(aside)
        with torch.cuda.graph(graph):
            run()
    except Exception:  # whatever a peer raises: it is timed by events then
        torch.cuda.synchronize()
        return None
    return graph.replay


def in_turn(
    watch: Stopwatch,
    runs: Mapping[str, Run],
    quick_s: Mapping[str, float],
    budget_s: float,
    graphs: bool = True,
) -> dict[str, dict[str, Any]]:
    """Per run the median of its samples in seconds, their 10th and 90th percentiles, how many they
    are and the method ("graph", "events" or "clock"): one sample of each run after another.

    quick_s: of each run about. budget_s: of all samples together; there are at least LEAST of each
    whatever it is. graphs: whether short runs may be captured.
    """
    method = dict.fromkeys(runs, "events" if watch.cuda else "clock")
    chosen = dict(runs)
    for name, run in runs.items():
        if watch.cuda and graphs and quick_s[name] < SHORT_S:
            graph = replayed(run)
            if graph is not None:
                chosen[name], method[name] = graph, "graph"
    start = time.perf_counter()
    for run in chosen.values():
        watch.seconds(run)
    round_s = time.perf_counter() - start
    rounds = min(MOST, max(LEAST, int(budget_s / max(round_s, 1e-9))))
    samples: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in chosen.items():
            samples[name].append(watch.seconds(run))
    return {
        name: {
            "seconds": statistics.median(taken),
            "spread_s": _percentiles(taken),
            "samples": len(taken),
            "method": method[name],
        }
        for name, taken in samples.items()
    }


def _percentiles(samples: list[float]) -> list[float]:
    ordered = sorted(samples)
    last = len(ordered) - 1
    return [ordered[round(last * share)] for share in (0.1, 0.9)]


def smi(fields: Sequence[str]) -> dict[str, str] | None:
    """What nvidia-smi says of the first GPU: MHz, W, C, and what holds clocks down as a bit mask.
    None where it does not answer.
    """
    command = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    values = done.stdout.strip().splitlines()[0].split(", ")
    return dict(zip(fields, values, strict=False))
