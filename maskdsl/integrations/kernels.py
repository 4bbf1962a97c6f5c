"""Where the integrations take their kernels from: one per pattern and shape, the last ones kept."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from maskdsl.errors import BindError
from maskdsl.pattern import Pattern
from maskdsl.runtime.compile import compile  # noqa: A004
from maskdsl.runtime.kernel import Kernel

KEPT = 128  # kernels


def kernel_for(
    pattern: Pattern,
    values: Mapping[str, Any],
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    layout: str = "bhnd",
    backend: str | None = None,
    **options: Any,
) -> Kernel:
    """The kernel of a pattern for tensors like these: heads, sizes, dtype and device are theirs.

    values: parameters and extents, as for `pattern.bind`. backend: by default triton for tensors on
    a GPU and torch elsewhere. options: further arguments of `maskdsl.compile`. Raises what `bind`
    and `compile` raise.
    """
    heads = 1 if layout == "bhnd" else 2
    if q.ndim != 4 or k.ndim != 4 or v.ndim != 4:
        raise BindError(f"q, k and v must have 4 dimensions, not {q.ndim}, {k.ndim} and {v.ndim}")
    if backend is None:
        backend = "triton" if q.is_cuda and q.dtype != torch.float64 else "torch"
    bound = {**values, "heads": q.shape[heads], "kv_heads": k.shape[heads]}
    shape = {"head_dim": q.shape[3], "value_dim": v.shape[3], "dtype": q.dtype}
    return _compiled(pattern, _pairs(bound), _pairs({**options, **shape}), layout, backend)


@lru_cache(maxsize=KEPT)
def _compiled(
    pattern: Pattern,
    values: tuple[tuple[str, Any], ...],
    options: tuple[tuple[str, Any], ...],
    layout: str,
    backend: str,
) -> Kernel:
    mask = pattern.bind(**dict(values))
    return compile(mask, layout=layout, backend=backend, **dict(options))


def _pairs(values: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    """Names and values, in the order of the names, that serve as a key."""
    return tuple((name, _frozen(values[name])) for name in sorted(values))


def _frozen(value: Any) -> Any:
    if isinstance(value, (np.ndarray, torch.Tensor)):
        value = value.tolist()
    if isinstance(value, Iterable) and not isinstance(value, str):
        return tuple(map(_frozen, value))
    return value
