"""Predictions as tables of plain text."""

from __future__ import annotations

import io
import math
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from maskdsl.simulator.model import ModelPrediction
    from maskdsl.simulator.prediction import Prediction
    from maskdsl.simulator.sweep import Sweep

WIDTH = 100


def seconds_text(seconds: float) -> str:
    """`"12.3 us"`, `"4.56 ms"` or `"7.89 s"`: three digits, in the unit that suits."""
    for scale, unit in ((1.0, "s"), (1e-3, "ms")):
        if seconds >= scale:
            return f"{seconds / scale:.3g} {unit}"
    return f"{seconds / 1e-6:.3g} us"


def ratio_text(ratio: float) -> str:
    """`"3.27x"`; in words where the ratio is infinite or not known."""
    if math.isnan(ratio):
        return "an input decides"
    return "nothing to do" if math.isinf(ratio) else f"{ratio:.2f}x"


def prediction_table(prediction: Prediction) -> str:
    """The prediction as lines of at most `WIDTH` characters, without colours."""
    p = prediction
    by = "" if p.engine == "maskdsl" else f" by {p.engine}"
    title = f"{p.direction} attention on {p.device}{by}, {p.dtype}: predicted"
    table = Table(title=title, title_justify="left", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    heads = f"{p.heads} heads" if p.heads == p.kv_heads else f"{p.heads} on {p.kv_heads} heads"
    shape = f"{p.batch} x {heads}, {p.queries} x {p.keys} tokens, d={p.head_dim}"
    shape += f", {p.value_dim}" if p.value_dim != p.head_dim else ""
    table.add_row("shape", shape)
    table.add_row("lanes of a tile", f"{p.q_lanes} x {p.kv_lanes}")
    for kind in ("full", "partial", "empty"):
        count = p.tiles[kind]
        table.add_row(f"{kind} tiles", f"{count} of {p.tiles['total']}")
    for name, what in (("flops", "pairs"), ("tiles", "tiles"), ("rows", "the heaviest row")):
        table.add_row(f"bound by {what}", ratio_text(p.bounds[name]))
    table.add_row("dense time", seconds_text(p.dense_time))
    table.add_row("time", seconds_text(p.time))
    table.add_row("speedup", ratio_text(p.speedup))
    if p.splits > 1:
        table.add_row("each row's keys split in", str(p.splits))
    table.add_row("bottleneck", p.bottleneck)
    if p.costs == "machine code":
        table.add_row("instructions counted in", p.costs)
    return _lines(table)


def sweep_table(sweep: Sweep) -> str:
    """One line for each prediction of a sweep, with what varies between them."""
    least = sweep.least_speedup
    order = "the fastest first" if least is None else f"{least:g}x or faster, the densest first"
    if not sweep.predictions:
        return f"predicted: nothing is {least:g}x or faster"
    table = Table(title=f"predicted, {order}", title_justify="left")
    for name in sweep.varied:
        table.add_column(name)
    for name in ("time", "dense time", "speedup", "bound by tiles"):
        table.add_column(name, justify="right")
    table.add_column("bottleneck")
    for p in sweep.predictions:
        chosen = [_choice_text(p.choice[name]) for name in sweep.varied]
        times = [seconds_text(p.time), seconds_text(p.dense_time), ratio_text(p.speedup)]
        table.add_row(*chosen, *times, ratio_text(p.bounds["tiles"]), p.bottleneck)
    lines = _lines(table)
    failed = [
        f"cannot: {', '.join(f'{n}={_choice_text(c[n])}' for n in sweep.varied)}: "
        f"{why.splitlines()[0]}"[:WIDTH]
        for c, why in sweep.failed
    ]
    return "\n".join([lines, *failed])


def model_table(model: ModelPrediction) -> str:
    """The layers of a model, and what their speedups come to."""
    table = Table(title="attention of a model: predicted", title_justify="left")
    table.add_column("layers", justify="right")
    table.add_column("pattern")
    for name in ("dense time", "time", "speedup"):
        table.add_column(name, justify="right")
    for layer in model.layers:
        times = seconds_text(layer.dense_time), seconds_text(layer.time)
        table.add_row(str(layer.count), layer.name, *times, ratio_text(layer.speedup))
    share = f"{model.attention_share:.0%} of the time"
    return (
        f"{_lines(table)}\nattention ({share} when dense) {ratio_text(model.attention_speedup)}, "
        f"the model {ratio_text(model.speedup)} of at most {ratio_text(model.limit)}"
    )


def _choice_text(value: object) -> str:
    """A chosen value; tiles as `128 by 64`, other sequences as they are."""
    if isinstance(value, tuple) and len(value) == 2:
        return f"{value[0]} by {value[1]}"
    return "searched" if value is None else str(value)


def _lines(table: Table) -> str:
    text = io.StringIO()
    Console(file=text, width=WIDTH, color_system=None, force_terminal=False).print(table)
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines())
