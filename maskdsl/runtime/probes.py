"""The probes on a GPU: their tensors, launches and times."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
import triton

from maskdsl.errors import BindError
from maskdsl.runtime import probe_kernels as kernels
from maskdsl.simulator.calibration import Facts

PROGRAMS = 4  # of a multiprocessor, of the probes that load nothing
WARPS = 8
LANES, WIDE = 2048, 4096  # of a program: arithmetic, loads
SIDE = 128  # of a tile of products
PRODUCTS = {
    "bf16_flops": (torch.bfloat16, 64), "fp16_flops": (torch.float16, 64),
    "tf32_flops": (torch.float32, 32),
}  # fmt: skip
COPIED = 1 << 28  # numbers of 4 bytes: many times any L2
FILLING = 1 << 14  # turns that keep the device busy while launches are queued
BUSY = 1 << 21  # turns that keep it so while nvidia-smi looks: about a second
FACTOR, NUMBER = 0.999, 0x5A5A5A5  # arguments of the arithmetic probes
STEPS = int(kernels.STEPS.value)


class Probes:
    """`simulator.calibration.Bench` on one GPU."""

    def __init__(self, device: str = "cuda") -> None:
        self.device = torch.device(device)
        self.out = torch.empty(COPIED, device=self.device)

    @cached_property
    def _properties(self) -> Any:
        return torch.cuda.get_device_properties(self.device)

    @property
    def units(self) -> int:
        return int(self._properties.multi_processor_count)

    def facts(self) -> Facts:
        p = self._properties
        driver, clock = _smi("driver_version", "clocks.max.sm")
        software = f"driver {driver}, torch {torch.__version__}, triton {triton.__version__}"
        return Facts(
            p.name,
            f"sm_{p.major}{p.minor}",
            self.units,
            float(clock) * 1e6,
            p.total_memory,
            p.L2_cache_size,
            p.shared_memory_per_multiprocessor,
            p.shared_memory_per_block_optin,
            p.regs_per_multiprocessor,
            software,
        )

    def work(self, probe: str) -> float:
        """Of one turn of all programs: FLOP, instructions' lanes, or bytes."""
        if probe in PRODUCTS:
            return 2.0 * SIDE * SIDE * PRODUCTS[probe][1] * self.programs(probe)
        if probe == "memory_bandwidth":
            return 2.0 * 4 * (COPIED // 2)
        if probe == "l2_bandwidth":
            return 4.0 * WIDE * self.programs(probe)
        # Blackwell's data centre GPUs take two multiply-adds with one instruction.
        paired = self._properties.major == 10
        each = {"integers": 2, "instructions": 3 if paired else 4}.get(probe, 1)
        return float(each * STEPS * LANES * self.programs(probe))

    def programs(self, probe: str) -> int:
        if probe == "memory_bandwidth":
            return COPIED // 2 // WIDE
        return self.units * (2 if probe in PRODUCTS else PROGRAMS)

    def start(self, probe: str, turns: int) -> None:
        """Launch a probe."""
        grid, out = (self.programs(probe),), self.out
        if probe in PRODUCTS:
            a, b = self._factors(probe)
            inner = a.shape[1]
            kernels.products[grid](a, b, out, turns, SIDE, SIDE, inner, num_warps=WARPS)
        elif probe == "memory_bandwidth":
            half = COPIED // 2
            for _ in range(turns):
                kernels.copies[grid](out[:half], out[half:], WIDE, num_warps=WARPS)
        elif probe == "l2_bandwidth":
            blocks = 1 << (self._properties.L2_cache_size // 4 // (4 * WIDE)).bit_length() - 1
            half = COPIED // 2
            kernels.cached[grid](out[:half], out[half:], turns, blocks, WIDE, num_warps=WARPS)
        elif probe == "integers":
            numbers = out.view(torch.int32)
            kernels.integers[grid](numbers, turns, NUMBER, LANES, num_warps=WARPS)
        elif probe == "instructions":
            kernels.instructions[grid](out, turns, FACTOR, NUMBER, LANES, num_warps=WARPS)
        elif probe == "multiplications":
            kernels.multiplications[grid](out, turns, FACTOR, LANES, num_warps=WARPS)
        else:
            kernels.exponentials[grid](out, turns, LANES, num_warps=WARPS)

    def seconds(self, probe: str, turns: int) -> float:
        return self._between(lambda: self.start(probe, turns))

    def clock(self) -> float:
        """In Hz, while the tensor cores are at work."""
        self.start("bf16_flops", BUSY)
        (clock,) = _smi("clocks.sm")
        torch.cuda.synchronize(self.device)
        return float(clock) * 1e6

    def launch(self) -> float:
        """From the end of one kernel to the end of an empty one that was queued behind it."""
        kernels.nothing[(self.units,)](self.out)
        self.start("exponentials", FILLING)
        return self._between(lambda: kernels.nothing[(self.units,)](self.out))

    def _factors(self, probe: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Random ones, as what zeros take is no measure of what a tensor core draws."""
        dtype, inner = PRODUCTS[probe]
        shapes = ((SIDE, inner), (inner, SIDE))
        a, b = (torch.randn(s, device=self.device).to(dtype) for s in shapes)
        return a, b

    def _between(self, run: Callable[[], object]) -> float:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        begin.record()
        run()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end)) * 1e-3


def _smi(*fields: str) -> list[str]:
    """What nvidia-smi says of the first GPU. Raises BindError where it does not answer."""
    command = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        raise BindError(f"calibrate reads clocks from nvidia-smi, which failed: {error}") from error
    return done.stdout.strip().splitlines()[0].split(", ")
