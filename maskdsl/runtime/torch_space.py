"""The array library that `ir.evaluate` needs, in torch: the same operations on tensors,
differentiable where floats are.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from maskdsl.ir.evaluate import NumpySpace, evaluate
from maskdsl.ir.program import Program
from maskdsl.runtime.boundary import Call


class TorchSpace:
    """Tensors on one device; `float_dtype` is float32 in scores, float64 in keeps and indices."""

    def __init__(self, device: torch.device, float_dtype: torch.dtype) -> None:
        self.device = device
        self.float_dtype = float_dtype
        self.tables: dict[int, torch.Tensor] = {}

    def constant(self, value: Any, type_: str) -> Any:
        return value

    def _tensor(self, x: Any) -> torch.Tensor:
        if isinstance(x, torch.Tensor):
            return x
        dtype = self.float_dtype if isinstance(x, float) else None
        return torch.as_tensor(x, dtype=dtype, device=self.device)

    def to_int(self, x: Any) -> torch.Tensor:
        return self._tensor(x).to(torch.int64)

    def to_float(self, x: Any) -> torch.Tensor:
        return self._tensor(x).to(self.float_dtype)

    def where(self, test: Any, a: Any, b: Any) -> Any:
        if isinstance(a, float) and isinstance(b, float):
            a = self._tensor(a)  # two floats of Python would make float32
        return torch.where(self._tensor(test), a, b)

    def isfinite(self, x: Any) -> Any:
        return torch.isfinite(self._tensor(x))

    def floordiv(self, a: Any, b: Any) -> Any:
        return torch.div(self._tensor(a), b, rounding_mode="floor")

    def mod(self, a: Any, b: Any) -> Any:
        return torch.remainder(self._tensor(a), b)

    def minimum(self, a: Any, b: Any) -> Any:
        if not isinstance(b, torch.Tensor):
            return torch.clamp(self._tensor(a), max=b)
        if not isinstance(a, torch.Tensor):
            return torch.clamp(b, max=a)
        return torch.minimum(a, b)

    def maximum(self, a: Any, b: Any) -> Any:
        if not isinstance(b, torch.Tensor):
            return torch.clamp(self._tensor(a), min=b)
        if not isinstance(a, torch.Tensor):
            return torch.clamp(b, min=a)
        return torch.maximum(a, b)

    def power(self, a: Any, b: Any) -> Any:
        return torch.pow(self._tensor(a), b)

    def unary(self, name: str, x: Any) -> Any:
        return getattr(torch, {"truncate": "trunc"}.get(name, name))(self._tensor(x))

    def table(self, array: Any) -> torch.Tensor:
        key = id(array)
        if key not in self.tables:
            self.tables[key] = torch.from_numpy(array.copy()).to(self.device)
        return self.tables[key]

    def gather(self, array: torch.Tensor, indices: list[Any]) -> torch.Tensor:
        at = [self._tensor(i) for i in indices]
        return array[tuple(torch.broadcast_tensors(*at))] if at else array  # type: ignore[no-untyped-call]

    def all_fit(self, op: str, value: Any, args: list[Any]) -> torch.Tensor:
        host = [a.cpu().numpy() if isinstance(a, torch.Tensor) else np.asarray(a) for a in args]
        return torch.from_numpy(NumpySpace().all_fit(op, value, host)).to(self.device)


def sink_of(
    program: Program, call: Call, b: int, heads: torch.Tensor, compute: torch.dtype
) -> torch.Tensor | None:
    """The sink's logit of each of these heads, (heads,)."""
    if program.sink is None:
        return None
    space = TorchSpace(heads.device, compute)
    value = evaluate(program.sink, {"batch": b, "head": heads}, call.inputs, space)
    return torch.as_tensor(value, dtype=compute, device=heads.device).expand(len(heads))
