"""Heads that differ: half local, half global; and a window for each head.

    python -m examples.heads.mix [--quick]

Per pattern: whether it is exact in every head, what each head sees, its time beside dense causal
attention on this CPU, and what an H100 would gain at 65,536 tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

import maskdsl
from examples.check import exactness, options, seconds

FILE = Path(__file__).parent / "heads.mask"
HEADS, DIM, FAR = 8, 64, 65_536
BOUND: dict[str, dict[str, Any]] = {
    "half_local": {"window": 256},
    "windows": {"window": [64, 64, 128, 128, 256, 512, 1024, 4096]},
}


def main(argv: Sequence[str] | None = None) -> None:
    n = 1024 if options(__doc__, argv).quick else 4096
    q, k, v = (torch.randn(1, HEADS, n, DIM) for _ in range(3))
    dense = seconds(lambda: scaled_dot_product_attention(q, k, v, is_causal=True))
    print(f"{n:,} tokens, {HEADS} heads of {DIM}; dense causal attention: {dense * 1e3:.0f} ms")
    causal = maskdsl.load("std/causal").bind(n=FAR, heads=HEADS)
    far = maskdsl.simulate(causal, head_dim=DIM, device="h100").time
    for name, bound in BOUND.items():
        pattern = maskdsl.load(FILE, name=name)
        mask = pattern.bind(n=n, heads=HEADS, **bound)
        kernel = maskdsl.compile(mask, head_dim=DIM)
        print(f"\n{name}: {mask.density:.1%} of all pairs; {exactness(mask, kernel, DIM)}")
        last = [int(mask.dense(head=h, queries=1)[0].sum()) for h in range(HEADS)]
        print(f"  keys of the last query, head by head: {last}")
        time = seconds(lambda kernel=kernel: kernel(q, k, v))
        print(f"  this CPU: {time * 1e3:.0f} ms, {dense / time:.1f} times as fast as dense")
        p = maskdsl.simulate(pattern.bind(n=FAR, heads=HEADS, **bound), head_dim=DIM, device="h100")
        print(
            f"  H100, {FAR:,} tokens, predicted: {p.time * 1e3:.2f} ms, {far / p.time:.1f} times "
            f"as fast as causal attention; limited by {p.bottleneck}"
        )


if __name__ == "__main__":
    main()
