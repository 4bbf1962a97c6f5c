"""Commands on masks: show, plan."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from maskdsl import pictures
from maskdsl.cli.app import PLANS, AsJson, KvTile, Name, QTile, Spec, Values, app
from maskdsl.cli.output import drawing, say, say_json, working
from maskdsl.cli.values import bind, planned
from maskdsl.errors import BindError
from maskdsl.pattern import Mask
from maskdsl.planner import Cost, Plan, work
from maskdsl.simulator import device_for, layout_cost

Head = Annotated[int, typer.Option(help="Which head.")]
Query = Annotated[int | None, typer.Option(help="Whose keys to draw (default the middle).")]
Picture = Annotated[Path | None, typer.Option("--out", "-o", help="Save a PNG here.")]
CELLS = 64  # of a side, in the terminal


@app.command(rich_help_panel=PLANS)
def show(
    spec: Spec,
    values: Values = None,
    name: Name = None,
    q_tile: QTile = None,
    kv_tile: KvTile = None,
    head: Head = 0,
    query: Query = None,
    out: Picture = None,
    as_json: AsJson = False,
) -> None:
    """Show a mask and its tile kinds, in the terminal or as a PNG.

    \b
    maskdsl show std/sliding_window n=256 window=64 --q-tile 16 --kv-tile 16
    maskdsl show std/natten2d y=32 x=32 "window=\\[7,7]" "stride=\\[1,1]" \\
        "dilation=\\[1,1]" "causal=\\[false,false]" -o mask.png
    """
    mask = bind(spec, name, values)
    with working("planning"):
        plan = planned(mask, q_tile, kv_tile)
    if out is not None:
        _draw(mask, plan, out, head, query)
    if as_json:
        kinds = pictures.tile_kinds(plan, head, CELLS)
        cells = ["".join(".+#"[k] for k in row) for row in kinds]
        say_json({**facts(mask, plan), "head": head, "cells": cells})
        return
    if out is None:
        say(pictures.terminal(plan, head, CELLS))
        say("## full   ++ partial   .. empty")
    say(plan.explain())


@app.command(rich_help_panel=PLANS)
def plan(
    spec: Spec,
    values: Values = None,
    name: Name = None,
    q_tile: QTile = None,
    kv_tile: KvTile = None,
    target: Annotated[
        str | None, typer.Option(help="Tiles as kernels for it have them, such as sm_90.")
    ] = None,
    head_dim: Annotated[int, typer.Option(help="Elements of a query, with --target.")] = 128,
    head: Head = 0,
    query: Query = None,
    out: Picture = None,
    as_json: AsJson = False,
) -> None:
    """Which tiles are visited, what was proved of them, and why these tiles.

    \b
    maskdsl plan std/radial t=30 s=3840 heads=24 --target sm_90
    maskdsl plan std/causal n=65536 --q-tile 128 --kv-tile 64 --json
    """
    mask = bind(spec, name, values)
    with working("planning"):
        if target is not None and q_tile is None and kv_tile is None:
            found = mask.plan(target=target, head_dim=head_dim, cost=_cost(target, head_dim))
        else:
            found = planned(mask, q_tile, kv_tile)
    if out is not None:
        _draw(mask, found, out, head, query)
    if as_json:
        say_json(facts(mask, found))
    else:
        say(found.explain())


def _cost(target: str, head_dim: int) -> Cost:
    """What `compile` chooses tiles by."""
    try:
        return layout_cost(device_for(target), head_dim, "bf16")
    except BindError:  # there is no such device among those that predictions know
        return work


def _draw(mask: Mask, plan: Plan, out: Path, head: int, query: int | None) -> None:
    with drawing(out):
        pictures.draw(mask, plan, out, head, query)


def facts(mask: Mask, plan: Plan) -> dict[str, Any]:
    """A mask and its plan in plain data."""
    heads, queries, keys = mask.shape
    tiles = plan.tiles
    classes = []
    for c in plan.head_classes:
        one: dict[str, Any] = {"heads": list(c.heads)}
        if c.few_runs:
            full, partial = c.runs.counts()
            work = full + partial
            one |= {"fewest": int(work.min()), "most": int(work.max()), "mean": float(work.mean())}
        classes.append(one)
    return {
        "pattern": mask.pattern.name,
        "heads": heads,
        "kv_heads": mask.kv_heads,
        "queries": queries,
        "keys": keys,
        "pairs": plan.pairs,
        "density": None if plan.pairs is None else plan.pairs / (heads * queries * keys),
        "q_tiles": [str(g.tile) for g in plan.q_grids],
        "kv_tiles": [str(g.tile) for g in plan.kv_grids],
        "tiles": {"empty": tiles.empty, "full": tiles.full, "partial": tiles.partial},
        "visited": plan.density,
        "rows": classes,
        "proved": [name for name, holds in plan.proofs.items() if holds],
        "explained": plan.explain().splitlines(),
    }
