"""What a call's inputs leave to visit, as the lists that kernels walk."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from maskdsl.codegen.visits import Packing
from maskdsl.codegen.walk import crossing
from maskdsl.planner import Plan
from maskdsl.planner.boxes import FULL, PARTIAL
from maskdsl.runtime.input_tiles import InputTiles, Visits


class InputLists:
    """For the rows of one side of a plan. home: "q" or "k"; see codegen's InputWalk."""

    def __init__(self, plan: Plan, home: str) -> None:
        self.home = home
        self._decide = InputTiles(plan)
        grid = plan.kv_grid_ if home == "q" else plan.q_grid_
        packing = Packing.of(grid, len(grid.shape))
        self._packed = torch.from_numpy(packing.pack(grid, np.arange(grid.count)))
        self._crossing = torch.from_numpy(crossing(grid))
        self._on: dict[torch.device, tuple[torch.Tensor, torch.Tensor]] = {}

    def __call__(
        self, inputs: Mapping[str, torch.Tensor], batch: int, device: torch.device
    ) -> dict[str, torch.Tensor]:
        """Arguments of the kernel by name: input_tiles, packed first coordinates (batch, classes,
        tiles, widest), and input_counts, int32 (batch, classes, tiles, 2), partial and full ones.
        The host waits for nothing.
        """
        if device not in self._on:
            self._on[device] = (self._packed.to(device), self._crossing.to(device))
        visits = self._decide(inputs, batch)
        parts = [self._of_class(visits, n, *self._on[device]) for n in range(len(visits.kinds))]
        widest = max(tiles.shape[-1] for tiles, _ in parts)
        padded = [
            torch.nn.functional.pad(tiles, (0, widest - tiles.shape[-1])) for tiles, _ in parts
        ]
        prefix = "" if self.home == "q" else "key_"
        return {
            f"{prefix}input_tiles": torch.stack(padded, 1).contiguous(),
            f"{prefix}input_counts": torch.stack([c for _, c in parts], 1).contiguous(),
        }

    def _of_class(
        self, visits: Visits, number: int, packed: torch.Tensor, crosses: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(packed tiles, counts) of one head class."""
        index = visits.indices[number][self.home]
        kinds = torch.nn.functional.pad(visits.kinds[number], (0, 1))
        found = kinds.index_select(1, index.pairs.reshape(-1))
        found = found.reshape(kinds.shape[0], *index.pairs.shape)
        # a loop over full tiles masks nothing, not even lanes past the edge
        found = torch.where(crosses[index.tiles] & (found == FULL), PARTIAL, found)
        order = torch.sort(found, dim=-1, descending=True, stable=True).indices  # partial first
        tiles = packed[index.tiles].expand(order.shape).gather(2, order)
        counts = torch.stack([(found == kind).sum(-1) for kind in (PARTIAL, FULL)], -1)
        return tiles, counts.to(torch.int32)
