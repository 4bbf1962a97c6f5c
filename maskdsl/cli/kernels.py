"""Commands on kernels: compile, emit, bench."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from maskdsl import __version__
from maskdsl.cli.app import (
    KERNELS,
    SPEED,
    AsJson,
    Batch,
    Dtype,
    HeadDim,
    KvTile,
    Name,
    QTile,
    Spec,
    Target,
    Values,
    app,
)
from maskdsl.cli.output import note, save, say, say_json, working
from maskdsl.cli.values import bind, given, parse_tile, torch_dtype
from maskdsl.errors import BindError

if TYPE_CHECKING:
    from maskdsl.runtime.resources import Resources

ValueDim = Annotated[int | None, typer.Option(help="Elements of a value (default head_dim).")]
RIVALS = ("dense", "masked", "flex")
Precision = Annotated[str, typer.Option(help="Of fp32 products: ieee or tf32.")]


def _kernel(
    spec: str, name: str | None, values: list[str] | None, dtype: str, q_tile: str | None,
    kv_tile: str | None, **options: Any,
) -> Any:  # fmt: skip
    """What `compile` makes of a command line."""
    from maskdsl.runtime.compile import compile as compile_mask

    mask = bind(spec, name, values)
    tiles: dict[str, Any] = {"q_tile": parse_tile(q_tile), "kv_tile": parse_tile(kv_tile)}
    return compile_mask(mask, dtype=torch_dtype(dtype), **tiles, **options)


@app.command(rich_help_panel=KERNELS)
def compile(  # noqa: A001 (the command's name)
    spec: Spec,
    values: Values = None,
    name: Name = None,
    head_dim: HeadDim = 128,
    value_dim: ValueDim = None,
    dtype: Dtype = "bf16",
    target: Target = None,
    q_tile: QTile = None,
    kv_tile: KvTile = None,
    precision: Precision = "ieee",
    template: Annotated[str, typer.Option(help="Of the forward kernel: plain or overlap.")] = (
        "plain"
    ),
    resources: Annotated[
        bool, typer.Option(help="Compile to machine code, and say what it takes.")
    ] = True,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Save the source: a .py file of the forward kernel, or a "
                     "folder of all three."),
    ] = None,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Emit and compile the kernels of a mask, ahead of time: no GPU is needed.

    \b
    maskdsl compile std/radial t=30 s=3840 heads=24 --target sm_90 -o kernels/
    maskdsl compile std/causal n=16384 --head-dim 64 --json
    """
    kernel = _kernel(
        spec, name, values, dtype, q_tile, kv_tile, head_dim=head_dim, value_dim=value_dim,
        backend="triton", target=target, precision=precision, template=template,
    )  # fmt: skip
    with working("emitting"):
        sources = kernel.sources
    on = kernel.key.split("-")[-2]  # the target: name-shape-dtype-target-digest
    saved = [] if out is None else _save(sources, out)
    found: dict[str, Resources] = {}
    if resources:
        with working(f"compiling for {on}"):
            found = {d: kernel.resources(direction=d) for d in ("forward", "backward")}
    if as_json:
        say_json({
            "key": kernel.key,
            "target": on,
            "plan": kernel.plan.explain().splitlines(),
            "resources": {d: asdict(r) for d, r in found.items()},
            "sources": sources if out is None else {},
            "saved": saved,
        })  # fmt: skip
        return
    say(kernel.key)
    say(kernel.plan.explain())
    for direction, r in found.items():
        spilled = f"{r.spills} bytes spilled" if r.spills else "nothing spilled"
        say(f"{direction} on {on}: {r.registers} registers a thread, {spilled}, "
            f"{r.shared / 1024:.0f} KiB of shared memory")  # fmt: skip
        common = sorted(r.instructions.items(), key=lambda x: -x[1])[:6]
        say("  instructions: " + ", ".join(f"{n} {op}" for op, n in common))


def _save(sources: dict[str, str], out: Path) -> list[str]:
    """The files written."""
    texts = {out: sources["forward"]}
    if out.suffix != ".py":
        texts = {out / f"{name}.py": source for name, source in sources.items()}
    for path, source in texts.items():
        save(path, source)
        note(f"saved {path}")
    return [str(path) for path in texts]


@app.command(rich_help_panel=KERNELS)
def emit(
    spec: Spec,
    values: Values = None,
    name: Name = None,
    head_dim: HeadDim = 128,
    value_dim: ValueDim = None,
    dtype: Dtype = "bf16",
    target: Target = None,
    scale: Annotated[
        float | None, typer.Option(help="Of the products (default head_dim ** -0.5).")
    ] = None,
    q_tile: QTile = None,
    kv_tile: KvTile = None,
    precision: Precision = "ieee",
    descriptors: Annotated[
        bool, typer.Option(help="Load tiles by tensor descriptors where the target has them.")
    ] = True,
    input_gradients: Annotated[
        bool, typer.Option(help="Give gradients of float inputs, such as ALiBi's slopes.")
    ] = True,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The file (default: standard output).")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write a mask's kernels as one Python file that needs torch and triton alone.

    It holds a differentiable `attention`, and a self-test that `python FILE` runs (on a CPU with
    TRITON_INTERPRET=1).

    \b
    maskdsl emit std/radial t=30 s=3840 heads=24 --head-dim 128 -o radial_attention.py
    """
    from maskdsl.integrations.standalone import standalone

    mask = bind(spec, name, values)
    with working("emitting"):
        text = standalone(
            mask, head_dim, torch_dtype(dtype), version=__version__, value_dim=value_dim,
            target=target, scale=scale, q_tile=parse_tile(q_tile), kv_tile=parse_tile(kv_tile),
            precision=precision, descriptors=descriptors, input_gradients=input_gradients,
        )  # fmt: skip
    if out is not None:
        save(out, text)
    if as_json:
        saved = None if out is None else str(out)
        say_json({"saved": saved, "bytes": len(text), "source": text if out is None else None})
    elif out is None:
        typer.echo(text, nl=False)
    else:
        note(f"wrote {out} ({len(text):,} bytes); next: TRITON_INTERPRET=1 python {out}")


@app.command(rich_help_panel=SPEED)
def bench(
    spec: Spec,
    values: Values = None,
    name: Name = None,
    head_dim: HeadDim = 128,
    batch: Batch = 1,
    dtype: Annotated[
        str | None, typer.Option(help="bf16, fp16 or fp32 (default bf16 on a GPU, else fp32).")
    ] = None,
    direction: Annotated[str, typer.Option(help="forward, backward or both.")] = "forward",
    against: Annotated[
        list[str] | None,
        typer.Option(help=f"Also measure, once for each: {', '.join(RIVALS)}."),
    ] = None,
    backend: Annotated[str, typer.Option(help="auto, triton, torch or reference.")] = "auto",
    q_tile: QTile = None,
    kv_tile: KvTile = None,
    tune: Annotated[
        bool, typer.Option("--tune", help="Measure launch settings first (triton).")
    ] = False,
    inputs: Annotated[
        list[str] | None,
        typer.Option("--input", help="An input, NAME=VALUE or NAME=@file.npy (default: made up)."),
    ] = None,
    warmup: Annotated[int, typer.Option(min=0, help="Calls before any is timed.")] = 2,
    repeats: Annotated[int, typer.Option(min=1, help="Timed calls; the median counts.")] = 10,
    seconds: Annotated[float, typer.Option(help="Stop repeating after so long.")] = 20.0,
    as_json: AsJson = False,
) -> None:
    """Measure a mask on the machine at hand: the kernel, and what else is asked for.

    \b
    maskdsl bench std/natten2d y=64 x=64 "window=\\[7,7]" "stride=\\[1,1]" "dilation=\\[1,1]" \\
        "causal=\\[false,false]" heads=4 --head-dim 64 --against dense
    maskdsl bench std/causal n=8192 heads=8 --direction both --against dense --against flex --json
    """
    from maskdsl.cli.measure import Setting, measure, table

    setting = Setting(
        mask=bind(spec, name, values),
        head_dim=head_dim,
        batch=batch,
        dtype=None if dtype is None else torch_dtype(dtype),
        direction=direction,
        backend=backend,
        tiles=(parse_tile(q_tile), parse_tile(kv_tile)),
        tune=tune,
        inputs=given(inputs),
        warmup=warmup,
        repeats=repeats,
        seconds=seconds,
    )
    rivals = list(dict.fromkeys(against or []))
    unknown = [r for r in rivals if r not in RIVALS]
    if unknown:
        raise BindError(f"--against is one of {', '.join(RIVALS)}, not '{unknown[0]}'")
    with working("measuring"):
        found = measure(setting, rivals)
    if as_json:
        say_json(found)
        return
    say(table(found))
