"""Blocks chosen at run time: by pooled keys (MoBA), and by a gate that learns to (SeerAttention).

    python -m examples.blocks.select [--quick] [--out DIRECTORY]

A few tokens of each block matter, so that pooled keys say little. The gate is distilled: it learns
the share of dense attention's weight that falls on each block (arXiv 2410.13276). Prints whether
attention to the chosen blocks is exact, the share of dense attention's weight that each choice
keeps, times on this CPU, and what an H100 would gain. Draws the weights and the choices.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

import maskdsl
from examples.check import exactness, options, seconds

matplotlib.use("Agg")
import matplotlib.pyplot as plt

HEADS, DIM, SIZE, TOP = 2, 64, 64, 4  # TOP blocks of SIZE keys, the query's own among them
TOPICS = 24


def sample(n: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """q and k (1, HEADS, n, DIM): one key in 64 is of its block's topic, the others are noise."""
    topics = torch.randn(HEADS, TOPICS, DIM, generator=torch.Generator().manual_seed(1))
    of_block = torch.randint(TOPICS, (n // SIZE,), generator=generator)
    topic = topics[:, of_block.repeat_interleave(SIZE)]
    noise = torch.randn(2, 1, HEADS, n, DIM, generator=generator)
    told = (torch.rand(n, generator=generator) < 1 / 64)[:, None]
    return 1.2 * topic + 0.3 * noise[0], torch.where(told, 1.5 * topic, noise[1])


def pooled(x: torch.Tensor) -> torch.Tensor:
    """(1, HEADS, blocks, SIZE, DIM)"""
    return x.unflatten(2, (-1, SIZE))


class Gate(nn.Module):
    """A logit for each pair of blocks: (1, HEADS, blocks, blocks)."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.of_q = nn.Parameter(torch.randn(HEADS, DIM, width) / DIM**0.5)
        self.of_k = nn.Parameter(torch.randn(HEADS, 3 * DIM, width) / (3 * DIM) ** 0.5)

    def forward(self, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        keys = pooled(k)
        keys = torch.cat([keys.mean(3), keys.amax(3), keys.amin(3)], -1)
        return (pooled(q).mean(3) @ self.of_q) @ (keys @ self.of_k).mT / DIM**0.5


def earlier(logits: torch.Tensor) -> torch.Tensor:
    """Logits of a block's own and earlier blocks; the others are minus infinity."""
    later = torch.ones_like(logits, dtype=torch.bool).triu(1)
    return logits.masked_fill(later, -torch.inf)


def shares(q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    """Dense attention's weight on each block of keys, the mean over a block of queries."""
    logits = earlier(q @ k.mT * DIM**-0.5)
    return (
        torch.softmax(logits, -1).unflatten(3, (-1, SIZE)).sum(4).unflatten(2, (-1, SIZE)).mean(3)
    )


def pick(logits: torch.Tensor) -> torch.Tensor:
    """bool: the TOP best of the blocks, a query's own always."""
    own = torch.eye(logits.shape[-1], dtype=torch.bool)
    best = earlier(logits).masked_fill(own, torch.inf).topk(TOP, -1).indices
    return torch.zeros_like(logits, dtype=torch.bool).scatter(-1, best, True).tril()


@torch.no_grad()
def timed(mask: maskdsl.Mask, gate: Gate, generator: torch.Generator) -> str:
    """One line on the time of attention to what the gate chooses."""
    kernel = maskdsl.compile(mask, head_dim=DIM)
    q, k = sample(mask.shape[1], generator)
    v = torch.randn_like(q)
    dense = seconds(lambda: scaled_dot_product_attention(q, k, v, is_causal=True))
    time = seconds(lambda: kernel(q, k, v, picked=pick(gate(q, k))))
    inputs = {"picked": pick(gate(q, k))}
    p = maskdsl.simulate(mask, head_dim=DIM, device="h100", inputs=inputs)
    return (
        f"{mask.shape[1]:,} tokens: {time * 1e3:.0f} ms on this CPU, gate included, dense causal "
        f"{dense * 1e3:.0f} ms; an H100, predicted: {p.time * 1e6:.0f} us, dense, all pairs, "
        f"{p.dense_time * 1e6:.0f} us"
    )


def main(argv: Sequence[str] | None = None) -> None:
    args = options(__doc__, argv)
    n, steps = (1024, 40) if args.quick else (4096, 300)
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(2)
    gate = Gate()
    optimizer = torch.optim.Adam(gate.parameters(), 3e-3)
    for _ in range(steps):
        q, k = sample(1024, generator)
        guess = torch.log_softmax(earlier(gate(q, k)), -1)
        wanted = shares(q, k)
        loss = torch.where(wanted > 0, -wanted * guess, 0).sum(-1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    q, k = sample(n, generator)
    v = torch.randn(1, HEADS, n, DIM)
    pattern = maskdsl.load(Path(__file__).parent / "blocks.mask")
    mask = pattern.bind(n=n, size=SIZE, heads=HEADS)
    kernel = maskdsl.compile(mask, head_dim=DIM)
    causal = maskdsl.compile(maskdsl.load("std/causal").bind(n=n, heads=HEADS), head_dim=DIM)
    _, total = causal(q, k, v, return_lse=True)
    print(f"{n:,} tokens; {TOP} of {n // SIZE} blocks; the gate was distilled for {steps} steps")
    truth = shares(q, k)
    with torch.no_grad():
        choices = {
            "mean keys (MoBA)": pick(pooled(q).mean(3) @ pooled(k).mean(3).mT),
            "gate, not trained": pick(Gate()(q, k)),
            "gate, distilled": pick(gate(q, k)),
            "the best possible": pick(truth),
        }
        for name, picked in choices.items():
            _, lse = kernel(q, k, v, picked=picked, return_lse=True)
            kept = float(torch.exp(lse - total).mean())
            print(f"  {name}: keeps {kept:.0%} of dense attention's weight")
    picked = choices["gate, distilled"]
    print(exactness(mask, kernel, DIM, picked=picked))
    for length in (n, 4 * n):
        print(timed(pattern.bind(n=length, size=SIZE, heads=HEADS), gate, generator))

    panels = {"weight of each block": truth.sqrt()} | {x: choices[x].float() for x in choices}
    figure, axes = plt.subplots(1, len(panels), figsize=(15, 3.4), layout="constrained")
    for axis, (title, shown) in zip(axes, panels.items(), strict=True):
        axis.imshow(shown[0, 0], cmap="Blues", vmin=0, vmax=1)
        axis.set_title(title)
        axis.set_axis_off()
    args.out.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.out / "blocks.png", dpi=80)
    print(f"saved {args.out / 'blocks.png'}")


if __name__ == "__main__":
    main()
