"""The application that commands are added to, and the options that they share."""

from __future__ import annotations

from typing import Annotated

import typer

from maskdsl.cli.complete import bindings, devices, specs

app = typer.Typer(
    name="maskdsl",
    help="A compiler for attention patterns: a line of text to an exact plan, a predicted speed "
    "and a Triton kernel.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)

# The groups of commands in the help, in order.
PANELS = ("Patterns", "Masks and plans", "Speed, predicted and measured", "Kernels")
TEXTS, PLANS, SPEED, KERNELS = PANELS

Spec = Annotated[
    str,
    typer.Argument(
        metavar="SPEC", help="A .mask file, or std/NAME of the library.", autocompletion=specs
    ),
]
Values = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[NAME=VALUE]...",
        help="Extents, parameters, heads, kv_heads: n=4096 'window=\\[7,7]' table=@file.npy",
        autocompletion=bindings,
    ),
]
Name = Annotated[
    str | None, typer.Option("--name", help="Which pattern of the file (default its last).")
]
QTile = Annotated[
    str | None,
    typer.Option(help="Tile of queries: sizes per axis, 4x8x8; of several segments 4x8,64."),
]
KvTile = Annotated[str | None, typer.Option(help="Tile of keys, written alike.")]
HeadDim = Annotated[int, typer.Option(help="Elements of a query and a key.")]
Batch = Annotated[int, typer.Option(help="Batch entries.")]
Dtype = Annotated[str, typer.Option(help="bf16, fp16 or fp32.")]
DeviceName = Annotated[
    str,
    typer.Option(help="A device's name, or a .toml file of one.", autocompletion=devices),
]
Target = Annotated[
    str | None,
    typer.Option(help="What Triton compiles for: sm_80, sm_90, sm_100, gfx942 (default the GPU)."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else.")]
