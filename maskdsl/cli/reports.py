"""The command `report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from maskdsl import __version__
from maskdsl.cli.app import (
    PLANS,
    AsJson,
    Batch,
    DeviceName,
    Dtype,
    HeadDim,
    Name,
    Spec,
    Values,
    app,
)
from maskdsl.cli.output import note, save, say_json, working
from maskdsl.cli.values import alternatives, bind, given, torch_dtype
from maskdsl.errors import BindError


@app.command(rich_help_panel=PLANS)
def report(
    spec: Spec,
    values: Values = None,
    name: Name = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="The page.")] = Path("report.html"),
    device: DeviceName = "h200",
    head_dim: HeadDim = 128,
    heads: Annotated[
        int | None, typer.Option(help="Heads that share the pattern, in predictions.")
    ] = None,
    batch: Batch = 1,
    dtype: Dtype = "bf16",
    vary: Annotated[
        str | None,
        typer.Option(help="A parameter and values to predict: window=512,1024 (default a stride)."),
    ] = None,
    inputs: Annotated[
        list[str] | None,
        typer.Option("--input", help="An input to show the mask under: NAME=@file.npy."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write one HTML page about a mask: pattern, zoomable picture, tiles, predictions, kernel.

    \b
    maskdsl report std/sliding_tile t=30 h=48 w=80 -o report.html
    maskdsl report std/sliding_window n=65536 --vary window=1024,4096 --device b200
    """
    from maskdsl.report import report as make

    mask = bind(spec, name, values)
    chosen = None
    if vary is not None:
        parameter, equals, text = vary.partition("=")
        if not equals:
            raise BindError(f"--vary is of the form NAME=VALUE,VALUE, not '{vary[:60]}'")
        chosen = parameter, alternatives(text, parameter)
    with working("planning, predicting and drawing"):
        page = make(
            mask, version=__version__, head_dim=head_dim, batch=batch, heads=heads,
            dtype=torch_dtype(dtype), device=device, vary=chosen, inputs=given(inputs),
        )  # fmt: skip
    save(out, page.html)
    if as_json:
        say_json({"saved": str(out), "bytes": len(page.html.encode()), "notes": page.notes})
        return
    for line in page.notes:
        note(f"note: {line}")
    note(f"wrote {out} ({len(page.html.encode()):,} bytes)")
