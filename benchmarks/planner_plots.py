"""Pictures of the planner's benchmark."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

COLOURS = {"plan": "#0072b2", "to_flex": "#009e73", "eager": "#d55e00", "compiled": "#cc79a7"}
LABELS = {
    "plan": "our plan with rows",
    "to_flex": "our to_flex",
    "eager": "create_block_mask, eager",
    "compiled": "create_block_mask, compiled",
}
# Per panel: title, key of a sample, unit, its size.
PANELS = (
    ("first call", "first_s", "milliseconds", 1e-3),
    ("a later call", "steady_s", "milliseconds", 1e-3),
    ("peak memory above the imports, first call", "first_bytes", "megabytes", 1e6),
)


def plot_comparison(samples: list[dict[str, Any]], path: Path) -> None:
    """Time and memory against tokens, log-log: a point per pattern, a line through the medians."""
    figure, panels = pyplot.subplots(1, len(PANELS), figsize=(15, 5), layout="constrained")
    taken = [s for s in samples if "skipped" not in s]
    sizes = sorted({s["tokens"] for s in taken})
    for panel, (title, key, unit, size) in zip(panels, PANELS, strict=True):
        for i, (name, colour) in enumerate(COLOURS.items()):
            shift = 1.06 ** (i - 1.5)  # methods side by side
            points = [
                (
                    n,
                    [
                        max(s[key] / size, 1e-2)
                        for s in taken
                        if (s["method"], s["tokens"]) == (name, n)
                    ],
                )
                for n in sizes
            ]
            points = [(n * shift, sorted(ys)) for n, ys in points if ys]
            for x, ys in points:
                panel.plot([x] * len(ys), ys, "o", color=colour, alpha=0.45, markersize=4)
            xs, medians = [x for x, _ in points], [ys[len(ys) // 2] for _, ys in points]
            panel.plot(xs, medians, color=colour, label=LABELS[name])
        panel.set(xscale="log", yscale="log", title=title, xlabel="tokens", ylabel=unit)
        _label_tokens(panel, sizes)
        panel.grid(True, which="major", alpha=0.3)
    panels[0].legend(loc="best", fontsize=9)
    figure.suptitle("One point per pattern, lines through the medians")
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def plot_growth(samples: list[dict[str, Any]], path: Path) -> None:
    """Time and boxes of plans without rows against tokens, on a logarithmic axis: a straight line
    grows with the logarithm.
    """
    taken = [s for s in samples if "skipped" not in s]
    sizes = sorted({s["tokens"] for s in taken})
    figure, panels = pyplot.subplots(1, 2, figsize=(12, 5), layout="constrained")
    for panel, key, unit, size in (
        (panels[0], "seconds", "milliseconds", 1e-3),
        (panels[1], "boxes", "boxes looked at", 1),
    ):
        for pattern in dict.fromkeys(s["pattern"] for s in taken):
            points = [(s["tokens"], s[key] / size) for s in taken if s["pattern"] == pattern]
            panel.plot(*zip(*points, strict=True), "o-", label=pattern, markersize=4)
        panel.set(xscale="log", xlabel="tokens", ylabel=unit)
        panel.set_ylim(bottom=0)
        _label_tokens(panel, sizes)
        panel.grid(True, which="major", alpha=0.3)
    panels[0].legend(loc="best", fontsize=9)
    figure.suptitle("Plans without rows")
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def _label_tokens(panel: Any, sizes: list[int]) -> None:
    panel.xaxis.set_major_locator(FixedLocator(sizes))
    panel.xaxis.set_minor_locator(NullLocator())
    panel.xaxis.set_major_formatter(FuncFormatter(_tokens))


def _tokens(n: float, _: object) -> str:
    return next((f"{n / s:g}{u}" for s, u in ((2**20, "M"), (2**10, "K")) if n >= s), f"{n:g}")
