"""Decoding as it is predicted has the tiles, lanes and rows of the emitted kernels."""

from __future__ import annotations

import pytest
import torch

import maskdsl
from maskdsl.codegen.decode import heads_together as kernels_heads
from maskdsl.runtime.triton_decode import TritonDecode
from maskdsl.simulator import device_for, load_engine, simulate
from maskdsl.simulator.decoding import heads_together
from maskdsl.simulator.shapes import few_queries

TYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
TEXTS = {
    "causal": "pattern p over (n) keep causal(n)",
    "window": "pattern p over (n) keep 0 <= q.n - k.n < 100",
    "strided": "pattern p over (n) keep causal(n) and (q.n - k.n) % 64 == 0",
    "halves": "pattern p over (n) keep causal(n) and (head < 4 or q.n - k.n < 64)",
    "image": "pattern p over (y, x) keep near(y, 3) and near(x, 3)",
    "segments": "pattern p over a(t, h) then b(n) keep a -> a: near(t, 1) "
    "keep any -> b, b -> any: true",
}
SIZES = {"image": {"y": 32, "x": 32}, "segments": {"t": 8, "h": 32, "n": 100}}


@pytest.mark.parametrize("target, dtype", [("sm_90", "bf16"), ("sm_80", "bf16"), ("sm_90", "fp32")])
@pytest.mark.parametrize("name", TEXTS)
def test_tiles_lanes_and_heads_are_the_kernels(name: str, target: str, dtype: str) -> None:
    sizes = SIZES.get(name, {"n": 1024})
    mask = maskdsl.parse(TEXTS[name]).bind(**sizes, heads=8, kv_heads=2)
    kernel = maskdsl.compile(mask, 128, TYPES[dtype], backend="triton", target=target)
    plan, device = kernel.plan, device_for(target)
    together = heads_together(plan, 8, 2)
    assert together == kernels_heads(plan) == 4
    decode = TritonDecode(mask, kernel._run.rule)
    for queries in (1, 3, 16, 40):
        emitted = decode.kernel_for(queries)
        found, few = few_queries(
            plan, queries, 8, 2, (128, 128), dtype, device, load_engine("maskdsl")
        )
        assert found.q_tile == emitted.plan.q_tile and found.kv_tile == emitted.plan.kv_tile
        block = max(
            int(line.split("(")[1].split(")")[0])
            for line in emitted.source.splitlines()
            if "lanes of a tile" in line
        )
        assert (few.lanes, few.together) == (block, together), queries
        rows = emitted._heads * emitted._rows(mask.shape[1] - queries, queries)
        p = simulate(plan, 128, dtype=dtype, queries=queries, device=device, splits=1)
        assert sum(x.schedule.counts.sum() for x in p.sparse.passes) == rows
