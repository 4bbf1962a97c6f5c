"""What a call is given, checked before anything runs: shapes, dtypes, devices, inputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch

from maskdsl.errors import BindError
from maskdsl.ir.definition import check_input, check_range, match_inputs
from maskdsl.ir.nodes import Array
from maskdsl.ir.program import Program
from maskdsl.language.binding import whole

DTYPES = {
    torch.float16: "float16",
    torch.bfloat16: "bfloat16",
    torch.float32: "float32",
    torch.float64: "float64",
}
_NUMPY_KINDS = {
    torch.bool: "b",
    torch.bfloat16: "f",
    torch.float16: "f",
    torch.float32: "f",
    torch.float64: "f",
}


class Call(NamedTuple):
    """Checked arguments of one call. q, k, v: (batch, heads, tokens, head_dim), any strides.
    inputs: on their device. first: where the first query stands, if not all of the mask's queries
    are given.
    """

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    inputs: dict[str, torch.Tensor]
    first: int | None = None


@dataclass(frozen=True)
class Shapes:
    """What a kernel was compiled for."""

    heads: int
    kv_heads: int
    queries: int
    keys: int
    head_dim: int
    value_dim: int
    dtype: torch.dtype
    layout: str  # "bhnd" or "bnhd"

    @cached_property
    def of_entry(self) -> tuple[tuple[int, ...], ...]:
        """Shapes of q, k, v without the batch, in the layout asked for."""
        shapes = (
            (self.heads, self.queries, self.head_dim),
            (self.kv_heads, self.keys, self.head_dim),
            (self.kv_heads, self.keys, self.value_dim),
        )
        return shapes if self.layout == "bhnd" else tuple((n, h, d) for h, n, d in shapes)


def check_call(
    program: Program, want: Shapes, q: Any, k: Any, v: Any, inputs: Mapping[str, Any],
    q_offset: Any = None,
) -> Call:  # fmt: skip
    """Arguments in `bhnd` order; q_offset: where the first query stands, or None. Raises BindError
    with the first thing that does not fit.
    """
    first = None
    if q_offset is not None or not _as_usual(want, q, k, v):
        first = _check_tensors(program, want, q, k, v, q_offset)
    q, k, v = q.resolve_neg(), k.resolve_neg(), v.resolve_neg()  # kernels read what is in memory
    if want.layout == "bnhd":
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    return Call(q, k, v, check_inputs(program, q.shape[0], q.device, inputs), first)


def _as_usual(want: Shapes, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> bool:
    """Whether all fits, and all queries are given."""
    shape, (of_q, of_k, of_v) = q.shape, want.of_entry
    return (
        q.dtype == k.dtype == v.dtype == want.dtype
        and q.device == k.device == v.device
        and shape[1:] == of_q
        and k.shape == (shape[0], *of_k)
        and v.shape == (shape[0], *of_v)
    )


def _check_tensors(
    program: Program, want: Shapes, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor,
    q_offset: Any,
) -> int | None:  # fmt: skip
    """Where the first query stands, if not all are given. Raises BindError."""
    named = {"q": q, "k": k, "v": v}
    for name, x in named.items():
        if x.ndim != 4:
            order = "batch, heads, tokens, head_dim"
            order = order if want.layout == "bhnd" else "batch, tokens, heads, head_dim"
            raise BindError(f"{name} must have 4 dimensions ({order}), not shape {tuple(x.shape)}")
        if x.dtype != want.dtype:
            raise BindError(f"{name} must be {want.dtype}, as compiled, not {x.dtype}")
        if x.device != q.device:
            raise BindError(f"{name} is on {x.device}, q on {q.device}")
    if want.layout == "bnhd":
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    batch = q.shape[0]
    first = _first(program, want, q.shape[2], q_offset)
    queries = want.queries if first is None else q.shape[2]
    for name, x, shape in (
        ("q", q, (batch, want.heads, queries, want.head_dim)),
        ("k", k, (batch, want.kv_heads, want.keys, want.head_dim)),
        ("v", v, (batch, want.kv_heads, want.keys, want.value_dim)),
    ):
        if x.shape != shape:
            raise _misfit(name, x, shape, tuple(named[name].shape))
    return first


def _misfit(
    name: str, x: torch.Tensor, wanted: tuple[int, ...], shape: tuple[int, ...]
) -> BindError:
    """The first extent that is not as wanted; shape: as the caller laid it out."""
    whats = ("batch", "heads", "tokens", "head_dim")
    whose = ("q's", "the mask's", "the mask's", "the kernel's")
    at = next(i for i, (n, w) in enumerate(zip(x.shape, wanted, strict=True)) if n != w)
    return BindError(
        f"{name} has {whats[at]} {x.shape[at]}, {whose[at]} is {wanted[at]} (shape {shape})"
    )


def check_plain(name: str, x: Any) -> None:
    """Raises BindError for what has no values at strides in memory."""
    if not isinstance(x, torch.Tensor):
        raise BindError(f"{name} must be a tensor, not {type(x).__name__}")
    if x.is_nested or x.layout != torch.strided:
        kind = "nested" if x.is_nested else str(x.layout).removeprefix("torch.").removeprefix("_")
        raise BindError(f"{name} is a {kind} tensor: give a dense one, padded where it must be")
    if x.is_meta:
        raise BindError(f"{name} is on the meta device, which holds no values")


def place(q_offset: Any) -> int:
    """A position given from Python, or a symbol of a graph. Raises BindError."""
    if isinstance(q_offset, torch.SymInt):
        return q_offset  # type: ignore[return-value]
    return whole("q_offset", q_offset, least=0)


def _first(program: Program, want: Shapes, count: int, q_offset: Any) -> int | None:
    """Where the first of so many queries stands; None where they are all of the mask's."""
    if not program.shared:
        if q_offset is not None:
            raise BindError("q_offset is for a space that queries and keys share")
        return None
    if not 1 <= count <= want.keys:
        return None  # told like any other shape that does not fit
    first = want.keys - count if q_offset is None else place(q_offset)
    if first + count > want.keys:
        raise BindError(f"{count} queries from position {first} do not fit {want.keys} keys")
    return first if count < want.keys else None


def check_inputs(
    program: Program, batch: int, device: torch.device, given: Mapping[str, Any]
) -> dict[str, torch.Tensor]:
    found = {}
    for array, x in match_inputs(program.inputs, given):
        name = array.name
        x = tensor_of(array, x, device)
        if x.device != device:
            raise BindError(f"the input '{name}' is on {x.device}, q on {device}")
        if x.dtype == torch.uint64 and bool((x.view(torch.int64) < 0).any()):
            raise BindError(f"the input '{name}' does not fit in 64 bits")
        kind = _NUMPY_KINDS.get(x.dtype, "c" if x.dtype.is_complex else "i")
        check_input(array, tuple(x.shape), kind, str(x.dtype))
        for at, dim in enumerate(array.dims):
            if dim == "batch" and x.shape[at] != batch:
                raise BindError(
                    f"the input '{name}' has batch {x.shape[at]} in dimension {at}, q has {batch}"
                )
        found[name] = x.resolve_neg()
    return found


def tensor_of(array: Array, x: Any, device: torch.device) -> torch.Tensor:
    """An input as a tensor; what numpy holds is copied to the device. Raises BindError."""
    if isinstance(x, np.ndarray):
        check_input(array, x.shape, x.dtype.kind, str(x.dtype))
        check_range(array, x)
        plain = {"b": np.bool_, "f": np.float64}.get(x.dtype.kind, np.int64)
        if x.dtype in (np.float16, np.float32, np.int32):
            plain = x.dtype.newbyteorder("=").type
        return torch.from_numpy(np.require(x, plain, ["C", "W", "E"])).to(device)
    if not isinstance(x, torch.Tensor):
        raise BindError(
            f"the input '{array.name}' must be a tensor or an array, not {type(x).__name__}"
        )
    check_plain(f"the input '{array.name}'", x)
    return x
