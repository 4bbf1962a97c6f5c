"""Checks of plain arguments."""

from __future__ import annotations

import operator
from typing import Any

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
