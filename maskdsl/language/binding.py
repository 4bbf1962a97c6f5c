"""Values given from Python, checked against the types a pattern declares."""

from __future__ import annotations

import numbers
from typing import Any

import numpy as np

from maskdsl.errors import BindError
from maskdsl.ir.definition import host_array
from maskdsl.ir.nodes import INT_MAX, INT_MIN, Array
from maskdsl.ir.storage import content_of
from maskdsl.language import syntax

MAX_TOKENS = 2**31  # of a side: so that 64 bits count the pairs
_KINDS = {"int": "iu", "float": "fiu", "bool": "b"}
_DTYPES = {"int": np.int64, "float": np.float64, "bool": np.bool_}


def shown(value: Any) -> str:
    """A value in an error: on one line, and not too long."""
    return " ".join(repr(value).split())[:160]


def whole(name: str, value: Any, least: int | None = None) -> int:
    """An int given from Python. Raises BindError."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, numbers.Integral):
        raise BindError(f"{name} must be an int, not {shown(value)}")
    result = int(value)
    if least is not None and result < least:
        raise BindError(f"{name} must be at least {least}, not {result}")
    if not INT_MIN <= result <= INT_MAX:
        raise BindError(f"{name} does not fit in 64 bits")
    return result


def bind_scalar(param: syntax.Param, value: Any) -> bool | int | float:
    name, kind = param.name, param.type.base
    if isinstance(value, np.ndarray) and value.ndim == 0:
        value = value.item()
    if kind == "bool":
        if not isinstance(value, (bool, np.bool_)):
            raise BindError(f"{name} must be true or false, not {shown(value)}")
        return bool(value)
    if kind == "int":
        return whole(name, value)
    return real(name, value)


def real(name: str, value: Any) -> float:
    """A finite float given from Python. Raises BindError."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, numbers.Real):
        raise BindError(f"{name} must be a number, not {shown(value)}")
    try:
        result = float(value)
    except OverflowError:
        result = np.inf
    if not np.isfinite(result):
        raise BindError(f"{name} must be finite, not {result}")
    return result


def bind_table(param: syntax.Param, value: Any, dims: tuple[int | str | None, ...]) -> Array:
    """An array parameter with its data: ints as int64, floats as binary64."""
    name, kind = param.name, param.type.base
    data = host_array(name, value)
    if data.dtype.kind not in _KINDS[kind]:
        raise BindError(f"{name} must be an array of {kind}, not of {data.dtype}")
    if data.dtype.kind == "u" and data.size and data.max() > INT_MAX:
        raise BindError(f"{name} does not fit in 64 bits")
    if kind == "float" and not np.isfinite(data).all():
        raise BindError(f"{name} must hold finite numbers")
    wanted = tuple(d if isinstance(d, int) else None for d in dims)
    fits = len(wanted) == data.ndim and all(
        w is None or w == n for w, n in zip(wanted, data.shape, strict=True)
    )
    if not fits:
        shape = ", ".join("any" if w is None else str(w) for w in wanted)
        raise BindError(f"{name} must have shape ({shape}), not {data.shape}")
    data = np.ascontiguousarray(data, dtype=_DTYPES[kind])
    data.setflags(write=False)
    return Array(name, kind, data.shape, False, data, content_of(data))
