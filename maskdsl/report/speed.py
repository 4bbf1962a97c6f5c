"""Predictions for the page: over devices, tiles, and one of the pattern's parameters."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from maskdsl.errors import BindError, MaskError
from maskdsl.pattern import Mask
from maskdsl.simulator import Prediction, device_names, simulate
from maskdsl.simulator.report import ratio_text, seconds_text

LANES = ((64, 64), (128, 64), (128, 128), (64, 128))  # of query and key tiles
STRIDES = (1, 2, 4, 8, 16)


@dataclass(frozen=True)
class Line:
    """One prediction of a table, or why there is none. share: of the longest bar, 0 to 1."""

    label: str
    found: Prediction | None
    why: str = ""
    share: float = 0.0
    best: bool = False

    @property
    def cells(self) -> list[str]:
        p = self.found
        if p is None:
            return []
        return [
            seconds_text(p.time), seconds_text(p.dense_time), ratio_text(p.speedup),
            ratio_text(p.bounds["flops"]), p.bottleneck,
        ]  # fmt: skip


@dataclass(frozen=True)
class Table:
    """A title, what its first column says, and its lines."""

    title: str
    what: str
    lines: list[Line]
    note: str = ""


@dataclass
class Predictions:
    """Everything the page predicts. device: of tables over other things than devices."""

    mask: Mask
    device: str
    options: Mapping[str, Any]
    vary: tuple[str, Sequence[Any]] | None = None
    tables: list[Table] = field(default_factory=list)

    def __post_init__(self) -> None:
        for direction in ("forward", "backward"):
            lines = [(d, {"device": d, "direction": direction}) for d in device_names()]
            self._add(f"Devices, {direction}", "device", lines)
        lanes: list[tuple[str, dict[str, Any]]] = [
            (f"{q} queries by {k} keys", {"lanes": (q, k)}) for q, k in LANES
        ]
        self._add(f"Lanes of a tile, forward on {self.device}", "lanes of a tile", lanes,
                  "The layout search chooses the shape of tiles with so many lanes.")  # fmt: skip
        self._varied()

    def _add(
        self, title: str, what: str, choices: list[tuple[str, dict[str, Any]]], note: str = ""
    ) -> None:
        found = [(label, *self._one(self.mask, options)) for label, options in choices]
        self.tables.append(Table(title, what, lines_of(found), note))

    def _one(self, mask: Mask, options: Mapping[str, Any]) -> tuple[Prediction | None, str]:
        try:
            return simulate(mask, **{"device": self.device, **self.options, **options}), ""
        except MaskError as e:
            return None, str(e).splitlines()[0]

    def _varied(self) -> None:
        """Over one parameter of the pattern."""
        chosen = self.vary or _strides(self.mask)
        if chosen is None:
            return
        name, values = chosen
        found: list[tuple[str, Prediction | None, str]] = []
        for value in values:
            try:
                mask = self.mask.bind(**{name: value})
            except MaskError as e:
                found.append((label(value), None, str(e).splitlines()[0]))
            else:
                found.append((label(value), *self._one(mask, {})))
        note = f"Everything else is as above; this page is about {name} = "
        note += label(self.mask.values[name]) if name in self.mask.values else "its default"
        title = f"Values of {name}, forward on {self.device}"
        self.tables.append(Table(title, name, lines_of(found), f"{note}."))


def label(value: Any) -> str:
    """A value as the language writes it."""
    text = str(np.asarray(value).tolist() if np.ndim(value) else value)
    return text.replace("True", "true").replace("False", "false")


def lines_of(found: list[tuple[str, Prediction | None, str]]) -> list[Line]:
    """Lines with bars of their speedups; the fastest is marked where others are slower."""
    made = [p for _, p, _ in found if p is not None]
    most = max((p.speedup for p in made if math.isfinite(p.speedup)), default=1.0)
    times = [p.time for p in made]
    best = min(times) if len(times) > 1 and min(times) < 0.99 * max(times) else math.nan
    return [
        Line(label, p, why, 0 if p is None else min(p.speedup / most, 1.0),
             p is not None and p.time == best)
        for label, p, why in found
    ]  # fmt: skip


def _strides(mask: Mask) -> tuple[str, list[Any]] | None:
    """The parameter that is a stride, and values to try: as large as a window beside it."""
    pattern = mask.pattern
    names = [n for n, p in pattern.params.items() if "stride" in n and p.type.base == "int"]
    if not names or np.ndim(mask.values.get(names[0], 1)) > 1:
        return None
    name = names[0]
    own = mask.values.get(name, 1)
    window = mask.values.get(name.replace("stride", "window"), max(STRIDES))
    most = np.asarray(window)
    if np.ndim(own) == 0:
        values: list[Any] = [s for s in STRIDES if s <= most.max()]
        return name, sorted({*values, own})
    if most.shape != np.shape(own):
        most = np.full(np.shape(own), most.max())
    found = [[min(s, int(m)) for m in most] for s in STRIDES]
    found = [x for i, x in enumerate(found) if x not in found[:i]]
    if list(own) not in found:
        found.insert(0, list(own))
    return name, found


def parse_vary(mask: Mask, name: str, values: Sequence[Any]) -> tuple[str, Sequence[Any]]:
    """Checked: a name that may be bound. Raises BindError."""
    known = [*mask.pattern.axes, *mask.pattern.params]
    if name not in known:
        raise BindError(f"--vary takes one of {', '.join(known)}, not '{name}'")
    return name, values
