"""Cases of the CPU benchmark, each as a user of ours writes it and as one of FlexAttention does."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

import maskdsl
from benchmarks import planner_cases
from maskdsl import tables

HEADS, DIM = 8, 64
Mod = Callable[..., torch.Tensor]


@dataclass(frozen=True)
class Case:
    """text, bound: our pattern and what to bind. mask_mod, score_mod: the same in torch, by hand.

    causal: whether dense causal attention is the same. window: of natten, with the shape of tokens.
    """

    text: str
    bound: dict[str, Any]
    mask_mod: Mod
    score_mod: Mod | None = None
    causal: bool = False
    shape: tuple[int, ...] = ()
    window: tuple[int, ...] = ()
    heads: int = field(default=HEADS)

    def mask(self) -> maskdsl.Mask:
        return maskdsl.parse(self.text).bind(**self.bound, heads=self.heads)


def causal(n: int) -> Case:
    twin = planner_cases.causal(n)
    return Case(twin.text, twin.bound, twin.mask_mod, causal=True)


def window(n: int) -> Case:
    twin = planner_cases.window(n)
    return Case(twin.text, twin.bound, twin.mask_mod)


def dilated(n: int) -> Case:
    text = "pattern dilated_window over (n) keep dilated(n, 256, 4)"

    def mask_mod(b: Any, h: Any, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        return ((q - k).abs() <= 1024) & ((q - k) % 4 == 0)

    return Case(text, {"n": n}, mask_mod)


def neighborhood(shape: tuple[int, ...], size: tuple[int, ...]) -> Case:
    """NATTEN's windows over an image or a video."""
    axes = "tyx"[-len(shape) :]
    keeps = " and ".join(f"neighborhood({a}, {w})" for a, w in zip(axes, size, strict=True))
    strides = [math.prod(shape[i + 1 :]) for i in range(len(shape))]

    def mask_mod(b: Any, h: Any, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        kept = q >= 0
        for extent, stride, w in zip(shape, strides, size, strict=True):
            i, j = (q // stride) % extent, (k // stride) % extent
            first = (i - w // 2).clamp(0, extent - w)
            kept = kept & (j >= first) & (j < first + w)
        return kept

    text = f"pattern near over ({', '.join(axes)}) keep {keeps}"
    bound = dict(zip(axes, shape, strict=True))
    return Case(text, bound, mask_mod, shape=shape, window=size)


def radial(frames: int, frame: int) -> Case:
    twin = planner_cases.radial(frames * frame, frame)
    return Case(twin.text, twin.bound, twin.mask_mod)


def documents(n: int, mean: int) -> Case:
    """Packed causal documents, known when the mask is bound."""
    text = """pattern packed(doc: int[n]) over (n)
    keep causal(n) and doc[q.n] == doc[k.n]"""
    rng = np.random.default_rng(0)
    cuts = np.sort(rng.choice(np.arange(1, n), n // mean, replace=False))
    doc = tables.documents(np.diff([0, *cuts, n]))
    of = torch.from_numpy(doc)

    def mask_mod(b: Any, h: Any, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        return (q >= k) & (of[q] == of[k])

    return Case(text, {"n": n, "doc": doc}, mask_mod)


def alibi(n: int) -> Case:
    twin = planner_cases.window(n)
    text = """pattern alibi_window(window: int) over (n)
    keep 0 <= q.n - k.n < window
    score logit - 2.0 ** (-8.0 * (head + 1) / heads) * (q.n - k.n)"""

    def score_mod(s: torch.Tensor, b: Any, h: torch.Tensor, q: Any, k: Any) -> torch.Tensor:
        return s - torch.exp2(-8.0 * (h + 1) / HEADS) * (q - k)

    return Case(text, twin.bound, twin.mask_mod, score_mod)


CASES: dict[str, Callable[[], Case]] = {
    "causal 8K": lambda: causal(8192),
    "window 1024, 16K": lambda: window(16384),
    "window 1024, 64K": lambda: window(65536),
    "dilated (1024, 4), 16K": lambda: dilated(16384),
    "13x13 on 128x128": lambda: neighborhood((128, 128), (13, 13)),
    "13x13 on 256x256": lambda: neighborhood((256, 256), (13, 13)),
    "6x8x8 on 30x24x40": lambda: neighborhood((30, 24, 40), (6, 8, 8)),
    "radial 16x1024": lambda: radial(16, 1024),
    "documents 32K": lambda: documents(32768, 1500),
    "ALiBi window 1024, 16K": lambda: alibi(16384),
}
TINY: dict[str, Callable[[], Case]] = {
    "causal 512": lambda: causal(512),
    "7x7 on 16x24": lambda: neighborhood((16, 24), (7, 7)),
}
