"""Pictures of predictions: bounds beside what is predicted, roofline, rows, schedule. They need
matplotlib.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from maskdsl.errors import BindError
from maskdsl.simulator.devices import Device, load_device
from maskdsl.simulator.prediction import Prediction
from maskdsl.simulator.schedule import timeline

ROOFS = ("#555555", "#999999", "#bbbbbb")
MAX_ROWS = 2**16  # of a pass whose schedule is drawn
COLORS = {"flops": "#d9d9d4", "tiles": "#a8c5da", "rows": "#5b92b8", "predicted": "#f2a65a"}
INK = "#2a6f97"


def draw(
    predictions: Prediction | Sequence[Prediction], path: str | Path, device: Device | None = None
) -> None:
    """Save a PNG of four panels: the bounds of each prediction and its speedup, all on their
    device's roofline, and of the first one the work of its rows and their schedule over time.

    device: of predictions for a device that has no name of its own. Raises BindError without
    matplotlib and without predictions.
    """
    try:
        import matplotlib

        matplotlib.use("Agg")
        import matplotlib.pyplot as plt
    except ImportError:
        raise BindError("pictures need matplotlib: pip install 'maskdsl[pictures]'") from None
    shown = [predictions] if isinstance(predictions, Prediction) else list(predictions)
    if not shown:
        raise BindError("there is no prediction to draw")
    first = shown[0]
    figure, axes = plt.subplots(2, 2, figsize=(13, 9), layout="constrained")
    _bounds(axes[0, 0], shown)
    _roofline(axes[0, 1], shown, device)
    _rows(axes[1, 0], first, labels(shown)[0])
    _schedule(axes[1, 1], first)
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, dpi=110)
    plt.close(figure)


def labels(shown: Sequence[Prediction]) -> list[str]:
    """What tells each of several predictions from the others, in a few words."""
    names = [n for n in shown[0].choice if len({str(p.choice.get(n)) for p in shown}) > 1]
    one = len(names) == 1
    return [
        ", ".join(
            f"{n}={_short(p.choice.get(n))}" if one else _short(p.choice.get(n)) for n in names
        )
        or f"{p.device}, {p.keys} keys"
        for p in shown
    ]


def _short(value: Any) -> str:
    """A chosen value: lists as `4x8x8`, a pair of lists as `4x8x8/2x8x8`."""
    if isinstance(value, (list, tuple)):
        deep = any(isinstance(x, (list, tuple)) for x in value)
        return ("/" if deep else "x").join(map(_short, value))
    return "searched" if value is None else str(value)


def roofline_points(prediction: Prediction) -> list[tuple[float, float]]:
    """(FLOP for a byte of memory, FLOP/s) of each pass that computes."""
    return [(p.flops / p.bytes, p.flops / p.time) for p in prediction.sparse.passes if p.flops]


def row_work(prediction: Prediction) -> np.ndarray:
    """Seconds of every row of the longest pass, the longest first."""
    longest = max(prediction.sparse.passes, key=lambda p: p.compute).schedule
    return np.sort(np.repeat(longest.durations, longest.counts))[::-1]


def _bounds(axis: Any, shown: Sequence[Prediction]) -> None:
    width = 0.8 / len(COLORS)
    places = np.arange(len(shown))
    for i, (name, color) in enumerate(COLORS.items()):
        values = [p.speedup if name == "predicted" else p.bounds[name] for p in shown]
        heights = np.where(np.isfinite(values), values, 0)
        axis.bar(places + (i - 1.5) * width, heights, width, color=color, label=name)
    axis.set_xticks(places, labels(shown), rotation=20, ha="right")
    axis.set(title="speedup over dense attention", ylabel="times")
    axis.set_ylim(top=1.15 * axis.get_ylim()[1])
    axis.legend(loc="upper center", ncols=len(COLORS))


def _roofline(axis: Any, shown: Sequence[Prediction], device: Device | None) -> None:
    """device: in place of those that predictions name."""
    names = dict.fromkeys(p.device for p in shown)
    devices = [load_device(name) for name in names] if device is None else [device]
    intensity = np.logspace(0, 5, 64)
    for one, color in zip(devices, itertools.cycle(ROOFS)):
        peak = one.matrix_flops(shown[0].dtype)
        roof = np.minimum(peak, intensity * one.memory_bandwidth)
        axis.loglog(intensity, roof, color=color, label=f"{one.name}: memory, products")
    for p, name in zip(shown, labels(shown), strict=True):
        axis.plot(*zip(*roofline_points(p), strict=True), "o", label=name)
    axis.set(title="roofline", xlabel="FLOP for a byte of memory", ylabel="FLOP/s")
    axis.legend(fontsize="small")


def _rows(axis: Any, prediction: Prediction, name: str) -> None:
    work = row_work(prediction) * 1e6
    axis.step(np.arange(len(work)), work, color=INK)
    axis.fill_between(np.arange(len(work)), work, step="pre", color=INK, alpha=0.2)
    axis.set(title=f"rows of {name}", xlabel="rows, longest first", ylabel="us")
    axis.set_ylim(bottom=0)


def _schedule(axis: Any, prediction: Prediction) -> None:
    longest = max(prediction.sparse.passes, key=lambda p: p.compute).schedule
    rows = int(longest.counts.sum())
    axis.set(title="schedule", xlabel="us", ylabel="program slot")
    if rows > MAX_ROWS:
        axis.text(0.5, 0.5, f"{rows:,} rows: too many to draw", ha="center", va="center")
        return
    machine, start, end = timeline(longest.durations, longest.counts, longest.slots)
    # Neighbours in time differ in shade: the n-th row of every slot has the same one.
    order = np.argsort(machine, kind="stable")
    turn = np.empty(rows, dtype=np.int64)
    turn[order] = np.arange(rows) - np.searchsorted(machine[order], machine[order])
    for shade, color in enumerate((INK, "#8fb9d4")):
        own = turn % 2 == shade
        axis.hlines(machine[own], start[own] * 1e6, end[own] * 1e6, colors=color, linewidth=1.5)
