"""Pictures of the CPU benchmark."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

PEERS = {"flex": "#d55e00", "sdpa": "#999999", "natten": "#cc79a7"}
LABELS = {"flex": "compiled FlexAttention", "sdpa": "dense SDPA", "natten": "NATTEN"}


def plot(samples: list[dict[str, Any]], path: Path) -> None:
    """Seconds of each peer by ours, a panel per type of numbers, on a logarithmic axis."""
    dtypes = list(dict.fromkeys(s["dtype"] for s in samples))
    figure, panels = pyplot.subplots(
        1, len(dtypes), figsize=(7 * len(dtypes), 5), layout="constrained", squeeze=False
    )
    for panel, dtype in zip(panels[0], dtypes, strict=True):
        own = [s for s in samples if s["dtype"] == dtype and "skipped" not in s]
        for i, (peer, colour) in enumerate(PEERS.items()):
            points = [
                (n + 0.25 * (i - 1), s["by_ours"][peer])
                for n, s in enumerate(own)
                if peer in s["by_ours"]
            ]
            if points:
                places, ratios = zip(*points, strict=True)
                panel.barh(places, ratios, 0.25, color=colour, label=LABELS[peer])
        panel.axvline(1, color="black", linewidth=1)
        panel.set(xscale="log", title=dtype, xlabel="seconds by ours, forward: right is slower")
        panel.set_yticks(range(len(own)), [s["case"] for s in own])
        panel.invert_yaxis()
        panel.grid(True, axis="x", which="both", alpha=0.3)
        panel.legend(loc="best", fontsize=9)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
