"""Commands on this machine: cache, calibrate."""

from __future__ import annotations

import datetime
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from maskdsl.cli.app import KERNELS, SPEED, AsJson, app
from maskdsl.cli.output import note, say, say_json, working

cache = typer.Typer(
    help="What is kept of emitted kernels and measured settings, and where.", no_args_is_help=True
)
app.add_typer(cache, name="cache", rich_help_panel=KERNELS)


@cache.command("path")
def path(as_json: AsJson = False) -> None:
    """Print the directory (MASKDSL_CACHE_DIR sets it).

    \b
    maskdsl cache path
    """
    from maskdsl.runtime.cache_entries import cache_directory

    where = str(cache_directory())
    if as_json:
        say_json({"path": where})
    else:
        say(where)


@cache.command("ls")
def ls(as_json: AsJson = False) -> None:
    """List entries, the most recently used first.

    \b
    maskdsl cache ls
    """
    from maskdsl.runtime.cache_listing import entries

    found = entries()
    if as_json:
        say_json([asdict(e) for e in found])
        return
    for e in found:
        used = datetime.datetime.fromtimestamp(e.used).strftime("%Y-%m-%d %H:%M")
        say(f"{used}  {e.bytes / 1024:7.1f} KiB  {e.kind:7}  {e.key}")
    total = sum(e.bytes for e in found)
    note(f"{len(found)} entries, {total / 2**20:.1f} MiB")


@cache.command("verify")
def verify(as_json: AsJson = False) -> None:
    """Read every entry and hold it against its digest; exit 1 if one does not count.

    \b
    maskdsl cache verify
    """
    from maskdsl.runtime.cache_listing import verify as verified

    with working("reading"):
        found = verified()
    faults = [e for e in found if e.fault]
    if as_json:
        say_json([asdict(e) for e in found])
    else:
        for e in faults:
            say(f"{e.key}: {e.fault}")
        note(f"{len(found) - len(faults)} of {len(found)} entries count")
    raise typer.Exit(1 if faults else 0)


@cache.command("clear")
def clear(as_json: AsJson = False) -> None:
    """Remove all entries.

    \b
    maskdsl cache clear
    """
    from maskdsl.runtime.cache_listing import clear as cleared

    with working("removing"):
        done = cleared()
    if as_json:
        say_json(asdict(done))
        return
    kept = f"; {done.kept} in use are kept" if done.kept else ""
    note(f"removed {done.keys} entries, {done.bytes / 2**20:.1f} MiB{kept}")


@app.command(rich_help_panel=SPEED)
def calibrate(
    out: Annotated[Path, typer.Argument(metavar="FILE", help="The device file, ending in .toml.")],
    name: Annotated[str | None, typer.Option(help="Of the device (default the GPU's).")] = None,
    as_json: AsJson = False,
) -> None:
    """Measure the rates of the GPU at hand, for predictions with --device FILE.

    \b
    maskdsl calibrate mine.toml
    maskdsl simulate std/causal n=65536 --device mine.toml
    """
    from maskdsl.runtime.calibrate import calibrate as measured

    with working("measuring the GPU: nothing else should run on it"):
        device = measured(out, name, report=(lambda line: None) if as_json else note)
    if as_json:
        figures = {k: v for k, v in vars(device).items() if k != "sources"}
        say_json({"saved": str(out), **figures})
    else:
        note(f"wrote {out}: maskdsl simulate SPEC --device {out}")
