"""What tiles and rows cost: the work in them, and how long one multiprocessor is busy with it."""

from __future__ import annotations

from dataclasses import astuple, dataclass, replace

from maskdsl.simulator.devices import ELEMENT_BYTES, Device
from maskdsl.simulator.engines import Engine
from maskdsl.simulator.operations import Operations, PairWork
from maskdsl.simulator.passes import Pass

# tl.dot takes no smaller side, and blocks of a Triton kernel are powers of two.
MIN_PRODUCT_SIDE = 16

# Instructions for one number of an accumulator (its rescaling), and for one thread and tile:
# addresses, barriers, the loop. Counted in the machine code of a causal kernel for sm_90 (128 x 64
# tiles, d=128, 8 warps: 341 instructions a tile, of which 34 exponentials).
RESCALING, PER_THREAD = 1.0, 120


@dataclass(frozen=True)
class Work:
    """An amount of work, in counts that add: `a + b`, and `a * 3` for three times `a`.

    `matmul_flops` counts a multiply-add as two; `exponentials` counts lanes of the special function
    units; `vector_ops` (fp32) and `integer_ops` (comparisons too) lanes of instructions; `bytes`
    are those that pass between a multiprocessor and the L2 cache.
    """

    matmul_flops: float = 0.0
    exponentials: float = 0.0
    vector_ops: float = 0.0
    integer_ops: float = 0.0
    bytes: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    def __mul__(self, count: float) -> Work:
        return Work(*(a * count for a in astuple(self)))

    __rmul__ = __mul__


@dataclass(frozen=True)
class KernelCost:
    """Clock cycles for which each pipe of one multiprocessor is busy, and the time of loads from
    the L2 cache at its share of the bandwidth, in cycles too. Costs add, and `a * 3` is three times
    `a`.
    """

    products: float = 0.0
    exponentials: float = 0.0
    instructions: float = 0.0
    loads: float = 0.0

    def __add__(self, other: KernelCost) -> KernelCost:
        return KernelCost(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    def __mul__(self, count: float) -> KernelCost:
        return KernelCost(*(a * count for a in astuple(self)))

    __rmul__ = __mul__

    def cycles(self, overlap: float, stall: float) -> float:
        """Until all is done: the longest pipe, and what of the others does not hide behind it;
        times `stall`; but not less than the loads take.
        """
        busy = self.products, self.exponentials, self.instructions
        exposed = (1 - overlap) * (sum(busy) - max(busy))
        return max(stall * (max(busy) + exposed), self.loads)


def kernel_cost(work: Work, device: Device, dtype: str) -> KernelCost:
    """The cycles of some work on one multiprocessor of a device."""
    per_clock = device.compute_units * device.clock
    instructions = work.exponentials + work.vector_ops + work.integer_ops
    return KernelCost(
        products=work.matmul_flops / (device.matrix_flops(dtype) / per_clock),
        exponentials=work.exponentials / device.exponentials_per_clock,
        instructions=max(
            instructions / device.issue_lanes_per_clock,
            work.vector_ops / device.vector_ops_per_clock,
            work.integer_ops / device.integer_ops_per_clock,
        ),
        loads=work.bytes / (device.l2_bandwidth / per_clock),
    )


@dataclass(frozen=True)
class CompiledKernel:
    """What the machine code of one kernel says, for the simulator to use in place of its counts.

    Instructions are those that one warp issues: in one iteration of the loop over full tiles, of
    the loop over partial ones, and outside the loops. registers: of a thread. shared: bytes of a
    block. spills: bytes of a thread.
    """

    full_instructions: int
    partial_instructions: int
    row_instructions: int
    warps: int
    registers: int
    shared: int
    spills: int = 0


@dataclass(frozen=True)
class TileShape:
    """Lanes of a query and a key tile, features of a head of q and k, the type of q, k and v, and
    the features of v, if others.
    """

    q_lanes: int
    kv_lanes: int
    head_dim: int
    dtype: str
    value_dim: int | None = None

    @property
    def pairs(self) -> int:
        """Of lanes, padded as products need them."""
        return max(MIN_PRODUCT_SIDE, self.q_lanes) * max(MIN_PRODUCT_SIDE, self.kv_lanes)

    @property
    def features(self) -> tuple[int, int]:
        """Of a head of q and k, and of v, padded as products need them."""
        head, value = (max(MIN_PRODUCT_SIDE, 1 << (n - 1).bit_length()) for n in self._dims)
        return head, value

    @property
    def _dims(self) -> tuple[int, int]:
        return self.head_dim, self.value_dim or self.head_dim

    @property
    def warps(self) -> int:
        """Of a program whose machine code is not known."""
        return 4 if self.q_lanes <= 64 else 8

    def token_bytes(self, tensors: tuple[int, int]) -> int:
        """Bytes of one token of one head in so many tensors like q and k, and like v and o."""
        return sum(n * d for n, d in zip(tensors, self._dims, strict=True)) * self.element_bytes

    @property
    def element_bytes(self) -> int:
        return ELEMENT_BYTES[self.dtype]

    def flops(self, step: Pass) -> float:
        """Of the matrix products of one tile."""
        head, value = self.features
        return 2.0 * self.pairs * (step.products[0] * head + step.products[1] * value)

    def with_queries(self, lanes: int) -> TileShape:
        return replace(self, q_lanes=lanes)

    def lanes(self, side: str) -> int:
        return self.q_lanes if side == "q" else self.kv_lanes

    def work(self, step: Pass, score: Operations, mask: Operations | None = None) -> Work:
        """The work in one visited tile; `mask` of a partial one."""
        rows = self.lanes(step.side)
        streamed = self.lanes("k" if step.side == "q" else "q")
        extra = score * (1 if step.softmax else 2)  # its derivative with respect to the logit too
        extra = extra + mask if mask is not None else extra
        fixed = PER_THREAD * 32 * self.warps
        scaled = RESCALING * rows * self.features[1] if step.softmax else 0.0
        return Work(
            matmul_flops=self.flops(step),
            exponentials=self.pairs * (1 + extra.special),
            vector_ops=self.pairs * (step.vector + extra.vector) + scaled + fixed / 2,
            integer_ops=self.pairs * (step.integer + extra.integer) + fixed / 2,
            bytes=float(streamed * self.token_bytes(step.streams)),
        )


@dataclass(frozen=True)
class TileCosts:
    """Of one pass: a full tile, a partial tile, and the instructions of a row outside its loops,
    where they are known. warps: of a program.
    """

    full: KernelCost
    partial: KernelCost
    row: KernelCost
    warps: int


def tile_costs(
    shape: TileShape,
    step: Pass,
    pair: PairWork,
    device: Device,
    engine: Engine,
    compiled: CompiledKernel | None = None,
) -> TileCosts:
    """From the machine code where it is given, from counts otherwise."""

    def cost(mask: Operations | None) -> KernelCost:
        return kernel_cost(shape.work(step, pair.score, mask), device, shape.dtype)

    full, partial = cost(None), cost(pair.mask)
    row = KernelCost()
    warps = shape.warps
    if compiled is not None:
        warps = compiled.warps
        lanes = 32 * warps / device.issue_lanes_per_clock
        full = _issuing(full, compiled.full_instructions * lanes)
        partial = _issuing(partial, compiled.partial_instructions * lanes)
        spilled = kernel_cost(Work(bytes=2.0 * compiled.spills * 32 * warps), device, shape.dtype)
        row = _issuing(row, compiled.row_instructions * lanes) + spilled
    elif engine.partial_ratio is not None:
        partial = full * engine.partial_ratio
    return TileCosts(full, partial, row, warps)


def _issuing(cost: KernelCost, cycles: float) -> KernelCost:
    return KernelCost(cost.products, cost.exponentials, cycles, cost.loads)
