"""Packed training: many documents in one sequence, each as if it were alone, gradients too.

    python -m examples.packed.pack [--quick]

Runs two rows of packed documents forward and backward, and every document alone through torch's
causal attention; prints the largest differences of outputs and gradients, the time of both and of
the usual batch padded to the longest document, and what an H100 would gain.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import scaled_dot_product_attention

import maskdsl
from examples.check import exactness, options, seconds

HEADS, DIM = 4, 64
Tensors = tuple[torch.Tensor, ...]


def lengths(n: int, rng: np.random.Generator) -> list[int]:
    """Lengths of documents, few of them long, that fill n tokens."""
    found: list[int] = []
    while sum(found) < n:
        found.append(min(int(rng.lognormal(5.0, 1.0)) + 1, n - sum(found)))
    return found


def causal(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return scaled_dot_product_attention(q, k, v, is_causal=True)


def run(call: Callable[..., torch.Tensor], qkv: Tensors, do: torch.Tensor) -> Tensors:
    """(out, dq, dk, dv)"""
    leaves = [x.detach().requires_grad_() for x in qkv]
    out = call(*leaves)
    return out.detach(), *torch.autograd.grad(out, leaves, do)


def main(argv: Sequence[str] | None = None) -> None:
    n = 1024 if options(__doc__, argv).quick else 4096
    rng = np.random.default_rng(0)
    rows = [lengths(n, rng) for _ in range(2)]
    doc = torch.from_numpy(np.stack([maskdsl.tables.documents(row) for row in rows]))
    mask = maskdsl.load(Path(__file__).parent / "packed.mask").bind(n=n, heads=HEADS)
    kernel = maskdsl.compile(mask, head_dim=DIM)
    torch.manual_seed(0)
    qkv = tuple(torch.randn(2, HEADS, n, DIM) for _ in range(3))
    do = torch.randn(2, HEADS, n, DIM)

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return kernel(q, k, v, doc=doc)

    packed = run(attend, qkv, do)
    print(f"{sum(map(len, rows))} documents in 2 rows of {n:,} tokens, {HEADS} heads of {DIM}")
    print(exactness(mask, kernel, DIM, batch=2, doc=doc))

    def alone(*given: torch.Tensor) -> Tensors:
        """The same of every document by itself, put back into its place."""
        results = tuple(torch.zeros_like(do) for _ in packed)
        for b, row in enumerate(rows):
            for end, size in zip(np.cumsum(row).tolist(), row, strict=True):
                at = (slice(b, b + 1), slice(None), slice(end - size, end))
                found = run(causal, tuple(x[at] for x in given), do[at])
                for result, x in zip(results, found, strict=True):
                    result[at] = x
        return results

    for name, ours, theirs in zip(("out", "dq", "dk", "dv"), packed, alone(*qkv), strict=True):
        print(f"{name}: packed and alone differ by at most {(ours - theirs).abs().max():.1e}")

    # The batch that packing replaces: every document padded to the longest one.
    shape = (sum(map(len, rows)), HEADS, max(map(max, rows)), DIM)
    padded, do_padded = tuple(torch.randn(shape) for _ in range(3)), torch.randn(shape)
    times = {
        "packed": seconds(lambda: run(attend, qkv, do)),
        "one document at a time": seconds(lambda: alone(*qkv)),
        f"padded to {shape[2]} tokens each": seconds(lambda: run(causal, padded, do_padded), 1),
    }
    for name, time in times.items():
        print(f"forward and backward, {name}: {time * 1e3:.0f} ms")
    for direction in ("forward", "backward"):
        p = maskdsl.simulate(
            mask, head_dim=DIM, batch=2, device="h100", direction=direction, inputs={"doc": doc}
        )
        print(
            f"H100, {direction}, predicted: {p.time * 1e6:.0f} us, {p.speedup:.1f} times as fast "
            "as without documents, all pairs"
        )


if __name__ == "__main__":
    main()
