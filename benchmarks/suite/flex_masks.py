"""The workloads' masks in torch, written by hand as a user of FlexAttention would."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from benchmarks.suite.workloads import Workload

MaskMod = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
ScoreMod = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class FlexUse:
    """What `flex_attention` is given. per_head, per_batch: what the mask depends on."""

    mask_mod: MaskMod
    score_mod: ScoreMod | None = None
    per_head: bool = False
    per_batch: bool = False


@dataclass(frozen=True)
class Given:
    """What a mask is made of: extents and parameters, and inputs on the device it runs on."""

    bound: Mapping[str, Any]
    inputs: Mapping[str, Tensor]
    device: torch.device


def causal(given: Given) -> FlexUse:
    return FlexUse(lambda b, h, q, k: q >= k)


def sliding_window(given: Given) -> FlexUse:
    window = given.bound["window"]
    return FlexUse(lambda b, h, q, k: (q >= k) & (q - k < window))


def streaming(given: Given) -> FlexUse:
    sinks, window = given.bound["sinks"], given.bound["window"]
    return FlexUse(lambda b, h, q, k: (q >= k) & ((k < sinks) | (q - k < window)))


def neighborhood(given: Given) -> FlexUse:
    extents = [given.bound[axis] for axis in ("t", "y", "x") if axis in given.bound]
    windows, strides = given.bound["window"], given.bound["stride"]

    def near(q: Tensor, k: Tensor, extent: int, window: int, stride: int) -> Tensor:
        leader = (q // stride * stride + stride // 2).clamp(max=extent - 1)
        start = (leader - window // 2).clamp(0, extent - window)
        return (k >= start) & (k < start + window)

    def mask_mod(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        kept = torch.ones_like(q + k, dtype=torch.bool)
        at = zip(coordinates(q, extents), coordinates(k, extents), strict=True)
        for (i, j), *sizes in zip(at, extents, windows, strides, strict=True):
            kept = kept & near(i, j, *sizes)
        return kept

    return FlexUse(mask_mod)


def sliding_tile(given: Given) -> FlexUse:
    extents = [given.bound[axis] for axis in ("t", "y", "x")]
    tiles = [-(-n // size) for n, size in zip(extents, given.bound["tile"], strict=True)]
    sizes, windows = given.bound["tile"], given.bound["window"]

    def mask_mod(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        kept = torch.ones_like(q + k, dtype=torch.bool)
        at = zip(coordinates(q, extents), coordinates(k, extents), strict=True)
        for (i, j), size, count, window in zip(at, sizes, tiles, windows, strict=True):
            start = (i // size - window // 2).clamp(0, count - window)
            kept = kept & (j // size >= start) & (j // size < start + window)
        return kept

    return FlexUse(mask_mod)


def radial(given: Given) -> FlexUse:
    t, s = given.bound["t"], given.bound["s"]
    shares = [2.0 ** (s.bit_length() - gap.bit_length()) for gap in range(t)]
    near = [s if gap <= 1 else max(x * given.bound["decay"], 128) for gap, x in enumerate(shares)]
    reach = torch.tensor([math.floor(x) for x in near], device=given.device)
    every = torch.tensor([1 if x >= 128 else int(128 / x) for x in shares], device=given.device)

    def mask_mod(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        gap = (q // s - k // s).abs()
        return (k < s) | (((q % s - k % s).abs() <= reach[gap]) & (gap % every[gap] == 0))

    return FlexUse(mask_mod)


def dilated(given: Given) -> FlexUse:
    window, dilation = given.bound["window"], given.bound["dilation"]
    reach = window * dilation
    return FlexUse(lambda b, h, q, k: ((q - k).abs() <= reach) & ((q - k) % dilation == 0))


def strided(given: Given) -> FlexUse:
    stride = given.bound["stride"]

    def mask_mod(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        local, far = q - k < stride, (q - k) % stride == 0
        return (q >= k) & torch.where(h % 2 == 0, local, far)

    return FlexUse(mask_mod, per_head=True)


def documents(given: Given) -> FlexUse:
    doc = given.inputs["doc"]
    return FlexUse(lambda b, h, q, k: (q >= k) & (doc[b, q] == doc[b, k]), per_batch=True)


def swin(given: Given) -> FlexUse:
    width = given.bound["x"]
    (high, wide), (down, right) = given.bound["window"], given.bound["shift"]

    def mask_mod(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        # One whole window is added so that no division sees a negative number.
        rows = (q // width - down + high) // high == (k // width - down + high) // high
        columns = (q % width - right + wide) // wide == (k % width - right + wide) // wide
        return rows & columns

    return FlexUse(mask_mod)


def alibi(given: Given) -> FlexUse:
    slope = given.inputs["slope"]
    return FlexUse(
        lambda b, h, q, k: q >= k,
        score_mod=lambda score, b, h, q, k: score - slope[h] * (q - k),
    )


def coordinates(index: Tensor, extents: Sequence[int]) -> list[Tensor]:
    """Of flattened positions, one tensor per axis."""
    found = []
    for extent in reversed(extents):
        found.append(index % extent)
        index = index // extent
    return found[::-1]


MASKS: dict[str, Callable[[Given], FlexUse]] = {
    f.__name__: f
    for f in (
        causal, sliding_window, streaming, neighborhood, sliding_tile, radial, dilated, strided,
        documents, swin, alibi,
    )
}  # fmt: skip


def flex_use(
    workload: Workload, inputs: Mapping[str, Tensor], device: torch.device, first: int = 0
) -> FlexUse | None:
    """What FlexAttention is given for a workload; None where every pair is kept. first: the
    position of the first query.
    """
    if workload.flex is None:
        return None
    use = MASKS[workload.flex](Given(workload.bind, inputs, device))
    if not first:
        return use
    mask_mod = use.mask_mod
    return replace(use, mask_mod=lambda b, h, q, k: mask_mod(b, h, q + first, k))
