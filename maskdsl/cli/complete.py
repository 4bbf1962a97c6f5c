"""What a shell offers when a word is half typed. Never raises."""

from __future__ import annotations

from pathlib import Path

import typer

from maskdsl.errors import MaskError
from maskdsl.language.library import STD, read
from maskdsl.language.parse import parse_text
from maskdsl.simulator import device_names


def specs(incomplete: str) -> list[str]:
    """Names of the library, and .mask files."""
    found = [f"std/{p.stem}" for p in sorted(STD.glob("*.mask")) if p.stem != "functions"]
    folder = Path(incomplete).parent
    try:
        files = sorted(folder.glob("*.mask")) if not incomplete.startswith("std/") else []
    except OSError:
        files = []
    return [x for x in [*map(str, files), *found] if x.startswith(incomplete)]


def bindings(ctx: typer.Context, incomplete: str) -> list[str]:
    """`NAME=` for the axes and parameters of the spec that are not given yet."""
    spec = ctx.params.get("spec")
    if not isinstance(spec, str) or "=" in incomplete:
        return []
    try:
        source = read(spec)
        patterns = parse_text(source.text, source.name).patterns
    except MaskError:
        return []
    wanted = ctx.params.get("name")
    chosen = [p for p in patterns if wanted in (None, p.name)][-1:]
    taken = {str(v).partition("=")[0] for v in ctx.params.get("values") or []}
    names = ["heads", "kv_heads"]
    for p in chosen:
        segments = (*p.queries, *(p.keys or ()))
        names = [*(a for s in segments for a in s.axes), *(x.name for x in p.params), *names]
    return [f"{n}=" for n in dict.fromkeys(names) if n not in taken and n.startswith(incomplete)]


def devices(incomplete: str) -> list[str]:
    """Names of the devices that come with MaskDSL."""
    return [d for d in device_names() if d.startswith(incomplete)]
