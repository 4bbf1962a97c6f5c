"""Patterns of the planner's benchmark, each as a user of ours writes it and as a user of
FlexAttention does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

import maskdsl
from maskdsl import tables

BLOCK = 128
MaskMod = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Case:
    """text, bound: our pattern and what to bind. tile: of queries and keys, BLOCK lanes.
    mask_mod: the same pattern in torch, by hand.
    """

    text: str
    bound: dict[str, Any]
    tile: tuple[int, ...]
    mask_mod: MaskMod

    def mask(self) -> maskdsl.Mask:
        return maskdsl.parse(self.text).bind(**self.bound)


def causal(n: int) -> Case:
    text = "pattern causal_all over (n) keep causal(n)"
    return Case(text, {"n": n}, (BLOCK,), lambda b, h, q, k: q >= k)


def window(n: int) -> Case:
    text = "pattern causal_window(window: int) over (n) keep 0 <= q.n - k.n < window"

    def mask_mod(b: torch.Tensor, h: torch.Tensor, q: torch.Tensor, k: torch.Tensor) -> Any:
        return (q >= k) & (q - k < 1024)

    return Case(text, {"n": n, "window": 1024}, (BLOCK,), mask_mod)


def streaming(n: int) -> Case:
    text = """pattern window_and_sinks(sinks: int, window: int) over (n)
    keep causal(n) and (k.n < sinks or q.n - k.n < window)"""

    def mask_mod(b: torch.Tensor, h: torch.Tensor, q: torch.Tensor, k: torch.Tensor) -> Any:
        return (q >= k) & ((k < 4) | (q - k < 1020))

    return Case(text, {"n": n, "sinks": 4, "window": 1020}, (BLOCK,), mask_mod)


def dilated(n: int) -> Case:
    text = "pattern dilated_window over (n) keep dilated(n, 64, 16)"

    def mask_mod(b: torch.Tensor, h: torch.Tensor, q: torch.Tensor, k: torch.Tensor) -> Any:
        return ((q - k).abs() <= 1024) & ((q - k) % 16 == 0)

    return Case(text, {"n": n}, (BLOCK,), mask_mod)


def strided(n: int) -> Case:
    text = """pattern strided(stride: int) over (n)
    keep causal(n) and (q.n - k.n < stride or (q.n - k.n) % stride == 0)"""

    def mask_mod(b: torch.Tensor, h: torch.Tensor, q: torch.Tensor, k: torch.Tensor) -> Any:
        return (q >= k) & ((q - k < 512) | ((q - k) % 512 == 0))

    return Case(text, {"n": n, "stride": 512}, (BLOCK,), mask_mod)


def documents(n: int) -> Case:
    """Packed documents of 1024 tokens on average, known when the mask is bound."""
    text = """pattern packed(doc: int[n]) over (n)
    keep causal(n) and doc[q.n] == doc[k.n]"""
    rng = np.random.default_rng(0)
    cuts = np.sort(rng.choice(np.arange(1, n), n // 1024, replace=False))
    doc = tables.documents(np.diff([0, *cuts, n]))
    of = torch.from_numpy(doc)

    def mask_mod(b: torch.Tensor, h: torch.Tensor, q: torch.Tensor, k: torch.Tensor) -> Any:
        return (q >= k) & (of[q] == of[k])

    return Case(text, {"n": n, "doc": doc}, (BLOCK,), mask_mod)


def neighborhood(n: int) -> Case:
    """13 x 13 neighborhoods in an image, twice as wide as high where n is no square."""
    text = """pattern image over (y, x) keep neighborhood(y, 13) and neighborhood(x, 13)"""
    width = 1 << -(-(n.bit_length() - 1) // 2)
    height = n // width

    def near(i: torch.Tensor, j: torch.Tensor, extent: int) -> Any:
        first = (i - 6).clamp(0, extent - 13)
        return (j >= first) & (j < first + 13)

    def mask_mod(b: torch.Tensor, h: torch.Tensor, q: torch.Tensor, k: torch.Tensor) -> Any:
        return near(q // width, k // width, height) & near(q % width, k % width, width)

    return Case(text, {"y": height, "x": width}, (8, 16), mask_mod)


def radial(n: int, frame: int = 1024) -> Case:
    """Frames of `frame` tokens, at least 4 of them."""
    text = maskdsl.load("std/radial").source
    s = min(frame, n // 4)
    t = n // s
    gaps = range(t)
    share = [2.0 ** (s.bit_length() - gap.bit_length()) for gap in gaps]
    reach = torch.tensor([s if g <= 1 else max(x, 128) for g, x in zip(gaps, share, strict=True)])
    every = torch.tensor([1 if x >= 128 else int(128 / x) for x in share])

    def mask_mod(b: torch.Tensor, h: torch.Tensor, q: torch.Tensor, k: torch.Tensor) -> Any:
        gap = (q // s - k // s).abs()
        near = ((q % s - k % s).abs() <= reach[gap]) & (gap % every[gap] == 0)
        return near | (k < s)

    return Case(text, {"t": t, "s": s}, (1, BLOCK), mask_mod)


def power(n: int) -> Case:
    """Blocks of 64 tokens at distances 0, 1, 2, 4, ... before the query's own."""
    text = maskdsl.load("std/power").source

    def mask_mod(b: torch.Tensor, h: torch.Tensor, q: torch.Tensor, k: torch.Tensor) -> Any:
        distance = q // 64 - k // 64
        return (q >= k) & ((distance & (distance - 1)) == 0)

    return Case(text, {"n": n}, (BLOCK,), mask_mod)


COMPARED: dict[str, Callable[[int], Case]] = {
    "causal": causal,
    "causal window": window,
    "window and sinks": streaming,
    "dilated window": dilated,
    "strided": strided,
    "documents": documents,
    "neighborhood 2-D": neighborhood,
    "radial": radial,
}
GROWN: dict[str, Callable[[int], Case]] = {
    "causal window": window,
    "dilated window": dilated,
    "strided": strided,
    "power": power,
    "neighborhood 2-D": neighborhood,
    "radial": radial,
}
