"""`sweep`: predictions over devices, tiles, parameters of the pattern and options, best first."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, overload

import numpy as np

from maskdsl.errors import BindError, MaskError, nearest
from maskdsl.pattern import Mask, Pattern
from maskdsl.planner import Plan, Tile
from maskdsl.simulator.arguments import plain
from maskdsl.simulator.devices import Device, load_device
from maskdsl.simulator.predict import simulate
from maskdsl.simulator.prediction import Prediction
from maskdsl.simulator.report import sweep_table

OPTIONS = (
    *("head_dim", "value_dim", "batch", "dtype", "direction", "queries", "engine", "splits"),
    *("lanes", "heads", "kv_heads"),
)
MAX_CHOICES = 10_000
Named = str | os.PathLike[str] | Device


@dataclass(frozen=True)
class Sweep(Sequence[Prediction]):
    """Predictions, best first; each says by `choice` what it is of.

    failed: the choices that cannot be bound or planned, and why. varied: the names of what differs.
    least_speedup: of those shown, the densest of which are best then; None where the fastest are.
    """

    predictions: tuple[Prediction, ...]
    failed: tuple[tuple[Mapping[str, Any], str], ...]
    varied: tuple[str, ...]
    least_speedup: float | None = None

    @property
    def best(self) -> Prediction:
        """The first. Raises `BindError` where no choice is fast enough."""
        if not self.predictions:
            raise BindError("no choice of the sweep reaches least_speedup")
        return self.predictions[0]

    @overload
    def __getitem__(self, index: int) -> Prediction: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Prediction, ...]: ...
    def __getitem__(self, index: int | slice) -> Prediction | tuple[Prediction, ...]:
        return self.predictions[index]

    def __len__(self) -> int:
        return len(self.predictions)

    def __iter__(self) -> Iterator[Prediction]:
        return iter(self.predictions)

    def table(self) -> str:
        """A table for people, as plain text."""
        return sweep_table(self)

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, texts, lists and dicts."""
        return {
            "least_speedup": self.least_speedup,
            "predictions": [p.to_dict() for p in self.predictions],
            "failed": [{"choice": plain(choice), "why": why} for choice, why in self.failed],
        }


def sweep(
    mask_or_pattern: Mask | Pattern | Plan,
    devices: Named | Sequence[Named] = "h200",
    tiles: Sequence[Any] | None = None,
    least_speedup: float | None = None,
    **choices: Any,
) -> Sweep:
    """Predictions for every combination of choices, the fastest first.

    tiles: pairs of a query and a key tile as `Mask.plan` takes them, one tile for both, or None for
    the layout search's own. Other names are extents and parameters of the pattern, `heads`,
    `kv_heads`, and the options `head_dim`, `value_dim`, `batch`, `dtype`, `direction`, `queries`,
    `engine`, `splits` and `lanes` of `simulate`; each is a value, or a list of values to try (where
    a value is itself a list, as of array parameters and lanes: a list of lists).

    least_speedup: only predictions at least so many times faster than dense attention, those that
    keep the most pairs first: "what window can I afford for 3x?".

    Raises `BindError` for names that the pattern does not have, more than `MAX_CHOICES`
    combinations, and where every one fails.
    """
    subject = mask_or_pattern
    named = [devices] if isinstance(devices, (str, os.PathLike, Device)) else list(devices)
    lists: dict[str, list[Any]] = {"device": [load_device(d) for d in named]}
    if tiles is not None:
        lists["tiles"] = [_tile_pair(subject, pair) for pair in tiles]
    bound = _bound_names(subject)
    for name, value in choices.items():
        if name not in bound and name not in OPTIONS:
            known = (*dict.fromkeys((*bound, *OPTIONS)), "devices", "tiles", "least_speedup")
            raise BindError(f"a sweep has nothing called '{name}'{nearest(name, known)}")
        lists[name] = _values(subject, name, value)
    size = math.prod(map(len, lists.values()))
    if size > MAX_CHOICES or size == 0:
        raise BindError(f"a sweep has 1 to {MAX_CHOICES} combinations of choices, not {size}")
    found, failed = [], []
    plans: dict[str, Any] = {}
    for values in itertools.product(*lists.values()):
        choice = dict(zip(lists, values, strict=True))
        try:
            found.append(_predicted(subject, choice, bound, plans))
        except MaskError as error:
            failed.append((_named(choice), str(error)))
    if not found:
        raise BindError(f"no choice of the sweep can be predicted: {failed[0][1]}")
    found.sort(key=lambda p: p.time)
    if least_speedup is not None:
        found = [p for p in found if p.speedup >= least_speedup]
        found.sort(key=_kept, reverse=True)
    varied = tuple(name for name, x in lists.items() if len(x) > 1) or ("device",)
    return Sweep(tuple(found), tuple(failed), varied, least_speedup)


def _predicted(
    subject: Any, choice: dict[str, Any], bound: Sequence[str], plans: dict[str, Any]
) -> Prediction:
    values = {name: x for name, x in choice.items() if name in bound}
    options = {name: x for name, x in choice.items() if name in OPTIONS and name not in bound}
    pair = choice.get("tiles")
    key = repr((plain(values), str(pair)))
    if key not in plans:  # planned once for all devices, where tiles are given
        asked = subject.bind(**values) if values else subject
        if isinstance(asked, Pattern):
            asked = asked.bind()
        plans[key] = asked if pair is None else asked.plan(*pair)
    prediction = simulate(plans[key], device=choice["device"], **options)
    return replace(prediction, choice=_named(choice))


def _named(choice: dict[str, Any]) -> dict[str, Any]:
    return {**choice, "device": choice["device"].name}


def _kept(prediction: Prediction) -> float:
    """The share of pairs that are allowed; of tiles, where an input decides."""
    bounds = prediction.bounds
    return 1 / (bounds["tiles"] if math.isnan(bounds["flops"]) else bounds["flops"])


def _bound_names(subject: Any) -> tuple[str, ...]:
    """What may be bound."""
    if isinstance(subject, (Mask, Pattern)):
        pattern = subject.pattern if isinstance(subject, Mask) else subject
        return (*pattern.axes, *pattern.params, "heads", "kv_heads")
    if isinstance(subject, Plan):
        return ()
    raise BindError(f"sweep takes a pattern, a mask or a plan, not {type(subject).__name__}")


def _values(subject: Any, name: str, value: Any) -> list[Any]:
    """The values to try for one name."""
    pattern = subject.pattern if isinstance(subject, Mask) else subject
    params = pattern.params if isinstance(pattern, Pattern) else {}
    rank = len(params[name].type.dims) if name in params else int(name == "lanes")
    if isinstance(value, str) or np.ndim(value) <= rank:
        return [value]
    return list(value)


def _tile_pair(subject: Any, given: Any) -> tuple[Any, Any] | None:
    """A query and a key tile from a pair of them, or from one for both."""
    if given is None:
        return None
    if isinstance(given, (int, np.integer, Tile)):
        return given, given
    axes = [len(s.axes) for s in subject.program.queries]
    if isinstance(given, (list, tuple)):
        numbers = all(isinstance(n, (int, np.integer)) for n in given)
        if numbers and len(axes) == 1 and len(given) == axes[0]:
            return given, given
        if len(given) == 2 and (not numbers or axes == [1]):
            return given[0], given[1]
    raise BindError(f"tiles are pairs of a query and a key tile, not {given!r}"[:200])
