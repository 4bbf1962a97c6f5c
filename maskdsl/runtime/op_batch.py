"""`torch.func.vmap` of an operator over its batch: one call with more batch entries where that is
the same, else one call for each sample.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

Call = Callable[[list[Any]], Sequence[torch.Tensor]]


def batched(
    size: int, tensors: Sequence[torch.Tensor | None], dims: Sequence[int | None],
    places: Sequence[int | None], call: Call, results: Sequence[int | None],
) -> tuple[Sequence[torch.Tensor], tuple[int, ...]]:  # fmt: skip
    """(results, dimensions of the samples in them) of `call` for `size` samples.

    dims: where each tensor counts samples, None where all share it. places: where a tensor counts
    batch entries without that dimension, None where it does not. results: the same of the results.
    """
    loose = any(d is not None and p is None for d, p in zip(dims, places, strict=True))
    if loose or any(p is None for p in results):
        own = [
            call([_sample(x, d, i) for x, d in zip(tensors, dims, strict=True)])
            for i in range(size)
        ]
        return tuple(torch.stack(x) for x in zip(*own, strict=True)), (0,) * len(results)
    folded = [
        x if x is None or p is None else _fold(x, d, p, size)
        for x, d, p in zip(tensors, dims, places, strict=True)
    ]
    found = call(folded)
    at = tuple(p for p in results if p is not None)
    return tuple(_unfold(x, p, size) for x, p in zip(found, at, strict=True)), at


def _sample(x: torch.Tensor | None, dim: int | None, number: int) -> torch.Tensor | None:
    return x if x is None or dim is None else x.select(dim, number)


def _fold(x: torch.Tensor, dim: int | None, place: int, size: int) -> torch.Tensor:
    """Samples laid before batch entries, in one dimension."""
    if dim is None:
        x = x.unsqueeze(place).expand(*x.shape[:place], size, *x.shape[place:])
    else:
        x = x.movedim(dim, place)
    return x.flatten(place, place + 1)


def _unfold(x: torch.Tensor, place: int, size: int) -> torch.Tensor:
    return x.view(*x.shape[:place], size, x.shape[place] // size, *x.shape[place + 1 :])
