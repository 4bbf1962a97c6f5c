"""Plans at a million tokens: time and memory, rows included; without rows they do not follow N."""

from __future__ import annotations

import itertools
import time
import tracemalloc
from typing import Any

import pytest

import maskdsl
from maskdsl import Plan, Tile

N = 2**20
STRIDED = "keep causal(n) and (q.n - k.n) % 64 == 0"
DILATED = "keep abs(q.n - k.n) <= 1024 and (q.n - k.n) % 4 == 0"
VIDEO = "keep neighborhood(t, 18) and neighborhood(y, 24) and neighborhood(x, 24)"

# Pattern, what to bind, tile, seconds and MiB allowed above the imports, and the pairs counted by
# hand (None: not counted). Seconds are of the processor: other work on the machine does not count.
PLANS: dict[str, tuple[str, dict[str, int], Any, float, float, int | None]] = {
    "window": ("keep 0 <= q.n - k.n < 4096", {"n": N}, 128, 0.04, 32, N * 4096 - 4096 * 4095 // 2),
    "sinks": (
        "keep causal(n) and (k.n < 4 or q.n - k.n < 2000)", {"n": N}, 128, 0.06, 64,
        N * 2000 - 2000 * 1999 // 2 + 1 + 2 + 3 + 4 * (N - 2003),
    ),
    "strided": (STRIDED, {"n": N}, 128, 0.06, 64, 64 * (2**14 * (2**14 + 1) // 2)),
    "strided, residues": (
        STRIDED, {"n": N}, Tile(128, step=64), 0.06, 64, 64 * (2**14 * (2**14 + 1) // 2),
    ),
    "dilated": (DILATED, {"n": N}, 128, 0.06, 64, N * 513 - 4 * 256 * 257),
    "dilated, residues": (DILATED, {"n": N}, Tile(128, step=4), 0.06, 64, N * 513 - 4 * 256 * 257),
    "power": ("std/power", {"n": 2**19}, 128, 0.06, 64, None),
    "radial": ("std/radial", {"t": 128, "s": 3600}, (1, 128), 0.8, 256, None),
    "neighborhood": (
        VIDEO, {"t": 30, "y": 48, "x": 80}, (2, 8, 8), 0.12, 64, 30 * 48 * 80 * 18 * 24 * 24,
    ),
}  # fmt: skip


def mask_of(text: str, bound: dict[str, int]) -> maskdsl.Mask:
    if text.startswith("std/"):
        return maskdsl.load(text).bind(**bound)
    return maskdsl.parse(f"pattern f over ({', '.join(bound)}) {text}").bind(**bound)


def with_rows(mask: maskdsl.Mask, tile: Any) -> Plan:
    plan = mask.plan(tile, tile)
    assert plan.head_classes[0].runs.rows == plan.q_tiles
    return plan


@pytest.mark.parametrize("name", PLANS)
def test_plans_at_a_million_tokens(name: str) -> None:
    text, bound, tile, seconds, memory, pairs = PLANS[name]
    mask = mask_of(text, bound)
    took = []
    for _ in range(5):
        start = time.process_time()
        plan = with_rows(mask, tile)
        took.append(time.process_time() - start)
        if took[-1] < seconds:
            break
    assert min(took) < seconds
    if pairs is not None:
        assert plan.pairs == pairs
    tracemalloc.start()
    try:
        with_rows(mask, tile)
        assert tracemalloc.get_traced_memory()[1] < memory * 2**20
    finally:
        tracemalloc.stop()


GROWING = {
    "window": "keep 0 <= q.n - k.n < 1024",
    "sinks": "keep causal(n) and (k.n < 4 or q.n - k.n < 1000)",
    "strided": STRIDED,
    "dilated": DILATED,
    "neighborhood": "keep neighborhood(n, 1001, stride=8)",
}


@pytest.mark.parametrize("name", GROWING)
def test_boxes_grow_no_faster_than_log_n(name: str) -> None:
    """From 2**14 to 2**24 tokens: as many boxes more for each doubling, or fewer."""
    counts = []
    for doubling in range(14, 25):
        plan = mask_of(GROWING[name], {"n": 2**doubling}).plan(128, 128)
        counts.append(sum(len(x.kind) for x in plan.head_classes[0].trees[0][0].levels))
    steps = [b - a for a, b in itertools.pairwise(counts)]
    assert counts[-1] < 1000
    assert max(steps[5:]) <= max(steps[:5])
