"""Whole models: what faster attention is worth where it takes a share of the time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from maskdsl.errors import BindError
from maskdsl.simulator.arguments import count
from maskdsl.simulator.predict import simulate
from maskdsl.simulator.report import model_table

DIRECTIONS = {"inference": ("forward",), "training": ("forward", "backward")}


@dataclass(frozen=True)
class LayerPrediction:
    """Of `count` equal layers: seconds of one of them, with its patterns and dense."""

    name: str
    count: int
    time: float
    dense_time: float

    @property
    def speedup(self) -> float:
        return self.dense_time / self.time


@dataclass(frozen=True)
class ModelPrediction:
    """A model in which attention took `attention_share` of the time when it was dense."""

    layers: tuple[LayerPrediction, ...]
    attention_share: float

    @property
    def attention_speedup(self) -> float:
        """Of the attention of all layers together."""
        dense = sum(layer.count * layer.dense_time for layer in self.layers)
        return dense / sum(layer.count * layer.time for layer in self.layers)

    @property
    def speedup(self) -> float:
        """Of the whole model (Amdahl's law)."""
        return 1 / (1 - self.attention_share + self.attention_share / self.attention_speedup)

    @property
    def limit(self) -> float:
        """The speedup if attention took no time at all."""
        rest = 1 - self.attention_share
        return 1 / rest if rest else float("inf")

    def table(self) -> str:
        """A table for people, as plain text."""
        return model_table(self)

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, texts, lists and dicts."""
        return {
            "attention_share": self.attention_share,
            "attention_speedup": self.attention_speedup,
            "speedup": self.speedup,
            "limit": self.limit,
            "layers": [
                {
                    "name": layer.name,
                    "count": layer.count,
                    "time": layer.time,
                    "dense_time": layer.dense_time,
                }
                for layer in self.layers
            ],
        }


def simulate_model(
    layers: Sequence[tuple[Any, int]],
    attention_share: float,
    mode: str = "inference",
    heads: int | None = None,
    **options: Any,
) -> ModelPrediction:
    """Predict a model of `layers`, pairs of what a layer's heads see and how many layers are so.

    That is a mask or a plan for all heads, None for a layer that stays dense (of the shape of the
    first that does not), or a list of (mask, heads): a mixture of patterns, each launched by
    itself. attention_share: the share of the model's time that dense attention takes, more than 0
    and at most 1. mode: "inference", or "training" for the backward pass too. heads: of a layer
    with one mask of one head. Other options are those of `simulate`.

    Raises `BindError`.
    """
    if mode not in DIRECTIONS:
        raise BindError(f"a model's mode is {' or '.join(DIRECTIONS)}, not '{mode}'")
    is_number = isinstance(attention_share, (int, float)) and not isinstance(attention_share, bool)
    if not (is_number and 0 < attention_share <= 1):
        raise BindError(f"attention_share is more than 0 and at most 1, not {attention_share!r}")
    found: list[LayerPrediction] = []
    stays: list[int] = []
    for subject, number in layers:
        layer = LayerPrediction("dense", count("a layer's count", number), 0.0, 0.0)
        if subject is None:
            stays.append(len(found))
        else:
            layer = _layer(subject, layer.count, mode, heads, options)
        found.append(layer)
    if len(found) == len(stays):
        raise BindError("a model needs a layer with a mask")
    dense = next(layer.dense_time for layer in found if layer.dense_time)
    for i in stays:
        found[i] = LayerPrediction("dense", found[i].count, dense, dense)
    return ModelPrediction(tuple(found), attention_share)


def _layer(
    subject: Any, number: int, mode: str, heads: int | None, options: dict[str, Any]
) -> LayerPrediction:
    parts: list[tuple[Any, int | None]] = [(subject, heads)]
    together = heads
    if isinstance(subject, (list, tuple)):
        parts = [(mask, count("a mixture's heads", own)) for mask, own in subject]
        together = sum(own for _, own in parts if own)
    if not parts:
        raise BindError("a mixture needs a pattern at least")
    time = dense_time = 0.0
    for direction in DIRECTIONS[mode]:
        for mask, own in parts:
            time += simulate(mask, heads=own, direction=direction, **options).time
        mask, _ = parts[0]
        dense_time += simulate(mask, heads=together, direction=direction, **options).dense_time
    return LayerPrediction(" + ".join(map(_name, parts)), number, time, dense_time)


def _name(part: tuple[Any, int | None]) -> str:
    subject, _ = part
    pattern = getattr(subject, "pattern", subject)
    return str(getattr(pattern, "name", type(subject).__name__))
