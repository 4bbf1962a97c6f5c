"""Launch settings by the same model: which lanes a mask's tiles should have."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from maskdsl.errors import BindError
from maskdsl.pattern import Mask
from maskdsl.planner.layout import pair
from maskdsl.simulator.predict import simulate
from maskdsl.simulator.prediction import Prediction


def choose_lanes(
    mask: Mask, choices: Sequence[tuple[int, int] | int], **options: Any
) -> tuple[tuple[int, int], Prediction]:
    """The lanes of query and key tiles with which a mask takes least time, and its prediction.

    choices: lanes that the kernels at hand can be compiled with; the first wins a tie. options:
    those of `simulate`. Raises `BindError` without choices.
    """
    if not choices:
        raise BindError("there are no lanes to choose from")
    found = [(pair(lanes), simulate(mask, lanes=lanes, **options)) for lanes in choices]
    return min(found, key=lambda one: one[1].time)
