"""What commands print: JSON and text on standard output; progress and warnings on standard error,
progress only where that is a terminal.
"""

from __future__ import annotations

import contextlib
import json
import math
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import typer
from rich.console import Console

from maskdsl.errors import BindError


def say(text: str) -> None:
    """A result, on standard output."""
    typer.echo(text)


def say_json(data: Any) -> None:
    """A result as JSON; numbers that are not finite become null."""
    typer.echo(json.dumps(plain(data), indent=2, allow_nan=False))


def note(text: str) -> None:
    """What is not the result, on standard error."""
    typer.echo(text, err=True)


def plain(value: Any) -> Any:
    """Only what JSON has."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, (Sequence, set, frozenset)):
        return [plain(v) for v in value]
    return str(value)


@contextlib.contextmanager
def working(what: str) -> Iterator[None]:
    """Says on a terminal what takes a while."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield
        return
    with console.status(what):
        yield


@contextlib.contextmanager
def drawing(out: Path) -> Iterator[None]:
    """Around what saves a picture; says where it is. Raises BindError where it cannot be saved."""
    try:
        with working("drawing"):
            yield
    except BindError:
        raise
    except OSError as e:
        raise BindError(f"{out}: cannot be written: {e.strerror or e}") from None
    except ValueError as e:  # such as a suffix that no picture format has
        raise BindError(f"{out}: {str(e).splitlines()[0]}") from None
    note(f"saved {out}")


def save(path: Path, content: str | bytes) -> None:
    """Write a file, its folder too. Raises BindError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, str):
            path.write_text(content, encoding="utf-8", newline="\n")
        else:
            path.write_bytes(content)
    except OSError as e:
        raise BindError(f"{path}: cannot be written: {e.strerror or e}") from None


def short_warnings() -> None:
    """Warnings are one line each, without a place in the code."""

    def show(message: Any, category: type[Warning], *_: Any, **__: Any) -> None:
        if issubclass(category, (UserWarning, RuntimeWarning)):
            first = (str(message).strip().splitlines() or [""])[0]
            print(f"maskdsl: warning: {first}", file=sys.stderr)

    warnings.showwarning = show
