"""Calibration: its arithmetic on times that are made up, its kernels by the interpreter and in
machine code, and its file.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from simulator_plans import FakePlan, one_line

from maskdsl.errors import BindError
from maskdsl.runtime import probe_kernels as kernels
from maskdsl.runtime import probes
from maskdsl.runtime.calibrate import calibrate
from maskdsl.runtime.probes import PRODUCTS, SIDE, STEPS, WARPS, WIDE
from maskdsl.simulator import load_device, simulate
from maskdsl.simulator.calibration import RATES, Facts, device_text, measured_rate

ROOT = Path(__file__).parent.parent
FACTS = Facts(
    'Some "GPU" 80 GB', "sm_90", 132, 1.98e9, 80_000_000_000, 52_428_800, 233_472, 232_448, 65_536,
    "driver 570.1, torch 2.13.0, triton 3.7.1",
)  # fmt: skip
# What the made-up GPU does in a second: that of an H100, with rates of its own.
CLOCK = 132 * 1.9e9
TRUE = {
    "bf16_flops": 700e12, "fp16_flops": 710e12, "tf32_flops": 350e12, "exponentials": 16 * CLOCK,
    "multiplications": 128 * CLOCK, "integers": 64 * CLOCK, "instructions": 127 * CLOCK,
    "memory_bandwidth": 3e12, "l2_bandwidth": 5e12,
}  # fmt: skip


class Clockwork:
    """A GPU whose times follow from TRUE, a launch of 10 us, and some noise."""

    def __init__(self, noise: float = 0.0, clock: float = 1.9e9, power: float = 1.0) -> None:
        self.noise, self.hertz, self.power = noise, clock, power
        self.random = np.random.default_rng(0)
        self.runs: list[str] = []

    def facts(self) -> Facts:
        return FACTS

    def work(self, probe: str) -> float:
        return 1e9 if "flops" in probe else 1e6

    def seconds(self, probe: str, turns: int) -> float:
        first = 5.0 if probe not in self.runs else 0.0  # compiles
        self.runs.append(probe)
        took = (turns * self.work(probe) / TRUE[probe]) ** self.power
        late = abs(self.random.standard_cauchy()) * self.noise  # some samples are far off
        return first + 10e-6 + took * (1 + late)

    def clock(self) -> float:
        return self.hertz

    def launch(self) -> float:
        return 4.2e-6


def test_rates_are_slopes_that_launches_and_compilation_do_not_touch() -> None:
    for probe, expected in TRUE.items():
        rate = measured_rate(Clockwork(), probe)
        assert rate.value == pytest.approx(expected, rel=1e-9) and rate.bend < 1e-6
        noisy = measured_rate(Clockwork(noise=1e-3), probe)
        assert noisy.value == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("power", [0.0, 0.7, 1.4])
def test_times_that_do_not_grow_with_the_work_are_no_measure(power: float) -> None:
    with pytest.raises(BindError) as error:
        measured_rate(Clockwork(power=power), "exponentials")
    assert "'exponentials' do not grow with its work" in one_line(error)


def test_the_file_says_what_was_measured_and_is_read_back(tmp_path: Path) -> None:
    lines: list[str] = []
    text = device_text(Clockwork(), "mine", "2026-11-21", lines.append)
    assert len(lines) == len(RATES) + 1
    path = tmp_path / "mine.toml"
    path.write_text(text)
    device = load_device(path)
    assert (device.name, device.full_name, device.target) == ("mine", FACTS.full_name, "sm_90")
    expected = {
        "bf16_flops": 700e12, "tf32_flops": 350e12, "fp32_flops": 2 * 128 * CLOCK,
        "exponentials_per_clock": 16, "integer_ops_per_clock": 64,
        "vector_ops_per_clock": 128, "issue_lanes_per_clock": 127,
        "memory_bandwidth": 3e12, "l2_bandwidth": 5e12, "launch_overhead": 4.2e-6, "clock": 1.9e9,
        "compute_units": 132, "l2_bytes": 52_428_800, "last_level_cache_bytes": 52_428_800,
        "memory_bytes": 80_000_000_000, "shared_per_unit": 233_472, "shared_per_block": 232_448,
        "registers_per_unit": 65_536,
    }  # fmt: skip
    for name, value in expected.items():
        assert getattr(device, name) == pytest.approx(value, rel=1e-4), name
    for name in ("bf16_flops", "memory_bytes", "clock"):
        source = device.sources[name]
        assert all(x in source for x in (FACTS.full_name, "2026-11-21", "triton 3.7.1"))
    assert "fell to 1900 of at most 1980 MHz" in device.sources["clock"]
    quick = device_text(Clockwork(clock=1.97e9), "mine", "2026-11-21")
    assert "MHz" not in quick
    plan = FakePlan(np.ones((1, 300, 300), int))
    h100 = replace(load_device("h100"), bf16_flops=700e12, clock=1.9e9)
    assert simulate(plan, device=path).time == pytest.approx(
        simulate(plan, device=h100).time, rel=0.1
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_there_is_one_line(tmp_path: Path) -> None:
    for name, words in (("d.toml", "there is none here"), ("d.json", ".toml")):
        with pytest.raises(BindError) as error:
            calibrate(tmp_path / name)
        assert words in one_line(error)
    assert not list(tmp_path.iterdir())


def test_amd_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.version, "hip", "6.2")
    with pytest.raises(BindError) as error:
        calibrate(tmp_path / "d.toml")
    assert "AMD" in one_line(error)


# The kernels, by the interpreter


def test_what_the_arithmetic_probes_compute() -> None:
    out, numbers = torch.empty(64), torch.empty(64, dtype=torch.int32)
    start = torch.arange(64, dtype=torch.float64) * 1e-9
    kernels.exponentials[(2,)](out, 2, 32)
    x = start
    for _ in range(2 * STEPS):
        x = torch.exp2(-x)
    assert torch.allclose(out.double(), x, rtol=1e-5)
    kernels.multiplications[(2,)](out, 3, 0.5, 32)
    x = start
    for _ in range(3 * STEPS):
        x = x * 0.5 + 0.5
    assert torch.allclose(out.double(), x, rtol=1e-6)
    kernels.integers[(2,)](numbers, 3, 12345, 32)
    n = torch.arange(64)
    for _ in range(3 * STEPS):
        n = (n ^ 12345) + 12345
    assert torch.equal(numbers.long(), n)
    kernels.instructions[(2,)](out, 1, 0.5, 3, 32)
    n, y, z = torch.arange(64), start, start + 0.5
    for _ in range(STEPS):
        n, y, z = (n ^ 3) + 3, y * 0.5 + 0.5, z * 0.5 + 0.5
    assert torch.allclose(out.double(), n + y + z, rtol=1e-5)


def test_what_the_products_and_loads_compute() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randint(-3, 4, s, generator=generator).float() for s in ((16, 32), (32, 16)))
    out = torch.empty(2 * 16 * 16)
    kernels.products[(2,)](a, b, out, 5, 16, 16, 32)
    assert torch.equal(out.view(2, 16, 16), (5 * a @ b).expand(2, 16, 16))
    numbers, other = torch.randn(256, generator=generator), torch.empty(256)
    kernels.copies[(4,)](numbers, other, 64)
    assert torch.equal(numbers, other)
    kernels.cached[(3,)](numbers, other, 6, 4, 64)
    blocks = numbers.view(4, 64)
    for program in range(3):
        total = sum(blocks[(program * 37 + turn) % 4] for turn in range(6))
        assert torch.allclose(other[program * 64 : program * 64 + 64], total, atol=1e-5)
    kernels.nothing[(2,)](other)


def test_every_probe_is_launched_with_what_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "COPIED", 2 * 4 * 4096)
    facts = SimpleNamespace(multi_processor_count=1, L2_cache_size=1 << 17, major=9)
    bench = probes.Probes("cpu")
    bench._properties = facts
    half = probes.COPIED // 2
    for probe in RATES:
        loads = "bandwidth" in probe
        bench.out = torch.zeros(2 * SIDE * SIDE if "flops" in probe else probes.COPIED)
        bench.out[:half] = float(loads)
        bench.start(probe, 2)
        written = bench.out[half:] if loads else bench.out
        assert written.isfinite().all() and written.any(), probe
        assert bench.work(probe) > 0
    # Multiply-adds, an or and an addition for each; Blackwell pairs the multiply-adds.
    lanes = bench.work("exponentials")
    assert bench.work("multiplications") == lanes and bench.work("integers") == 2 * lanes
    assert bench.work("instructions") == 4 * lanes
    bench._properties.major = 10
    assert bench.work("instructions") == 3 * lanes
    assert bench.work("bf16_flops") == 2 * 128 * 128 * 64 * 2  # two programs


# The kernels in machine code

COUNTING = """
import json, subprocess, sys, tempfile
from pathlib import Path
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
sys.path.insert(0, sys.argv[1])  # the two files alone: all of the package takes torch, and seconds
import probe_kernels
from machine_code import read_sass
tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "nvdisasm"
found = []
for name, types, constants, capability, warps in json.load(sys.stdin):
    kernel = getattr(probe_kernels, name)
    aligned = {(i,): [["tt.divisibility", 16]] for i, t in enumerate(types.values()) if t[0] == "*"}
    source = ASTSource(kernel, types, constants, aligned)
    target = GPUTarget("cuda", capability, 32)
    code = triton.compile(source, target=target, options={"num_warps": warps})
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(code.asm["cubin"])
        file.flush()
        text = subprocess.run([tool, "-c", file.name], capture_output=True, text=True).stdout
    found.append(read_sass(text).counts())
print(json.dumps(found))
"""


def test_the_machine_code_of_the_probes_holds_what_they_count() -> None:
    few_lanes = 512  # a quarter of what runs, which takes as much less time to compile
    arithmetic = {"LANES": few_lanes}
    lanes = {"LANES": "constexpr"}
    sides = {"M": SIDE, "N": SIDE, "K": PRODUCTS["bf16_flops"][1]}
    product = {"a_ptr": "*bf16", "b_ptr": "*bf16", "out_ptr": "*fp32", "turns": "i32"}
    product |= dict.fromkeys(sides, "constexpr")
    both = {"factor": "fp32", "number": "i32"}
    loads = {"from_ptr": "*fp32", "out_ptr": "*fp32", "turns": "i32", "blocks": "i32", **lanes}
    jobs = [
        ("exponentials", {"out_ptr": "*fp32", "turns": "i32", **lanes}, arithmetic),
        (
            "multiplications",
            {"out_ptr": "*fp32", "turns": "i32", "factor": "fp32", **lanes},
            arithmetic,
        ),
        ("integers", {"out_ptr": "*i32", "turns": "i32", "number": "i32", **lanes}, arithmetic),
        ("instructions", {"out_ptr": "*fp32", "turns": "i32", **both, **lanes}, arithmetic),
        ("cached", loads, {"LANES": WIDE}),
        ("products", product, sides),
    ]
    text = json.dumps([(*job, 90, WARPS) for job in jobs])
    environment = {n: x for n, x in os.environ.items() if n != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", COUNTING, str(ROOT / "maskdsl" / "runtime")],
        input=text, capture_output=True, text=True, env=environment, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    exponentials, multiplied, integers, mixed, cached, products = json.loads(
        done.stdout.splitlines()[-1]
    )
    each, few = STEPS * few_lanes // (32 * WARPS), 24  # of a thread in one turn; around the loop
    assert exponentials["MUFU.EX2"] == multiplied["FFMA"] == each
    for counts in (integers, mixed):
        added = counts.get("VIADD", 0) + counts.get("IADD3", 0)
        assert each <= counts["LOP3"] < each + few and each <= added < each + few
    assert 2 * each <= mixed["FFMA"] < 2 * each + few
    # Loads of four numbers each, and products of a warpgroup (64 x 128 x 16; two share a tile):
    # those of a whole number of turns, as loops are unrolled.
    assert cached["LDG"] >= 4 and cached["LDG"] * 4 * 32 * WARPS % WIDE == 0
    flops, one = 2 * SIDE * SIDE * sides["K"], 2 * 2 * 64 * 128 * 16
    assert products["HGMMA"] >= flops // one and products["HGMMA"] * one % flops == 0
