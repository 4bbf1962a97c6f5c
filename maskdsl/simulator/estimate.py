"""The time of one pass: its rows scheduled on the multiprocessors, its traffic, its launch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from maskdsl.simulator.cost import KernelCost, TileCosts, TileShape
from maskdsl.simulator.devices import Device
from maskdsl.simulator.engines import Engine
from maskdsl.simulator.passes import Pass
from maskdsl.simulator.rows import Rows
from maskdsl.simulator.schedule import makespan
from maskdsl.simulator.traffic import Tensors, memory_traffic

WARPGROUP = 4  # warps that issue products together; one alone has nothing to hide behind
MOST_SPLITS = 64  # pieces of a row: as many as the emitted kernels merge


@dataclass(frozen=True)
class Schedule:
    """What the multiprocessors do: rows of `durations[i]` seconds, `counts[i]` of each, on `slots`
    programs at a time.
    """

    durations: NDArray[np.float64]
    counts: NDArray[np.int64]
    slots: int


@dataclass(frozen=True)
class PassEstimate:
    """Where the time of one kernel goes, in seconds.

    `launch` is waited for before the work, after the kernels before it; `compute` (the schedule on
    the multiprocessors) and `memory` (the traffic at full bandwidth) overlap; `merge` is the time
    of putting together what the `splits` pieces of each row found. `shares` divides the
    multiprocessors' time until the last one ends, as fractions that sum to 1. `flops` and `bytes`
    are the matrix products' and the memory's.
    """

    name: str
    launch: float
    compute: float
    memory: float
    merge: float
    splits: int
    shares: dict[str, float]
    flops: float
    bytes: float
    schedule: Schedule = field(compare=False, repr=False)

    @property
    def time(self) -> float:
        return self.launch + max(self.compute, self.memory) + self.merge


@dataclass(frozen=True)
class Estimate:
    """The passes of one run, one after another; times in seconds are sums over them."""

    passes: tuple[PassEstimate, ...]

    @property
    def time(self) -> float:
        return sum(p.time for p in self.passes)

    @property
    def launch(self) -> float:
        return sum(p.launch for p in self.passes)

    @property
    def compute(self) -> float:
        return sum(p.compute for p in self.passes)

    @property
    def memory(self) -> float:
        return sum(p.memory for p in self.passes)

    @property
    def splits(self) -> int:
        """Pieces into which rows are cut, at most."""
        return max(p.splits for p in self.passes)

    @property
    def shares(self) -> dict[str, float]:
        """Of the multiprocessors' time, as fractions that sum to 1."""
        total = self.compute
        found: dict[str, float] = {}
        for p in self.passes:
            for name, share in p.shares.items():
                found[name] = found.get(name, 0.0) + share * p.compute / total
        return found

    @property
    def bottleneck(self) -> str:
        """What most of the time goes to, in a word or three."""
        computing = sum(p.compute for p in self.passes if p.compute >= p.memory)
        moving = sum(p.memory for p in self.passes if p.compute < p.memory)
        merging = sum(p.merge for p in self.passes)
        limits = {"launch": self.launch, "memory": moving, "merging": merging, "": computing}
        slowest = max(limits, key=lambda name: limits[name])
        if slowest:
            return slowest
        shares = self.shares
        slowest = max(shares, key=lambda name: shares[name])
        if slowest != "idle":
            return slowest
        longest = max(self.passes, key=lambda p: p.compute).schedule
        number = longest.counts.sum()
        mean = float((longest.durations * longest.counts).sum() / number)
        few = number < longest.slots and longest.durations.max() <= 2 * mean
        return "too few rows" if few else "one long row"


def in_turn(passes: Sequence[PassEstimate]) -> Estimate:
    """Kernels on one stream: launches follow one another, each while the kernels before run."""
    launched = ended = 0.0
    found = []
    for p in passes:
        launched += p.launch
        found.append(replace(p, launch=max(0.0, launched - ended)))
        ended += found[-1].time
    return Estimate(tuple(found))


@dataclass(frozen=True)
class Machine:
    """A device under an engine, and how many of its programs share a multiprocessor."""

    device: Device
    engine: Engine
    stall: float
    residents: int

    def programs(self, rows: int) -> int:
        """Programs that share a multiprocessor, if so many rows are spread out."""
        return min(self.residents, max(1, -(-rows // self.device.compute_units)))

    def seconds(self, cost: KernelCost, warps: int, sharing: int) -> float:
        """Of a program's work, where `sharing` programs take turns on its multiprocessor."""
        hides = warps * sharing >= 2 * WARPGROUP
        cycles = cost.cycles(self.engine.overlap if hides else 0.0, self.stall)
        return sharing * cycles / self.device.clock


@dataclass(frozen=True)
class Walk:
    """Rows of one segment in one pass. shapes, costs: of the tiles of each segment that they
    walk. name: of what runs.
    """

    name: str
    step: Pass
    rows: Rows
    tensors: Tensors
    shapes: Sequence[TileShape]
    costs: Sequence[TileCosts]

    @property
    def own_bytes(self) -> int:
        """Of what one row holds: of its tile's lanes, idle ones left out."""
        shape, (tokens, heads) = self.shapes[0], self.tensors.side(self.step.side)
        lanes = min(shape.lanes(self.step.side), -(-tokens * heads // self.rows.number))
        return lanes * shape.token_bytes(self.step.own)


def estimate_pass(walk: Walk, machine: Machine, pieces: Sequence[int] = (1,)) -> PassEstimate:
    """The fastest of the numbers of `pieces` into which rows may be cut."""
    found = [_estimate(walk, machine, n) for n in pieces]
    return min(found, key=lambda p: p.time)


def _estimate(walk: Walk, machine: Machine, pieces: int) -> PassEstimate:
    device, step, costs = machine.device, walk.step, walk.costs
    rows = walk.rows.split(pieces)
    sharing = machine.programs(rows.number)
    slots = sharing * device.compute_units
    moved = memory_traffic(rows, walk.tensors, walk.shapes, step, device, slots)
    full, partial, row = (
        np.array(
            [machine.seconds(cost, c.warps, sharing) for cost, c in zip(x, costs, strict=True)]
        )
        for x in zip(*((c.full, c.partial, c.row) for c in costs), strict=True)
    )
    masked = rows.partial
    if machine.engine.masks_all and masked.any():
        masked = rows.full + rows.partial
    # A row moves its own tiles at one multiprocessor's share of the bandwidth, and fills and drains
    # its pipeline of loads and products once, which takes about as long as a full tile.
    moving = sharing * walk.own_bytes / (device.memory_bandwidth / device.compute_units)
    overhead = moving + np.where(rows.visits > 0, (full + row).max(), 0.0)
    durations = (rows.full + rows.partial) @ full + masked @ (partial - full) + overhead
    compute = makespan(durations, rows.count, slots)
    shares: dict[str, float] = {}
    for cost, seconds in zip(costs, rows.tiles * full, strict=True):
        for name, share in _shares(cost.full, machine, float(seconds)).items():
            shares[name] = shares.get(name, 0.0) + share
    shares["mask arithmetic"] = float((masked * rows.count[:, None]).sum(0) @ (partial - full))
    shares["row overhead"] = float((overhead * rows.count).sum())
    shares["idle"] = max(0.0, compute * slots - sum(shares.values()))
    shares = {name: value / (compute * slots) for name, value in shares.items()}
    merge = 0.0
    if pieces > 1:
        # Each piece writes fp32 numbers and a log-sum-exp for each query; a second kernel, whose
        # launch hides behind the first one, reads them.
        shape, tensors = walk.shapes[0], walk.tensors
        features = (shape.value_dim or shape.head_dim) + 1
        parts = 4.0 * pieces * tensors.queries * tensors.q_heads * features
        waiting = max(0.0, device.launch_overhead - max(compute, moved / device.memory_bandwidth))
        merge = waiting + 2 * parts / device.memory_bandwidth
    flops = [n * s.flops(step) for n, s in zip(rows.tiles, walk.shapes, strict=True)]
    return PassEstimate(
        walk.name,
        device.launch_overhead,
        compute,
        moved / device.memory_bandwidth,
        merge,
        pieces,
        shares,
        float(sum(flops)),
        moved,
        Schedule(durations, rows.count, slots),
    )


def _shares(cost: KernelCost, machine: Machine, seconds: float) -> dict[str, float]:
    """How `seconds` of unmasked tiles divide: the longest pipe whole, the others as far as they do
    not hide behind it; all to loads where those take longest.
    """
    pipes = {
        "matrix products": cost.products,
        "exponentials": cost.exponentials,
        "softmax arithmetic": cost.instructions,
    }
    longest = max(pipes, key=lambda name: pipes[name])
    exposed = 1 - machine.engine.overlap
    parts = {n: x if n == longest else exposed * x for n, x in pipes.items()}
    total = sum(parts.values())
    if machine.stall * total < cost.loads:
        return {**dict.fromkeys(parts, 0.0), "loads": seconds}
    return {**{n: seconds * x / total for n, x in parts.items()}, "loads": 0.0}
