"""Commands that predict: simulate, sweep."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from maskdsl.cli.app import (
    SPEED,
    AsJson,
    Batch,
    DeviceName,
    Dtype,
    HeadDim,
    KvTile,
    Name,
    QTile,
    Spec,
    Values,
    app,
)
from maskdsl.cli.complete import devices
from maskdsl.cli.output import drawing, say, say_json, working
from maskdsl.cli.values import alternatives, bind, given, parse_tile, planned
from maskdsl.pattern import load
from maskdsl.simulator import Prediction, plots
from maskdsl.simulator import simulate as predict
from maskdsl.simulator import sweep as predict_all

Direction = Annotated[str, typer.Option(help="forward or backward.")]
Picture = Annotated[Path | None, typer.Option("--out", "-o", help="Save a PNG here.")]


@app.command(rich_help_panel=SPEED)
def simulate(
    spec: Spec,
    values: Values = None,
    name: Name = None,
    device: DeviceName = "h200",
    head_dim: HeadDim = 128,
    heads: Annotated[int | None, typer.Option(help="Heads that share the pattern.")] = None,
    batch: Batch = 1,
    dtype: Dtype = "bf16",
    direction: Direction = "forward",
    queries: Annotated[
        int | None, typer.Option(help="Only the last so many queries (decoding).")
    ] = None,
    q_tile: QTile = None,
    kv_tile: KvTile = None,
    out: Picture = None,
    as_json: AsJson = False,
) -> None:
    """Predict time and speedup on a named device, without having it.

    \b
    maskdsl simulate std/sliding_window n=65536 window=4096 --device h100
    maskdsl simulate std/radial t=30 s=3840 --heads 24 --direction backward --json
    """
    mask = bind(spec, name, values)
    tiled = q_tile is not None or kv_tile is not None
    with working(f"predicting for {device}"):
        p = predict(
            planned(mask, q_tile, kv_tile) if tiled else mask,
            head_dim=head_dim,
            batch=batch,
            heads=heads,
            dtype=dtype,
            device=device,
            direction=direction,
            queries=queries,
        )
    _draw([p], out)
    if as_json:
        say_json(p.to_dict())
    else:
        say(p.table())


@app.command(rich_help_panel=SPEED)
def sweep(
    spec: Spec,
    values: Values = None,
    name: Name = None,
    device: Annotated[
        list[str] | None,
        typer.Option(help="A device, once for each (default h200).", autocompletion=devices),
    ] = None,
    tile: Annotated[
        list[str] | None,
        typer.Option(help="Tiles of queries and keys, once for each choice: 128:64, 4x8x4:4x8x4."),
    ] = None,
    head_dim: Annotated[str, typer.Option(help="Elements of a query.")] = "128",
    batch: Annotated[str, typer.Option(help="Batch entries.")] = "1",
    dtype: Annotated[str, typer.Option(help="bf16, fp16, fp32.")] = "bf16",
    direction: Annotated[str, typer.Option(help="forward, backward.")] = "forward",
    least_speedup: Annotated[
        float | None,
        typer.Option(help="Only what is so much faster than dense, most pairs first."),
    ] = None,
    top: Annotated[int | None, typer.Option(min=1, help="Print only the best so many.")] = None,
    out: Picture = None,
    as_json: AsJson = False,
) -> None:
    """Predict every combination of devices, tiles and values with commas between them; best first.

    \b
    maskdsl sweep std/sliding_window n=65536 window=1024,4096 --device h100 --device b200
    maskdsl sweep std/natten2d y=128 x=128 "window=\\[7,7],\\[13,13]" "stride=\\[1,1],\\[4,4]" \\
        "dilation=\\[1,1]" "causal=\\[false,false]" --tile 8x8:8x8 --tile 16x8:8x8
    maskdsl sweep std/sliding_window n=65536 window=512,1024,2048,4096 --least-speedup 8
    """
    pattern = load(spec, name)
    choices = {n: alternatives(text, n) for n, text in _texts(values).items()}
    choices |= {n: alternatives(x, n) for n, x in (("head_dim", head_dim), ("batch", batch))}
    choices |= {"dtype": dtype.split(","), "direction": direction.split(",")}
    with working("predicting"):
        found = predict_all(
            pattern,
            devices=device or ["h200"],
            tiles=None if not tile else [_pair(text) for text in tile],
            least_speedup=least_speedup,
            **choices,
        )
    shown = found if top is None else replace(found, predictions=found[:top])
    _draw(list(shown[:8]), out)
    if as_json:
        say_json(shown.to_dict())
    else:
        say(shown.table())


def _texts(values: list[str] | None) -> dict[str, str]:
    """The texts of `NAME=VALUE` arguments by name, checked for their form."""
    given([f"{v.partition('=')[0]}=0" if "=" in v else v for v in values or []])
    return {n: text for n, _, text in (v.partition("=") for v in values or [])}


def _pair(text: str) -> tuple[Any, Any]:
    q, _, kv = text.partition(":")
    return parse_tile(q), parse_tile(kv or q)


def _draw(predictions: list[Prediction], out: Path | None) -> None:
    if out is None or not predictions:
        return
    with drawing(out):
        plots.draw(predictions, out)
