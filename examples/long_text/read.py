"""Long text: sinks and a window, sharded blocks, powers of two, LongNet.

    python -m examples.long_text.read [--quick]

Per pattern: whether it is exact, its time beside dense causal attention and (not with --quick)
beside torch's FlexAttention on the same mask, both on this CPU; and what an H100 would gain at
131,072 tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch.nn.attention.flex_attention import flex_attention
from torch.nn.functional import scaled_dot_product_attention

import maskdsl
from examples.check import exactness, options, seconds

FILE = Path(__file__).parent / "long_text.mask"
HEADS, DIM, FAR = 4, 64, 131_072


def main(argv: Sequence[str] | None = None) -> None:
    quick = options(__doc__, argv).quick
    n = 2048 if quick else 8192
    q, k, v = (torch.randn(1, HEADS, n, DIM) for _ in range(3))
    dense = seconds(lambda: scaled_dot_product_attention(q, k, v, is_causal=True))
    print(f"{n:,} tokens, {HEADS} heads of {DIM}; dense causal attention: {dense * 1e3:.0f} ms")
    causal = maskdsl.load("std/causal").bind(n=FAR, heads=HEADS)
    far = maskdsl.simulate(causal, head_dim=DIM, heads=HEADS, device="h100").time
    for name in ("streaming", "shards", "powers", "longnet"):
        pattern = maskdsl.load(FILE, name=name)
        mask = pattern.bind(n=n, heads=HEADS)
        kernel = maskdsl.compile(mask, head_dim=DIM)
        print(f"\n{name}: {mask.density:.1%} of all pairs; {exactness(mask, kernel, DIM)}")
        time = seconds(lambda kernel=kernel: kernel(q, k, v))
        print(f"  this CPU: {time * 1e3:.0f} ms, {dense / time:.1f} times as fast as dense")
        if not quick:
            _, blocks = maskdsl.to_flex(mask)
            flex = torch.compile(flex_attention)
            theirs = seconds(lambda flex=flex, blocks=blocks: flex(q, k, v, block_mask=blocks))
            apart = (flex(q, k, v, block_mask=blocks) - kernel(q, k, v)).abs().max()
            print(f"  this CPU, FlexAttention: {theirs * 1e3:.0f} ms; differs by {apart:.1e}")
        last = q[:, :, -1:]
        same = torch.allclose(kernel(last, k, v), kernel(q, k, v)[:, :, -1:], atol=1e-5)
        print(f"  decoding the last token gives its row: {same}")
        p = maskdsl.simulate(
            pattern.bind(n=FAR, heads=HEADS), head_dim=DIM, heads=HEADS, device="h100"
        )
        print(
            f"  H100, {FAR:,} tokens, predicted: {p.time * 1e3:.2f} ms, "
            f"{far / p.time:.0f} times as fast as causal attention; limited by {p.bottleneck}"
        )


if __name__ == "__main__":
    main()
