"""What the simulator says of a mask, a shape and a device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from maskdsl.simulator.arguments import plain
from maskdsl.simulator.estimate import Estimate
from maskdsl.simulator.report import prediction_table


@dataclass(frozen=True)
class Prediction:
    """What the simulator says of a mask, a shape and a device.

    `sparse` is the estimate under the plan, `dense` the one where every tile is visited and none is
    masked. `bounds` are those of `speedup_bounds`. `heads`, `kv_heads` and `batch` are those asked
    about; `tiles` counts those of the plan's own heads. `costs` says what instructions were counted
    in: "machine code" or "estimates". `choice` is what a sweep chose.
    """

    device: str
    engine: str
    dtype: str
    direction: str
    batch: int
    heads: int
    kv_heads: int
    queries: int
    keys: int
    head_dim: int
    value_dim: int
    q_lanes: int
    kv_lanes: int
    tiles: dict[str, int]
    bounds: dict[str, float]
    costs: str
    sparse: Estimate
    dense: Estimate
    choice: Mapping[str, Any] = field(default_factory=dict, compare=False)

    @property
    def time(self) -> float:
        """Seconds under the mask."""
        return self.sparse.time

    @property
    def dense_time(self) -> float:
        """Seconds for attention without a mask, under tiles of as many lanes."""
        return self.dense.time

    @property
    def speedup(self) -> float:
        """`dense_time` over `time`."""
        return self.dense_time / self.time

    @property
    def splits(self) -> int:
        """Pieces into which the keys of each row are cut, to be merged afterwards."""
        return self.sparse.splits

    @property
    def bottleneck(self) -> str:
        """What most of the time goes to, in a word or three."""
        return self.sparse.bottleneck

    def table(self) -> str:
        """A table for people, as plain text."""
        return prediction_table(self)

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, texts and dicts. Bounds of an empty mask are `float("inf")`."""
        names = (
            *("device", "engine", "dtype", "direction", "batch", "heads", "kv_heads", "queries"),
            *(
                "keys",
                "head_dim",
                "value_dim",
                "q_lanes",
                "kv_lanes",
                "time",
                "dense_time",
                "speedup",
            ),
            *("splits", "bottleneck", "costs"),
        )
        return {
            **{name: getattr(self, name) for name in names},
            "tiles": dict(self.tiles),
            "bounds": dict(self.bounds),
            "launch_time": self.sparse.launch,
            "compute_time": self.sparse.compute,
            "memory_time": self.sparse.memory,
            "shares": self.sparse.shares,
            "passes": {p.name: p.time for p in self.sparse.passes},
            "choice": plain(self.choice),
        }
