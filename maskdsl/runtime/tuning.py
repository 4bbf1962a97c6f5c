"""Measured launch settings: the few likely ones are timed on a first call's own tensors, and the
best is remembered on disk.

What is measured gives the same values whatever is chosen: only tiles, warps and stages differ.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import torch

from maskdsl.codegen import Spec
from maskdsl.codegen.emit import plan_lanes
from maskdsl.errors import CompileError, MaskError
from maskdsl.planner import Plan
from maskdsl.runtime.cache import recall, remember
from maskdsl.runtime.triton_backend import TritonForward

LANES = ((128, 64), (128, 128), (64, 64), (64, 128))  # of query and key tiles
WARPS = (4, 8)
STAGES = (2, 3, 4)
FEW = 8  # settings that are measured


@dataclass(frozen=True)
class Setting:
    """lanes: of query and key tiles, (0, 0) for the plan's own."""

    lanes: tuple[int, int]
    num_warps: int
    num_stages: int


def settings_for(
    plan: Plan, spec: Spec, plan_with: Callable[[tuple[int, int]], Plan] | None,
    cost: Callable[[Plan], float],
) -> list[Setting]:  # fmt: skip
    """What is worth measuring, the rule's own choice first, all of it within the target's limits.

    plan_with: plans of other lanes, where tiles may be chosen. cost: a prediction of a plan's time,
    by which the lanes are put in order.
    """
    warps, stages = spec.settings(*plan_lanes(plan))
    found = [Setting((0, 0), warps, stages)]
    plans = [((0, 0), plan)]
    own = plan_lanes(plan)
    if plan_with is not None:
        others = ((lanes, plan_with(lanes)) for lanes in LANES if lanes != own)
        plans += [(lanes, other) for lanes, other in others if plan_lanes(other) == lanes]
    plans.sort(key=lambda x: cost(x[1]))
    for lanes, other in plans:
        for setting in (Setting(lanes, w, s) for w in WARPS for s in STAGES):
            if setting not in found and spec.fits(*plan_lanes(other), setting.num_stages):
                found.append(setting)
    return found[:FEW]


class Tuned:
    """A forward kernel that measures its settings at its first call on a GPU.

    rule: the kernel with the settings of the rule. plan_with, cost: see `settings_for`.
    """

    def __init__(
        self,
        rule: TritonForward,
        plan_with: Callable[[tuple[int, int]], Plan] | None,
        cost: Callable[[Plan], float],
    ) -> None:
        self.rule = rule
        self._plan_with, self._cost = plan_with, cost
        self._chosen: dict[str, TritonForward] = {}

    def __call__(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, inputs: Any,
        return_lse: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:  # fmt: skip
        """As TritonForward."""
        where = f"{device_name(q.device)}-b{q.shape[0]}"
        run = self._chosen.get(where)
        if run is None:
            run = self._chosen[where] = self._choose(where, (q, k, v, inputs))
        return run(q, k, v, inputs, return_lse)

    def _choose(self, where: str, arguments: tuple[Any, ...]) -> TritonForward:
        key = f"{self.rule.key}-{where}"
        stored = _read(recall(key))
        settings = settings_for(self.rule.plan, self.rule.spec, self._plan_with, self._cost)
        if stored in settings:
            return self._kernel(stored)
        times: list[tuple[float, int, TritonForward]] = []
        for number, setting in enumerate(settings):
            try:
                run = self._kernel(setting)
                times.append((seconds(partial(run, *arguments)), number, run))
            except MaskError as error:
                warnings.warn(f"{setting} is left out of tuning: {error}", stacklevel=4)
        if not times:
            return self.rule
        _, best, run = min(times, key=lambda x: x[:2])
        remember(key, json.dumps(asdict(settings[best])))
        return run

    def _kernel(self, setting: Setting) -> TritonForward:
        plan = self.rule.plan
        if setting.lanes != (0, 0):
            assert self._plan_with is not None
            plan = self._plan_with(setting.lanes)
        spec = replace(self.rule.spec, num_warps=setting.num_warps, num_stages=setting.num_stages)
        return TritonForward(plan, spec, self.rule.scale, self.rule.template, self.rule.one)


def _read(text: str | None) -> Setting | None:
    """A stored setting; None for anything else."""
    try:
        found = json.loads(text or "")
        lanes = tuple(found.pop("lanes"))
        return Setting(lanes, **found)
    except (ValueError, TypeError, AttributeError, KeyError):
        return None


def device_name(device: torch.device) -> str:
    """Of a GPU, fit for a file name. Raises CompileError elsewhere."""
    if device.type != "cuda":
        raise CompileError(f"settings are measured on a GPU, not on {device}: leave out tune=True")
    return "".join(c if c.isalnum() else "-" for c in torch.cuda.get_device_name(device))


def seconds(call: Callable[[], object]) -> float:
    """The median time of a call on the current GPU."""
    from triton.testing import do_bench

    return float(do_bench(call, return_mode="median")) / 1e3
