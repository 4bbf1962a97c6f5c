"""Plain arguments: checked, and as numbers and texts."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import numpy as np

from maskdsl.errors import BindError


def count(name: str, value: Any) -> int:
    """A whole number of at least 1. Raises `BindError` for anything else."""
    try:
        number = -1 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = -1
    if number < 1:
        raise BindError(f"{name} must be a whole number of at least 1, not {value!r}")
    return number


def plain(choice: Mapping[str, Any]) -> dict[str, Any]:
    """A choice in numbers, texts and lists; tiles and the like as text."""

    def one(value: Any) -> Any:
        if isinstance(value, (np.ndarray, np.generic)):
            return value.tolist()
        if isinstance(value, (list, tuple)):
            return [one(v) for v in value]
        return value if value is None or isinstance(value, (bool, int, float)) else str(value)

    return {name: one(value) for name, value in choice.items()}
