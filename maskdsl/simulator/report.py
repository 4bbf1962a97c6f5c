"""A prediction as a table of plain text."""

from __future__ import annotations

import io
import math
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from maskdsl.simulator.prediction import Prediction

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
    text = io.StringIO()
    Console(file=text, width=WIDTH, color_system=None, force_terminal=False).print(table)
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines())
