"""Tables and plots of what `benchmarks.gpu` measured.

    python -m benchmarks.report FILE.json [--plots FOLDER]

Prints Markdown; the plots go beside the file, or into a folder.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

Record = dict[str, Any]

DIRECTIONS = ("forward", "backward")
COLUMNS = (
    "workload", "ours ms", "TFLOP/s kept", "visited", "predicted ms", "error", "best flex ms",
    "flex / ours", "natten / ours", "dense ms", "dense / ours", "bound", "right",
)  # fmt: skip
OURS, FLEX, NATTEN, DENSE = "#0072b2", "#d55e00", "#cc79a7", "#009e73"


def best(record: Record, direction: str, peer: str, masked: bool) -> tuple[str, Record] | None:
    """The fastest result of a peer ("sdpa_" stands for all of torch's) that was timed and is not
    known to be wrong, with its name. masked: of the workload's problem, or of the dense one.
    """
    found = [
        (name, r)
        for name, r in record.get(direction, {}).get("contenders", {}).items()
        if name.startswith(peer) and "seconds" in r and r.get("check", {}).get("ok", True)
        if r["masked"] == masked
    ]
    return min(found, key=lambda x: x[1]["seconds"], default=None)


def summary(record: Record, direction: str) -> Record:
    """Numbers of one workload: seconds, and ratios above 1 where ours is faster. bound: the dense
    time over the share of pairs kept, as a ratio to the dense time.
    """
    result = record.get(direction, {}).get("contenders", {}).get("ours", {})
    ours = result.get("seconds")
    found: Record = {"ours": ours, "why": _why(record, direction, result), "name": record["name"]}
    for key, peer in (("flex", "flex/"), ("natten", "natten/"), ("dense", "sdpa_")):
        fastest = best(record, direction, peer, masked=key != "dense")
        if fastest:
            found[key], found[f"{key}_name"] = fastest[1]["seconds"], fastest[0]
            found[f"{key}_ratio"] = fastest[1]["seconds"] / ours if ours else None
    predicted = record.get(direction, {}).get("predicted", {}).get("seconds")
    found["predicted"] = predicted
    found["error"] = predicted / ours - 1 if predicted and ours else None
    found["bound"] = 1 / record["density"] if record.get("density") else None
    found["tflops"], found["visited"] = result.get("tflops"), result.get("tflops_visited")
    found["right"] = result.get("check", {}).get("ok")
    return found


def _why(record: Record, direction: str, result: Record) -> str:
    """Why there is no time of ours, or nothing."""
    for place in (result, record.get(direction, {}), record):
        for key in ("refused", "failed", "skipped", "stopped", "broken"):
            if key in place:
                return f"{key}: {place[key]}"
    return "" if "seconds" in result else "not measured"


def table(report: Record, direction: str) -> str:
    """A Markdown table, and below it why workloads lack a time."""
    on_gpu = report["device"]["kind"] == "cuda"
    lines = [f"| {' | '.join(COLUMNS)} |", "|" + "---|" * len(COLUMNS)]
    notes = []
    for record in report["workloads"]:
        s = summary(record, direction)
        cells = [
            record["title"],
            _ms(s["ours"]),
            _number(s["tflops"]),
            _number(s["visited"]),
            _ms(s["predicted"]),
            f"{s['error']:+.0%}" if on_gpu and s["error"] is not None else "",
            _ms(s.get("flex")) + (f" ({s['flex_name'].split('/')[1]})" if "flex" in s else ""),
            _ratio(s.get("flex_ratio")),
            _ratio(s.get("natten_ratio")),
            _ms(s.get("dense")) + (f" ({s['dense_name'][5:]})" if "dense" in s else ""),
            _ratio(s.get("dense_ratio")),
            _ratio(s["bound"]),
            {None: "", True: "yes", False: "NO"}[s["right"]],
        ]
        lines.append(f"| {' | '.join(cells)} |")
        causal = best(record, direction, "sdpa_", masked=True)
        if causal:
            seconds = causal[1]["seconds"]
            ratio = f", {seconds / s['ours']:.2f} times ours" if s["ours"] else ""
            notes.append(f"- {record['title']}: {causal[0]} takes {_ms(seconds)} ms{ratio}")
        overlap = record.get(direction, {}).get("contenders", {}).get("overlap", {})
        if "seconds" in overlap and s["ours"]:
            ratio = overlap["seconds"] / s["ours"]
            wrong = "" if overlap.get("check", {}).get("ok", True) else ", but is WRONG"
            notes.append(
                f"- {record['title']}: the overlap template takes {_ms(overlap['seconds'])} ms,"
                f" {ratio:.2f} times the plain one's{wrong}"
            )
        if s["why"]:
            notes.append(f"- {record['title']}: {s['why']}")
    errors = [summary(w, direction)["error"] for w in report["workloads"]]
    known = [abs(e) for e in errors if e is not None]
    if on_gpu and known:
        mean = sum(known) / len(known)
        notes.insert(0, f"- mean error of predictions: {mean:.1%} of {len(known)} workloads")
    return "\n".join([*lines, "", *notes])


def text(report: Record) -> str:
    device, versions = report["device"], report["versions"]
    names = ", ".join(f"{name} {v}" for name, v in versions.items())
    where = device.get("name") or report["machine"]["processor"]
    parts = [f"# {where}, {report['date']}", names]
    if device["kind"] != "cuda":
        parts.append("Not measured on a GPU: the times say nothing of one.")
    for direction in DIRECTIONS:
        if any(direction in w for w in report["workloads"]):
            parts += [f"## {direction.capitalize()}", table(report, direction)]
    return "\n\n".join(parts)


def plot_speedups(report: Record, path: Path) -> None:
    """Per direction and workload how many times longer the peers take than ours, on a logarithmic
    axis, and the bound that the kept pairs set against dense attention.
    """
    figure, panels = pyplot.subplots(1, 2, figsize=(14, 7), layout="constrained", sharey=True)
    for panel, direction in zip(panels, DIRECTIONS, strict=True):
        rows = [summary(w, direction) for w in report["workloads"]]
        for shift, key, colour, label in (
            (-0.22, "flex_ratio", FLEX, "FlexAttention, best options"),
            (0.0, "natten_ratio", NATTEN, "NATTEN through FlexAttention"),
            (0.22, "dense_ratio", DENSE, "SDPA on the dense problem"),
        ):
            points = [(i + shift, r[key]) for i, r in enumerate(rows) if r.get(key)]
            if points:
                at, values = zip(*points, strict=True)
                panel.barh(at, values, height=0.2, color=colour, label=label)
        bounds = [(i, r["bound"]) for i, r in enumerate(rows) if r["bound"]]
        if bounds:
            at, values = zip(*bounds, strict=True)
            panel.plot(values, at, "|", color="black", markersize=14, label="all / kept pairs")
        panel.axvline(1, color=OURS, linewidth=1)
        panel.set_xscale("log")
        panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panel.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
        panel.xaxis.set_minor_formatter(NullFormatter())
        _frame(panel, report, f"{direction}: their time / ours")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def plot_predictions(report: Record, path: Path) -> None:
    """Per direction and workload the predicted time as a multiple of the measured one, and the
    lines of no error and of 25 %.
    """
    figure, panels = pyplot.subplots(1, 2, figsize=(14, 7), layout="constrained", sharey=True)
    for panel, direction in zip(panels, DIRECTIONS, strict=True):
        rows = [summary(w, direction) for w in report["workloads"]]
        points = [(i, 1 + r["error"]) for i, r in enumerate(rows) if r["error"] is not None]
        for x, style in ((1, "-"), (1.25, ":"), (0.75, ":")):
            panel.axvline(x, linestyle=style, color="grey", linewidth=1)
        if points:
            at, values = zip(*points, strict=True)
            panel.plot(values, at, "o", color=OURS)
        _frame(panel, report, f"{direction}: predicted / measured time")
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def _frame(panel: Any, report: Record, title: str) -> None:
    """A line for each workload, the first one on top."""
    titles = [w["title"] for w in report["workloads"]]
    panel.set(title=title, ylim=(len(titles) - 0.5, -0.5))
    panel.set_yticks(range(len(titles)), titles)
    panel.grid(True, axis="x", alpha=0.3)


def _ms(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds * 1e3:.3g}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def _ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}x"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report")
    parser.add_argument("file", type=Path)
    parser.add_argument("--plots", type=Path, help="a folder for the plots")
    options = parser.parse_args(arguments)
    report = json.loads(options.file.read_text())
    folder = options.plots or options.file.parent
    folder.mkdir(parents=True, exist_ok=True)
    plot_speedups(report, folder / f"{options.file.stem}-speedups.png")
    plot_predictions(report, folder / f"{options.file.stem}-predictions.png")
    print(text(report))


if __name__ == "__main__":
    main()
