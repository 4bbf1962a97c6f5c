"""The command line."""

from __future__ import annotations

import ast
import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from maskdsl import pictures
from maskdsl.errors import BindError, MaskError, ParseError
from maskdsl.language.format import format_text, print_signature
from maskdsl.language.library import read
from maskdsl.language.parse import MAX_TEXT, parse_text
from maskdsl.pattern import Mask, load
from maskdsl.planner import Plan
from maskdsl.simulator import simulate as predict

app = typer.Typer(
    name="maskdsl",
    help="A compiler for attention patterns.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
)

Spec = Annotated[str, typer.Argument(help="A .mask file, or std/NAME from the library.")]
Values = Annotated[
    list[str] | None,
    typer.Argument(metavar="[NAME=VALUE]...", help="Extents and parameters: n=4096 window=256"),
]
Name = Annotated[
    str | None, typer.Option("--name", help="Which pattern of the file (default its last).")
]
TileText = Annotated[str | None, typer.Option(help="Sizes per axis, such as 4x8x8.")]


def bind(spec: str, name: str | None, values: list[str] | None) -> Mask:
    """The mask a command line describes. Raises MaskError."""
    given: dict[str, Any] = {}
    for text in values or []:
        key, equals, value = text.partition("=")
        if not equals or not key.isidentifier():
            raise BindError(f"'{text}' is not of the form NAME=VALUE")
        given[key] = parse_value(value, key)
    return load(spec, name).bind(**given)


def parse_value(text: str, name: str) -> Any:
    """`3`, `0.5`, `true`, `[3, 5]` as Python values."""
    if text in ("true", "false"):
        return text == "true"
    try:
        return ast.literal_eval(text.replace("true", "True").replace("false", "False"))
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        raise BindError(
            f"{name}: '{text[:60]}' is not a number, true, false or a list of them"
        ) from None


def parse_tile(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    try:
        return tuple(int(part) for part in text.split("x"))
    except ValueError:
        raise BindError(
            f"a tile is written as sizes per axis, such as 4x8x8, not '{text}'"
        ) from None


def _plan(mask: Mask, q_tile: str | None, kv_tile: str | None) -> Plan:
    return mask.plan(parse_tile(q_tile), parse_tile(kv_tile))


@app.command()
def check(
    spec: Spec,
    name: Annotated[
        str | None, typer.Option("--name", help="Which pattern to print (default all).")
    ] = None,
) -> None:
    """Check a file, and print what its patterns take: parameters, axes and inputs.

    maskdsl check std/radial
    """
    file = parse_text(load(spec, name).source, spec)
    chosen = [p for p in file.patterns if name in (None, p.name)]
    typer.echo("\n".join(map(print_signature, chosen)), nl=False)


@app.command()
def fmt(
    files: Annotated[
        list[str],
        typer.Argument(metavar="FILE...", help=".mask files; - is standard input, to output."),
    ],
    only_check: Annotated[
        bool, typer.Option("--check", help="List files that would change; exit 1 if any.")
    ] = False,
) -> None:
    """Rewrite files in the canonical form; none is touched where one of them does not parse.

    maskdsl fmt my.mask
    """
    texts = {file: _read(file) for file in files}
    formatted = {file: format_text(text, file) for file, text in texts.items()}
    changed = [file for file, text in texts.items() if formatted[file] != text]
    if only_check:
        for file in changed:
            typer.echo(file)
        raise typer.Exit(1 if changed else 0)
    if "-" in formatted:
        typer.echo(formatted["-"], nl=False)
    for file in changed:
        if file != "-":
            try:
                Path(file).write_text(formatted[file], encoding="utf-8", newline="\n")
            except OSError as e:
                raise BindError(f"{file}: cannot be written: {e.strerror}") from None


def _read(file: str) -> str:
    """The text of a file or of standard input; unlike `read`, never a library entry."""
    if file != "-":
        return read(file if Path(file).exists() else Path(file).absolute()).text
    try:
        stream = typer.get_text_stream("stdin", encoding="utf-8", errors="strict")
        return stream.read(MAX_TEXT + 1)  # enough to be found too long
    except UnicodeDecodeError as e:
        raise ParseError(f"-: not UTF-8 text (byte {e.start})") from None


@app.command()
def show(
    spec: Spec,
    values: Values = None,
    name: Name = None,
    q_tile: TileText = None,
    kv_tile: TileText = None,
    head: Annotated[int, typer.Option(help="Which head.")] = 0,
    query: Annotated[
        int | None, typer.Option(help="Whose keys to draw (default the middle).")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Save a PNG here.")] = None,
) -> None:
    """Show a mask and its tile kinds, in the terminal or as a PNG.

    maskdsl show std/natten2d y=32 x=32 "window=[7,7]" "stride=[1,1]" "dilation=[1,1]"
    "causal=[false,false]" -o mask.png
    """
    mask = bind(spec, name, values)
    plan = _plan(mask, q_tile, kv_tile)
    if out is not None:
        pictures.draw(mask, plan, out, head, query)
        typer.echo(f"saved {out}")
    else:
        typer.echo(pictures.terminal(plan, head))
        typer.echo("## full   ++ partial   .. empty")
    typer.echo(plan.explain())


@app.command()
def simulate(
    spec: Spec,
    values: Values = None,
    name: Name = None,
    device: Annotated[str, typer.Option(help="A device's name, or a .toml file of one.")] = "h200",
    head_dim: Annotated[int, typer.Option(help="Elements of a query.")] = 128,
    heads: Annotated[int | None, typer.Option(help="Heads that share the pattern.")] = None,
    batch: int = 1,
    dtype: str = "bf16",
    direction: str = "forward",
    q_tile: TileText = None,
    kv_tile: TileText = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Predict time and speedup on a named device, without having it.

    maskdsl simulate std/sliding_window n=65536 window=4096 --device h100
    """
    mask = bind(spec, name, values)
    given = q_tile is not None or kv_tile is not None
    p = predict(
        _plan(mask, q_tile, kv_tile) if given else mask,
        head_dim=head_dim,
        batch=batch,
        heads=heads,
        dtype=dtype,
        device=device,
        direction=direction,
    )
    typer.echo(json.dumps(p.to_dict(), indent=2) if as_json else p.table())


def main() -> None:
    """Run the command line; errors are printed in one or three lines, exit code 1."""
    try:
        app()
    except MaskError as e:
        print(f"maskdsl: {e}", file=sys.stderr)
        sys.exit(1)
