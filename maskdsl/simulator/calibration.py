"""From times of probes to a device file: rates as slopes of medians, each with its source.

What times the probes is an argument (`Bench`), so that none of this needs a GPU.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from maskdsl.errors import BindError

LEAST_S = 4e-3  # of the shortest of three runs: long beside launches and the timer's steps
MOST_TURNS = 1 << 28
REPEATS = 7
ATTEMPTS = 3
STRAIGHT = 0.08  # by which the two slopes of three runs may differ
DROPPED = 0.97  # of the highest clock, below which the device held its clock down

# What is measured, and how its work is counted.
RATES: Mapping[str, str] = {
    "bf16_flops": "FLOP/s of tl.dot, bfloat16",
    "fp16_flops": "FLOP/s of tl.dot, float16",
    "tf32_flops": "FLOP/s of tl.dot, float32 as tf32",
    "exponentials": "exponentials a second",
    "multiplications": "fp32 multiply-adds a second",
    "integers": "integer instructions a second",
    "instructions": "instructions of all kinds a second",
    "memory_bandwidth": "bytes a second, read and written",
    "l2_bandwidth": "bytes a second, read from the L2",
}


@dataclass(frozen=True)
class Facts:
    """What the driver says of a GPU. highest_clock: in Hz. versions: of the software, as text."""

    full_name: str
    target: str
    compute_units: int
    highest_clock: float
    memory_bytes: int
    l2_bytes: int
    shared_per_unit: int
    shared_per_block: int
    registers_per_unit: int
    versions: str


class Bench(Protocol):
    """seconds: of one run of a probe (a name of RATES) with so many turns. work: of one turn, of
    the whole device. clock: in Hz, while a probe runs. launch: seconds of a kernel that does
    nothing, among others.
    """

    def facts(self) -> Facts: ...
    def seconds(self, probe: str, turns: int) -> float: ...
    def work(self, probe: str) -> float: ...
    def clock(self) -> float: ...
    def launch(self) -> float: ...


@dataclass(frozen=True)
class Rate:
    """value: work a second. bend: by how much of it the slopes of a short and a long run differ."""

    value: float
    bend: float


def measured_rate(bench: Bench, probe: str) -> Rate:
    """The slope of work over time between runs of one, two and four lengths, so that neither
    launches nor the first turns count.

    Raises BindError where the time does not grow with the work.
    """
    work, turns, bend = bench.work(probe), _turns(bench, probe), float("inf")
    for _ in range(ATTEMPTS):
        lengths = (turns, 2 * turns, 4 * turns)
        one, two, four = (_median(partial(bench.seconds, probe, n)) for n in lengths)
        first, second = two - one, (four - two) / 2
        if first > 0 and second > 0:
            bend = abs(first / second - 1)
            if bend <= STRAIGHT:
                return Rate(3 * turns * work / (four - one), bend)
        turns = min(2 * turns, MOST_TURNS)
    raise BindError(
        f"the times of '{probe}' do not grow with its work (slopes differ by {bend:.0%}): is the "
        "GPU busy with something else?"
    )


def _turns(bench: Bench, probe: str) -> int:
    """So many that a run is long enough. The shorter of two counts: one may compile, or wait."""
    turns = 1
    while turns < MOST_TURNS and min(bench.seconds(probe, turns) for _ in range(2)) < LEAST_S:
        turns *= 2
    return turns


def _median(run: Callable[[], float]) -> float:
    run()
    return statistics.median(run() for _ in range(REPEATS))


def device_text(
    bench: Bench, name: str, date: str, report: Callable[[str], None] = lambda line: None
) -> str:
    """The TOML text of a device file, which `simulate(device=path)` reads. Takes some seconds.

    report: is given a line for each figure. Raises BindError.
    """
    facts = bench.facts()
    rates: dict[str, Rate] = {}
    clocks = [bench.clock()]
    for probe, what in RATES.items():
        rates[probe] = measured_rate(bench, probe)
        report(f"{what}: {rates[probe].value:.4g}")
    clocks.append(bench.clock())
    clock, launch = statistics.median(clocks), _median(bench.launch)
    report(f"launch of a kernel: {launch * 1e6:.2f} us")
    per_clock = facts.compute_units * clock
    vector = rates["multiplications"].value
    measured: dict[str, float] = {
        "bf16_flops": rates["bf16_flops"].value,
        "fp16_flops": rates["fp16_flops"].value,
        "tf32_flops": rates["tf32_flops"].value,
        "fp32_flops": 2 * vector,
        "exponentials_per_clock": rates["exponentials"].value / per_clock,
        "integer_ops_per_clock": rates["integers"].value / per_clock,
        "vector_ops_per_clock": vector / per_clock,
        "issue_lanes_per_clock": rates["instructions"].value / per_clock,
        "memory_bandwidth": rates["memory_bandwidth"].value,
        "l2_bandwidth": rates["l2_bandwidth"].value,
        "launch_overhead": launch,
        "clock": clock,
    }
    reported: dict[str, int] = {
        "compute_units": facts.compute_units,
        "memory_bytes": facts.memory_bytes,
        "l2_bytes": facts.l2_bytes,
        "last_level_cache_bytes": facts.l2_bytes,
        "shared_per_unit": facts.shared_per_unit,
        "shared_per_block": facts.shared_per_block,
        "registers_per_unit": facts.registers_per_unit,
    }
    where = f"{facts.full_name}, {date}, {facts.versions}"
    bend = max(rate.bend for rate in rates.values())
    drop = _dropped(min(clocks), facts.highest_clock)
    sources = {
        "measured": f"measured by maskdsl calibrate on {where}: medians of {REPEATS} runs, slopes "
        f"between lengths that differ by at most {bend:.1%}",
        "reported": f"what the driver reports of {where}",
        "clock": f"while products ran, before and after the rates, on {where}{drop}",
    }
    lines = [f"# {facts.full_name}, as measured. Rates are dense (no sparsity)."]
    names = {"name": name, "full_name": facts.full_name, "target": facts.target}
    lines += [f"{key} = {json.dumps(value)}" for key, value in names.items()]
    lines += ["", *(_line(n, float(f"{x:.5g}"), n) for n, x in measured.items())]
    lines += ["", *(_line(n, x, "reported") for n, x in reported.items())]
    lines += ["", "[sources]", *(f"{n} = {json.dumps(text)}" for n, text in sources.items())]
    return "\n".join(lines) + "\n"


def _line(name: str, value: float, source: str) -> str:
    kind = source if source in ("clock", "reported") else "measured"
    return f'{name} = {{ value = {value!r}, source = "{kind}" }}'


def _dropped(lowest: float, highest: float) -> str:
    if lowest >= DROPPED * highest:
        return ""
    return f"; it fell to {lowest / 1e6:.0f} of at most {highest / 1e6:.0f} MHz under load"
