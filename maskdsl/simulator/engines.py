"""Engines as data: how well a family of kernels uses a device, and which tiles it masks."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from typing import Any

from maskdsl.errors import BindError, nearest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@dataclass(frozen=True)
class Engine:
    """One family of kernels; the fields are those of its file in `simulator/engines`.

    overlap: the share of the shorter pipes' work (products, exponentials, instructions) that hides
    behind the longest, where several warpgroups take turns on a multiprocessor. stall: times the
    time so found that a tile really takes, by device; dense_stall: the same of the dense kernel
    that speedups compare with. partial_ratio: the cost of a masked tile in unmasked ones, or None
    where it is counted from the mask. masks_all: whether one partial tile makes the kernel mask
    all tiles that it visits. splits_keys: whether short runs of queries may have their keys spread
    over programs. packed_lanes: the least and the most lanes of a program of decoding, by target or
    dtype, where its lanes are the query heads that share keys and values; none where a head has
    rows of its own. lanes: of query and key tiles, by device; none where the planner's are taken.
    """

    name: str
    overlap: float
    stall: Mapping[str, float]
    dense_stall: Mapping[str, float]
    partial_ratio: float | None
    masks_all: bool
    splits_keys: bool
    packed_lanes: Mapping[str, tuple[int, int]]
    lanes: Mapping[str, tuple[int, int]]
    sources: Mapping[str, str] = field(compare=False, repr=False)

    def lanes_packed(self, target: str, dtype: str) -> tuple[int, int] | None:
        """The least and the most lanes of a program of decoding; None where heads are apart."""
        found = self.packed_lanes.get(dtype) or self.packed_lanes.get(target)
        return found or self.packed_lanes.get("default")

    def stall_on(self, device: str, dense: bool = False) -> float:
        """The factor for a device by its name, the engine's default for one that it does not
        know.
        """
        factors = self.dense_stall if dense else self.stall
        return factors.get(device, factors["default"])


def engine_names() -> list[str]:
    """The names of the engines that come with MaskDSL, sorted."""
    folder = resources.files("maskdsl.simulator") / "engines"
    return sorted(
        entry.name[: -len(".toml")] for entry in folder.iterdir() if entry.name.endswith(".toml")
    )


def load_engine(engine: str | Engine) -> Engine:
    """An engine by its name, or itself. Raises `BindError` for an unknown name."""
    return engine if isinstance(engine, Engine) else _packaged(str(engine))


@cache
def _packaged(name: str) -> Engine:
    known = engine_names()
    if name not in known:
        raise BindError(
            f"unknown engine '{name}' (known: {', '.join(known)}){nearest(name, known)}"
        )
    file = resources.files("maskdsl.simulator") / "engines" / f"{name}.toml"
    data: dict[str, Any] = tomllib.loads(file.read_text(encoding="utf-8"))
    stall = data["stall"]
    return Engine(
        name=data["name"],
        overlap=data["overlap"],
        stall=stall,
        dense_stall=data.get("dense_stall", stall),
        partial_ratio=data.get("partial_ratio"),
        masks_all=data["masks_all"],
        splits_keys=data["splits_keys"],
        packed_lanes=_pairs(data.get("packed_lanes", {})),
        lanes=_pairs(data.get("lanes", {})),
        sources=data["sources"],
    )


def _pairs(table: Mapping[str, list[int]]) -> dict[str, tuple[int, int]]:
    return {name: (a, b) for name, (a, b) in table.items()}
