"""The entry point: exit codes, and errors without tracebacks.

0: done. 1: something the user can mend, said in one line (with the place in the pattern's text
under it). 2: the command line itself is wrong. 130: interrupted.
"""

from __future__ import annotations

import contextlib
import os
import sys
from typing import Annotated

import typer

from maskdsl import __version__
from maskdsl.cli import kernels, plans, predictions, reports, texts, upkeep
from maskdsl.cli.app import PANELS, app
from maskdsl.cli.output import short_warnings
from maskdsl.errors import MaskError

__all__ = ["app", "kernels", "main", "plans", "predictions", "reports", "texts", "upkeep"]

app.registered_commands.sort(key=lambda c: PANELS.index(c.rich_help_panel))


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"maskdsl {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the version.", is_eager=True, callback=_version),
    ] = False,
) -> None:
    pass


def main(args: list[str] | None = None) -> None:
    """Run the command line, by default as the process was called. Raises SystemExit."""
    short_warnings()
    try:
        app(args, prog_name="maskdsl")
    except MaskError as e:
        _stop(f"maskdsl: {e}", 1)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        _hush()
        sys.exit(1)
    except MemoryError:
        _stop("maskdsl: there is not enough memory for this", 1)
    finally:
        try:
            sys.stdout.flush()
        except (BrokenPipeError, ValueError):
            _hush()


def _stop(text: str, code: int) -> None:
    print(text, file=sys.stderr)
    sys.exit(code)


def _hush() -> None:
    """The reader is gone: nothing more is written, not even when the process ends."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
