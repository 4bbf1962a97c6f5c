"""Plain arguments: checked, and as numbers and texts."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import numpy as np

from maskdsl.errors import BindError

MOST = 2**31 - 1  # of anything: a launch has no more programs


def count(name: str, value: Any, most: int = MOST) -> int:
    """A whole number from 1 to `most`. Raises `BindError` for anything else."""
    try:
        number = -1 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = -1
    if number < 1:
        raise BindError(f"{name} must be a whole number of at least 1, not {value!r}"[:200])
    if number > most:
        raise BindError(f"{name} is at most {most}, not {value!r}"[:200])
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
