"""A small transformer, trained on real text: a sparse pattern beside dense attention.

    python -m examples.training.train [--quick] [--out DIRECTORY]

The text is Python's own help (`pydoc_data.topics`), byte by byte; the last tenth is held out. Two
layers of width 128; both models start from the same weights and see the same batches in the same
order. Prints losses in bits per byte, the time of a step, and how far the trained sparse model's
logits are from those of the same weights under a dense mask; draws the losses.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from pydoc_data.topics import topics

import matplotlib
import torch
from torch import nn
from torch.nn.functional import cross_entropy, scaled_dot_product_attention

import maskdsl
from examples.check import options

matplotlib.use("Agg")
import matplotlib.pyplot as plt

WIDTH, HEADS, LAYERS, BATCH = 128, 4, 2, 2
Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def dense(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return scaled_dot_product_attention(q, k, v, is_causal=True)


def turned(x: torch.Tensor) -> torch.Tensor:
    """Rotary positions (RoFormer, arXiv 2104.09864) of (batch, heads, tokens, dim)."""
    half = x.shape[-1] // 2
    angle = torch.arange(x.shape[2])[:, None] * 100.0 ** (-torch.arange(half) / half)
    left, right = x.chunk(2, -1)
    cos, sin = angle.cos(), angle.sin()
    return torch.cat([left * cos - right * sin, left * sin + right * cos], -1)


class Block(nn.Module):
    """Attention and a two-layer network, each after a norm and beside a residual."""

    def __init__(self, attend: Attend) -> None:
        super().__init__()
        self.attend = attend  # a function or a module: MaskAttention is one
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(2))
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.mlp = nn.Sequential(
            nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(self.norms[0](x)).unflatten(2, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        seen = self.attend(turned(q), turned(k), v)
        x = x + self.out(seen.transpose(1, 2).flatten(2))
        return x + self.mlp(self.norms[1](x))


class Model(nn.Module):
    """Logits of the next byte, (batch, length, 256), of bytes (batch, length)."""

    def __init__(self, attend: Attend) -> None:
        super().__init__()
        self.bytes = nn.Embedding(256, WIDTH)
        self.blocks = nn.Sequential(*(Block(attend) for _ in range(LAYERS)), nn.LayerNorm(WIDTH))
        self.head = nn.Linear(WIDTH, 256)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.blocks(self.bytes(x)))


def bits(model: Model, x: torch.Tensor) -> torch.Tensor:
    """Bits per byte of rows of length + 1 bytes."""
    return cross_entropy(model(x[:, :-1]).flatten(0, 1), x[:, 1:].flatten()) / torch.log(
        torch.tensor(2.0)
    )


def train(
    attend: Attend, text: torch.Tensor, length: int, steps: int, every: int
) -> tuple[Model, list[float], list[float], float]:
    """(model, loss of each step, held-out loss every so many steps, seconds of a step)"""
    held = text[-len(text) // 10 :]
    text = text[: -len(held)]
    ends = torch.arange(0, len(held) - length - 1, len(held) // 8)[:8]
    rows = torch.stack([held[i : i + length + 1] for i in ends])
    torch.manual_seed(0)
    model = Model(attend)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    warm = torch.optim.lr_scheduler.LinearLR(optimizer, 0.05, total_iters=20)
    losses, held_losses, spent = [], [], 0.0
    for step in range(steps):
        start = time.perf_counter()
        at = torch.randint(len(text) - length - 1, (BATCH,))
        loss = bits(model, torch.stack([text[i : i + length + 1] for i in at]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        warm.step()
        spent += time.perf_counter() - start
        losses.append(loss.item())
        if (step + 1) % every == 0:
            with torch.no_grad():
                held_losses.append(bits(model, rows).item())
    return model, losses, held_losses, spent / steps


def main(argv: Sequence[str] | None = None) -> None:
    args = options(__doc__, argv)
    length, steps, every = (256, 10, 5) if args.quick else (1024, 200, 20)
    whole = "\n".join(topics[name] for name in sorted(topics)).encode()
    text = torch.tensor(list(whole))
    pattern = maskdsl.load(Path(__file__).parent / "near.mask")
    mask = pattern.bind(n=length, heads=HEADS)
    sparse = maskdsl.MaskAttention(mask, head_dim=WIDTH // HEADS)
    print(
        f"{len(text):,} bytes; rows of {length}; the pattern keeps {mask.density:.1%} of all pairs"
    )
    figure, axis = plt.subplots(figsize=(8, 4.5), layout="constrained")
    for name, attend, color in (("dense", dense, "0.4"), ("sparse", sparse, "tab:blue")):
        model, losses, held, step = train(attend, text, length, steps, every)
        print(
            f"{name}: {losses[0]:.2f} bits per byte at first; held out after {steps} steps "
            f"{held[-1]:.3f}; {step * 1e3:.0f} ms a step"
        )
        axis.plot(losses, color=color, alpha=0.3, linewidth=0.8, label=f"{name}, each batch")
        axis.plot(range(every, steps + 1, every), held, color=color, label=f"{name}, held out")
    kept = torch.from_numpy(mask.dense())
    rows = text[: 2 * length].view(2, length)
    with torch.no_grad():
        masked = Model(partial(scaled_dot_product_attention, attn_mask=kept))
        masked.load_state_dict(model.state_dict())
        error = (model(rows) - masked(rows)).abs().max()
    print(f"the sparse model under a dense mask: logits differ by at most {error:.1e}")
    axis.set(
        xlabel="step", ylabel="bits per byte", title=f"dense, and {mask.density:.1%} of all pairs"
    )
    axis.legend()
    args.out.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.out / "training.png", dpi=80)
    print(f"saved {args.out / 'training.png'}")


if __name__ == "__main__":
    main()
