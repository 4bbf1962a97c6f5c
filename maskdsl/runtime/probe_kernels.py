"""Small Triton kernels that keep one part of a GPU busy each, for `maskdsl calibrate`.

Each does `turns` times the same work in a loop that nothing can be moved out of, as every turn
needs what the one before gave.
"""

# Compile-time constants are in capitals, as in emitted kernels; kernels have no types.
# ruff: noqa: N803
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from collections.abc import Callable
from inspect import signature
from typing import Any

import triton
import triton.language as tl

STEPS = tl.constexpr(16)  # of a turn of the arithmetic kernels


def probe(function: Callable[..., None]) -> Any:
    """A kernel that is compiled once, whatever its numbers are: 1 and multiples of 16 too."""
    numbers = [
        n for n in ("turns", "blocks", "number", "factor") if n in signature(function).parameters
    ]
    return triton.jit(function, do_not_specialize=numbers)


@probe
def products(a_ptr, b_ptr, out_ptr, turns, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr):
    """out (M, N) of each program: `turns` times a (M, K) @ b (K, N), added up in float32."""
    row, column, inner = tl.arange(0, M), tl.arange(0, N), tl.arange(0, K)
    a = tl.load(a_ptr + row[:, None] * K + inner[None, :])
    b = tl.load(b_ptr + inner[:, None] * N + column[None, :])
    total = tl.zeros((M, N), tl.float32)
    for _ in range(turns):
        total = tl.dot(a, b, total, input_precision="tf32")
    place = (tl.program_id(0) * M + row[:, None]) * N + column[None, :]
    tl.store(out_ptr + place, total)


@probe
def exponentials(out_ptr, turns, LANES: tl.constexpr):
    """STEPS exponentials of a lane in each turn."""
    lane = tl.program_id(0) * LANES + tl.arange(0, LANES)
    x = lane.to(tl.float32) * 1e-9
    for _ in range(turns):
        for _ in tl.static_range(STEPS):
            x = tl.exp2(-x)
    tl.store(out_ptr + lane, x)


@probe
def multiplications(out_ptr, turns, factor, LANES: tl.constexpr):
    """STEPS multiply-adds of a lane in each turn."""
    lane = tl.program_id(0) * LANES + tl.arange(0, LANES)
    x = lane.to(tl.float32) * 1e-9
    for _ in range(turns):
        for _ in tl.static_range(STEPS):
            x = tl.fma(x, factor, factor)
    tl.store(out_ptr + lane, x)


@probe
def integers(out_ptr, turns, number, LANES: tl.constexpr):
    """STEPS exclusive ors and as many additions of a lane in each turn."""
    lane = tl.program_id(0) * LANES + tl.arange(0, LANES)
    x = lane
    for _ in range(turns):
        for _ in tl.static_range(STEPS):
            x = (x ^ number) + number
    tl.store(out_ptr + lane, x)


@probe
def instructions(out_ptr, turns, factor, number, LANES: tl.constexpr):
    """STEPS times two multiply-adds, an exclusive or and an addition of a lane in each turn."""
    lane = tl.program_id(0) * LANES + tl.arange(0, LANES)
    x, y = lane, lane.to(tl.float32) * 1e-9
    z = y + factor
    for _ in range(turns):
        for _ in tl.static_range(STEPS):
            x = (x ^ number) + number
            y = tl.fma(y, factor, factor)
            z = tl.fma(z, factor, factor)
    tl.store(out_ptr + lane, x.to(tl.float32) + y + z)


@probe
def copies(from_ptr, to_ptr, LANES: tl.constexpr):
    """LANES numbers of each program, from memory to memory."""
    lane = tl.program_id(0).to(tl.int64) * LANES + tl.arange(0, LANES)
    tl.store(to_ptr + lane, tl.load(from_ptr + lane))


@probe
def cached(from_ptr, out_ptr, turns, blocks, LANES: tl.constexpr):
    """The sum of `turns` of the `blocks` (a power of two) blocks of LANES numbers, from another one
    on in each program; past the nearest cache.
    """
    lane = tl.arange(0, LANES)
    total = tl.zeros((LANES,), tl.float32)
    first = tl.program_id(0) * 37
    for turn in range(turns):
        block = (first + turn) & (blocks - 1)
        total += tl.load(from_ptr + block * LANES + lane, cache_modifier=".cg")
    tl.store(out_ptr + tl.program_id(0) * LANES + lane, total)


@probe
def nothing(out_ptr):
    """Launches, and ends."""
