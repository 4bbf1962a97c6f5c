"""Patterns as configs name them, in a line: `std/sliding_window window=4096`."""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from maskdsl.errors import BindError
from maskdsl.pattern import Mask, Pattern, load, parse


@dataclass(frozen=True, eq=False)
class Named:
    """A pattern, its parameters, and extents of axes that do not follow from a call."""

    pattern: Pattern
    values: Mapping[str, Any]

    def bind(self, heads: int, kv_heads: int) -> Mask:
        """The mask, one axis still open."""
        return self.pattern.bind(**self.values, heads=heads, kv_heads=kv_heads)

    def extents(self, tokens: int) -> dict[str, int]:
        """The extent of the axis that the values leave open, so that the space has so many tokens.
        Raises BindError.
        """
        pattern, program = self.pattern, self.pattern.program
        if not program.shared:
            raise BindError(f"{pattern.name}: queries and keys must have one space")
        open_axes = [a for a in pattern.axes if a not in self.values]
        if len(open_axes) > 1:
            left = ", ".join(open_axes)
            raise BindError(f"{pattern.name} leaves {left} open: give all extents but one")
        fixed = share = 0
        for segment in program.queries:
            names = [name for name, _ in segment.axes]
            size = math.prod(int(self.values.get(a, 1)) for a in names)
            if set(open_axes) & set(names):
                share += size
            else:
                fixed += size
        if not open_axes and fixed == tokens:
            return {}
        rest = tokens - fixed
        if not open_axes or rest < share or rest % share:
            raise BindError(f"{pattern.name}: {tokens} tokens do not fit its extents")
        return {open_axes[0]: rest // share}


@lru_cache
def named(line: str) -> Named:
    """The pattern that a line names: a file or a library entry with its parameters, as after
    `maskdsl show` (`FILE [--name PATTERN] [NAME=VALUE]...`), or the text of a pattern.

    Raises what `parse` and `load` raise, BindError.
    """
    if not isinstance(line, str):
        raise BindError(f"a pattern is named by a line of text, not by {line!r}"[:200])
    if re.search(r"\bpattern\s+\w", line):
        return Named(parse(line), {})
    file, *words = re.split(r"\s+(?=--name\s|[A-Za-z_]\w*=)", line.strip())
    chosen = [w.split(None, 1)[1].strip() for w in words if w.startswith("--name")]
    pairs = [w.partition("=") for w in words if not w.startswith("--name")]
    values = {name: value_of(text, name) for name, _, text in pairs}
    return Named(load(file, chosen[-1] if chosen else None), values)


def value_of(text: str, name: str) -> Any:
    """`3`, `0.5`, `true`, `[3, 5]` as Python values. Raises BindError."""
    plain = re.sub(r"\b(true|false)\b", lambda m: m[0].title(), text.strip())
    try:
        return ast.literal_eval(plain)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        raise BindError(
            f"{name}: '{text[:60]}' is not a number, true, false or a list of them"
        ) from None
