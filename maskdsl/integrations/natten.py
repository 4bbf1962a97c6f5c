"""NATTEN's functions `na1d`, `na2d` and `na3d`, with their names, layouts and meaning."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch

from maskdsl.errors import BindError, nearest
from maskdsl.integrations.kernels import kernel_for
from maskdsl.pattern import Pattern, parse

Attended = torch.Tensor | tuple[torch.Tensor, torch.Tensor]
BACKENDS = ("triton", "torch", "reference")
AXES = "tyx"
# What NATTEN's functions take to tune their own kernels, and the values that leave it out.
TUNING: Mapping[str, tuple[Any, ...]] = {
    "attention_kwargs": (None, {}),
    "backward_q_tile_shape": (None,),
    "backward_kv_tile_shape": (None,),
    "backward_kv_splits": (None,),
    "backward_use_pt_reduction": (None, False),
    "run_persistent_kernel": (None, True),
    "kernel_schedule": (None,),
    "torch_compile": (None, False),
}


def na1d(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int] | None = 1,
    dilation: int | Sequence[int] | None = 1,
    is_causal: bool | Sequence[bool] | None = False,
    scale: float | None = None,
    additional_keys: torch.Tensor | None = None,
    additional_values: torch.Tensor | None = None,
    *,
    backend: str | None = None,
    q_tile_shape: Sequence[int] | None = None,
    kv_tile_shape: Sequence[int] | None = None,
    return_lse: bool = False,
    **tuning: Any,
) -> Attended:
    """Neighborhood attention over a sequence, (batch, tokens, heads, head_dim), as `natten.na1d`.

    key, value: of any number of heads that divides the query's; value may have a head_dim of its
    own. kernel_size, stride, dilation, is_causal: one for all axes or one per axis; kernel_size at
    least 2, stride at most kernel_size, kernel_size * dilation at most the extent. scale: default
    head_dim ** -0.5. additional_keys, additional_values: (batch, more, kv_heads, head_dim), seen by
    every query. backend: "triton" (default on a GPU), "torch" or "reference". q_tile_shape,
    kv_tile_shape: tokens of a tile per axis, powers of two; default the layout search's choice.
    tuning: options of NATTEN's kernels, which must be at their defaults.

    Returns the output, (batch, tokens, heads, value's head_dim), and with return_lse the natural
    log-sum-exp, float32 (batch, tokens, heads); both differentiable. The rule is that of
    "Generalized Neighborhood Attention", arXiv 2504.16922, as the language's `neighborhood` states
    it. Raises BindError for what does not fit, PlanError for tiles that do not.
    """
    window = kernel_size, stride, dilation, is_causal
    more = additional_keys, additional_values
    tiles = q_tile_shape, kv_tile_shape
    return _attend(1, (query, key, value), window, scale, more, backend, tiles, return_lse, tuning)


def na2d(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int] | None = 1,
    dilation: int | Sequence[int] | None = 1,
    is_causal: bool | Sequence[bool] | None = False,
    scale: float | None = None,
    additional_keys: torch.Tensor | None = None,
    additional_values: torch.Tensor | None = None,
    *,
    backend: str | None = None,
    q_tile_shape: Sequence[int] | None = None,
    kv_tile_shape: Sequence[int] | None = None,
    return_lse: bool = False,
    **tuning: Any,
) -> Attended:
    """Neighborhood attention over an image, (batch, height, width, heads, head_dim), as
    `natten.na2d`. Arguments, results and errors as for `na1d`.
    """
    window = kernel_size, stride, dilation, is_causal
    more = additional_keys, additional_values
    tiles = q_tile_shape, kv_tile_shape
    return _attend(2, (query, key, value), window, scale, more, backend, tiles, return_lse, tuning)


def na3d(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int] | None = 1,
    dilation: int | Sequence[int] | None = 1,
    is_causal: bool | Sequence[bool] | None = False,
    scale: float | None = None,
    additional_keys: torch.Tensor | None = None,
    additional_values: torch.Tensor | None = None,
    *,
    backend: str | None = None,
    q_tile_shape: Sequence[int] | None = None,
    kv_tile_shape: Sequence[int] | None = None,
    return_lse: bool = False,
    **tuning: Any,
) -> Attended:
    """Neighborhood attention over a video, (batch, time, height, width, heads, head_dim), as
    `natten.na3d`. Arguments, results and errors as for `na1d`.
    """
    window = kernel_size, stride, dilation, is_causal
    more = additional_keys, additional_values
    tiles = q_tile_shape, kv_tile_shape
    return _attend(3, (query, key, value), window, scale, more, backend, tiles, return_lse, tuning)


def _attend(
    rank: int,
    tensors: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    window: tuple[Any, Any, Any, Any],
    scale: float | None,
    more: tuple[torch.Tensor | None, torch.Tensor | None],
    backend: str | None,
    tiles: tuple[Any, Any],
    return_lse: bool,
    tuning: Mapping[str, Any],
) -> Attended:
    _check_tuning(tuning)
    if backend not in (None, *BACKENDS):
        raise BindError(f"backend is one of {', '.join(BACKENDS)}, not {backend!r}")
    grid = _grid(rank, tensors)
    values = _window(grid, *window) | dict(zip(AXES[-rank:], grid, strict=True))
    q, k, v = (x.flatten(1, rank) for x in tensors)
    extra = _additional(more, k, v)
    if extra is not None:
        k, v = (torch.cat(pair, dim=1) for pair in zip((k, v), extra, strict=True))
        values["more"] = extra[0].shape[1]
    options: dict[str, Any] = {} if scale is None else {"scale": scale}
    for name, tile in zip(("q_tile", "kv_tile"), tiles, strict=True):
        if tile is not None:
            if extra is not None:
                raise BindError(f"{name}_shape cannot be given along with additional keys")
            options[name] = tile
    pattern = _pattern(rank, extra is not None)
    kernel = kernel_for(pattern, values, q, k, v, layout="bnhd", backend=backend, **options)
    found = kernel(q, k, v, return_lse=return_lse)
    if isinstance(found, torch.Tensor):
        return found.reshape(len(q), *grid, *found.shape[2:])
    out, lse = found[0], found[1].transpose(1, 2)
    return out.reshape(len(q), *grid, *out.shape[2:]), lse.reshape(len(q), *grid, -1)


@lru_cache
def _pattern(rank: int, additional: bool) -> Pattern:
    axes = AXES[-rank:]
    grid = f"grid({', '.join(axes)})"
    near = " and ".join(
        f"neighborhood({a}, window[{i}], stride[{i}], dilation[{i}], causal[{i}])"
        for i, a in enumerate(axes)
    )
    params = ", ".join(f"{p}: int[{rank}]" for p in ("window", "stride", "dilation"))
    keys = f"-> {grid} then additional(more)\nkeep grid -> additional: true" if additional else ""
    return parse(
        f"pattern neighborhood{rank}d({params}, causal: bool[{rank}])\n"
        f"over {grid} {keys}\nkeep grid -> grid: {near}"
    )


def _check_tuning(tuning: Mapping[str, Any]) -> None:
    for name, value in tuning.items():
        if name not in TUNING:
            raise BindError(f"there is no option '{name}'{nearest(name, TUNING)}")
        if value not in TUNING[name]:
            raise BindError(f"{name} tunes NATTEN's own kernels: leave it out")


def _grid(rank: int, tensors: tuple[Any, Any, Any]) -> tuple[int, ...]:
    """Extents of the axes. `kernel_for` and the kernel check what is not of a grid."""
    for name, x in zip(("query", "key", "value"), tensors, strict=True):
        if not isinstance(x, torch.Tensor) or x.ndim != rank + 3:
            axes = "".join(f"{a}, " for a in AXES[-rank:])
            given = tuple(x.shape) if isinstance(x, torch.Tensor) else type(x).__name__
            raise BindError(f"{name} is (batch, {axes}heads, head_dim), not {given}")
        if x.shape[1 : rank + 1] != tensors[0].shape[1 : rank + 1]:
            raise BindError(f"query and {name} differ in extents: {tensors[0].shape}, {x.shape}")
    return tuple(tensors[0].shape[1 : rank + 1])


def _window(
    grid: tuple[int, ...], kernel_size: Any, stride: Any, dilation: Any, is_causal: Any
) -> dict[str, tuple[Any, ...]]:
    """The pattern's parameters. Raises BindError for what NATTEN does not take."""
    rank = len(grid)
    found = {
        "window": _per_axis("kernel_size", kernel_size, rank, 2),
        "stride": _per_axis("stride", 1 if stride is None else stride, rank, 1),
        "dilation": _per_axis("dilation", 1 if dilation is None else dilation, rank, 1),
    }
    for n, w, s, d in zip(grid, *found.values(), strict=True):
        if w * d > n:
            raise BindError(f"kernel_size {w} * dilation {d} is more than the extent {n}")
        if s > w:
            raise BindError(f"stride {s} is more than kernel_size {w}")
    causal = False if is_causal is None else is_causal
    causal = (causal,) * rank if isinstance(causal, bool) else causal
    fits = isinstance(causal, Sequence) and len(causal) == rank
    if not fits or not all(isinstance(c, bool) for c in causal):
        raise BindError(f"is_causal is a bool or {rank} of them, not {is_causal!r}"[:200])
    return {**found, "causal": tuple(causal)}


def _per_axis(name: str, value: Any, rank: int, least: int) -> tuple[int, ...]:
    values = (value,) * rank if isinstance(value, int) else value
    fits = isinstance(values, Sequence) and len(values) == rank
    if not fits or not all(isinstance(x, int) and x >= least for x in values):
        what = f"an int of at least {least}, or {rank} of them"
        raise BindError(f"{name} is {what}, not {value!r}"[:200])
    return tuple(values)


def _additional(
    more: tuple[Any, Any], k: torch.Tensor, v: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor] | None:
    keys, values = more
    if keys is None and values is None:
        return None
    if not isinstance(keys, torch.Tensor) or not isinstance(values, torch.Tensor):
        raise BindError("additional_keys and additional_values are two tensors, or both left out")
    for name, x, like in (("additional_keys", keys, k), ("additional_values", values, v)):
        wanted = (like.shape[0], keys.shape[1] if keys.ndim > 1 else 0, *like.shape[2:])
        if tuple(x.shape) != wanted or math.prod(wanted) == 0:
            raise BindError(f"{name} must have shape {wanted} with tokens, not {tuple(x.shape)}")
    return keys, values
