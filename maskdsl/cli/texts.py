"""Commands on texts: check, fmt, new."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from maskdsl.cli.app import TEXTS, AsJson, app
from maskdsl.cli.complete import specs
from maskdsl.cli.output import note, save, say, say_json
from maskdsl.errors import BindError, ParseError
from maskdsl.language import syntax
from maskdsl.language.format import format_text, print_expr, print_signature
from maskdsl.language.library import read
from maskdsl.language.parse import MAX_TEXT, parse_text
from maskdsl.pattern import load


@app.command(rich_help_panel=TEXTS)
def check(
    specs: Annotated[
        list[str],
        typer.Argument(
            metavar="SPEC...", help=".mask files, or std/NAME of the library.", autocompletion=specs
        ),
    ],
    name: Annotated[
        str | None, typer.Option("--name", help="Which pattern to print (default all).")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check files, and print what their patterns take: parameters, axes and inputs.

    \b
    maskdsl check std/radial
    maskdsl check patterns/*.mask
    """
    found: list[syntax.PatternDef] = []
    for spec in specs:
        file = parse_text(load(spec, name).source, spec)
        found += [p for p in file.patterns if name in (None, p.name)]
    if as_json:
        say_json([_signature(p) for p in found])
    else:
        typer.echo("\n".join(map(print_signature, found)), nl=False)


def _signature(p: syntax.PatternDef) -> dict[str, Any]:
    def type_of(base: str, dims: tuple[syntax.Expr | None, ...]) -> str:
        text = ", ".join("_" if d is None else print_expr(d) for d in dims)
        return f"{base}[{text}]" if dims else base

    segments = (*p.queries, *(p.keys or ()))
    inputs = [c for c in p.clauses if isinstance(c, syntax.Input)]
    return {
        "name": p.name,
        "axes": list(dict.fromkeys(a for s in segments for a in s.axes)),
        "params": [
            {
                "name": x.name,
                "type": type_of(x.type.base, x.type.dims),
                "default": None if x.default is None else print_expr(x.default),
            }
            for x in p.params
        ],
        "inputs": [{"name": x.name, "type": type_of(x.type, x.dims)} for x in inputs],
    }


@app.command(rich_help_panel=TEXTS)
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

    \b
    maskdsl fmt my.mask
    maskdsl fmt --check patterns/*.mask
    maskdsl fmt - < my.mask
    """
    texts = {file: _read(file) for file in files}
    formatted = {file: format_text(text, file) for file, text in texts.items()}
    changed = [file for file, text in texts.items() if formatted[file] != text]
    if only_check:
        for file in changed:
            say(file)
        raise typer.Exit(1 if changed else 0)
    if "-" in formatted:
        typer.echo(formatted["-"], nl=False)
    for file in changed:
        if file != "-":
            save(Path(file), formatted[file])


def _read(file: str) -> str:
    """The text of a file or of standard input; unlike `read`, never a library entry."""
    if file != "-":
        return read(file if Path(file).exists() else Path(file).absolute()).text
    try:
        stream = typer.get_text_stream("stdin", encoding="utf-8", errors="strict")
        return stream.read(MAX_TEXT + 1)  # enough to be found too long
    except UnicodeDecodeError as e:
        raise ParseError(f"-: not UTF-8 text (byte {e.start})") from None


OVER = {
    "text": (
        "n",
        "window: int = 256, sinks: int = 4",
        """# q.n and k.n are positions: distance counts back from the query.
let distance = q.n - k.n

# keep clauses are joined by `or`: a pair is kept if one of them holds.
keep 0 <= distance < window                  # the last `window` keys, the query's own included
keep k.n < sinks and k.n <= q.n              # and the first few, for everyone after them

# Scores may be changed as well: `logit` is the scaled product of query and key.
# score logit - 0.01 * distance
""",
        "n=4096",
    ),
    "image": (
        "y, x",
        "window: int = 7",
        """# y.size and x.size are the extents, q.y the row of the query, k.x the column of the key.
# `neighborhood` is of the library: the `window` keys nearest to the query, also at the edges.
keep neighborhood(y, window) and neighborhood(x, window)

# Further keep clauses add pairs. This one lets everyone see the first row:
# keep k.y == 0
""",
        "y=64 x=64",
    ),
    "video": (
        "t, h, w",
        "frames: int = 2, window: int = 8",
        """let gap = abs(q.t - k.t)                     # frames apart

# Near frames see a neighborhood of each other, the first frame is seen by all.
keep gap <= frames and near(h, window) and near(w, window)
keep k.t == 0

# Numbers may depend on anything: fewer keys the further frames are apart.
# keep near(h, window // (1 + gap)) and near(w, window // (1 + gap))
""",
        "t=8 h=16 w=16",
    ),
}
STARTING = """# {title}
#
#   maskdsl check {file}
#   maskdsl show {file} {extents}
#   maskdsl simulate {file} {extents} --device h100
#
# `over` names the axes of the token grid, the last one fastest. Queries and keys share them.
pattern {name}({params})
over ({axes})
{body}"""


@app.command(rich_help_panel=TEXTS)
def new(
    file: Annotated[
        Path, typer.Argument(metavar="NAME", help="The new pattern; its file is NAME.mask.")
    ],
    over: Annotated[str, typer.Option(help=f"What it is about: {', '.join(OVER)}.")] = "text",
    force: Annotated[bool, typer.Option("--force", help="Write over a file that exists.")] = False,
) -> None:
    """Write a commented pattern to start from.

    \b
    maskdsl new mine
    maskdsl new patterns/denoiser --over video
    """
    if over not in OVER:
        raise BindError(f"--over is one of {', '.join(OVER)}, not '{over}'")
    if not file.name:
        raise BindError(f"'{file}' is not the name of a pattern")
    path = file if file.suffix == ".mask" else file.with_name(file.name + ".mask")
    if path.exists() and not force:
        raise BindError(f"{path} exists already (--force writes over it)")
    axes, params, body, extents = OVER[over]
    text = STARTING.format(
        title=f"What each query of {path.stem} sees.", file=path, name=path.stem, params=params,
        axes=axes, body=body, extents=extents,
    )  # fmt: skip
    try:
        parse_text(text, str(path))
    except ParseError:
        raise BindError(f"'{path.stem}' cannot be the name of a pattern") from None
    save(path, format_text(text, str(path)))
    note(f"wrote {path}; next: maskdsl show {path} {extents}")
