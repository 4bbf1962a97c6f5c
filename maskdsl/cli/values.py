"""What is typed on a command line, as values: bindings, tiles, element types."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import numpy as np

from maskdsl.errors import BindError, nearest
from maskdsl.pattern import Mask, load
from maskdsl.planner import Plan

DTYPES = {
    "bf16": "bfloat16", "bfloat16": "bfloat16", "fp16": "float16", "float16": "float16",
    "half": "float16", "fp32": "float32", "float32": "float32",
}  # fmt: skip
Tiles = tuple[int, ...] | tuple[tuple[int, ...], ...] | None


def bind(spec: str, name: str | None, values: list[str] | None) -> Mask:
    """The mask a command line describes. Raises MaskError."""
    return load(spec, name).bind(**given(values))


def given(values: list[str] | None) -> dict[str, Any]:
    """`NAME=VALUE` texts by name. Raises BindError."""
    found: dict[str, Any] = {}
    for text in values or []:
        key, equals, value = text.partition("=")
        if not equals or not key.isidentifier():
            raise BindError(f"'{text[:60]}' is not of the form NAME=VALUE")
        if key in found:
            raise BindError(f"{key} is given twice")
        found[key] = parse_value(value, key)
    return found


def parse_value(text: str, name: str) -> Any:
    """`3`, `0.5`, `true`, `[3, 5]`, or `@file.npy`, `@file.json`, as a Python value or an array."""
    if text.startswith("@"):
        return _from_file(Path(text[1:]), name)
    if text in ("true", "false"):
        return text == "true"
    try:
        return ast.literal_eval(text.replace("true", "True").replace("false", "False"))
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        raise BindError(
            f"{name}: '{text[:60]}' is not a number, true, false or a list of them"
        ) from None


def _from_file(path: Path, name: str) -> Any:
    try:
        if path.suffix == ".npy":
            return np.load(path, allow_pickle=False)
        if path.suffix == ".json":
            return json.loads(path.read_text(encoding="utf-8"))
    except OSError as e:
        raise BindError(f"{name}: {path} cannot be read: {e.strerror or e}") from None
    except (ValueError, EOFError, RecursionError) as e:
        raise BindError(f"{name}: {path} is no {path.suffix} file: {str(e)[:120]}") from None
    raise BindError(f"{name}: a table is read from a .npy or a .json file, not {path}")


def alternatives(text: str, name: str) -> list[Any]:
    """Values to try, with commas between them: `256,512` or `[7,7],[9,9]`."""
    parts, depth = [""], 0
    for c in text:
        depth += (c == "[") - (c == "]")
        if c == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += c
    return [parse_value(part, name) for part in parts]


def parse_tile(text: str | None) -> Tiles:
    """`4x8x8` as sizes per axis; `4x8,64` as those of each segment. Raises BindError."""
    if text is None:
        return None
    try:
        parts = tuple(tuple(int(n) for n in part.split("x")) for part in text.split(","))
    except ValueError:
        raise BindError(
            f"a tile is written as sizes per axis, such as 4x8x8, not '{text[:60]}'"
        ) from None
    return parts[0] if len(parts) == 1 else parts


def planned(mask: Mask, q_tile: str | None, kv_tile: str | None) -> Plan:
    """The plan under the tiles asked for, or those of the layout search."""
    return mask.plan(parse_tile(q_tile), parse_tile(kv_tile))


def torch_dtype(text: str) -> Any:
    """The torch dtype of a name. Raises BindError."""
    import torch

    if text.lower() not in DTYPES:
        raise BindError(f"dtype is bf16, fp16 or fp32, not '{text[:30]}'{nearest(text, DTYPES)}")
    return getattr(torch, DTYPES[text.lower()])
