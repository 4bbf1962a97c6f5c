"""The Triton backend for calls with fewer queries than keys: decoding, and prefilling in chunks."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property

import numpy as np
import torch

from maskdsl.codegen import Spec
from maskdsl.codegen.decode import MOST_SPLITS, DecodeEmission, heads_together, query_tiles
from maskdsl.errors import BindError, CompileError
from maskdsl.pattern import Mask
from maskdsl.planner import Grid, Plan, Tile
from maskdsl.runtime.boundary import Call
from maskdsl.runtime.one_for_all import OneForAll
from maskdsl.runtime.triton_backend import (
    MAX_PROGRAMS,
    TritonForward,
    _Loaded,
    described,
    launched,
    signed,
)

WASTE = 1.25  # times the key tiles that a query needs, up to which a row also serves others
FILLED = 2  # programs per multiprocessor, until which the keys are cut


def per_row(plan: Plan) -> float:
    """Key tiles that a tile of queries visits, on average."""
    return plan.density * plan.kv_tiles


def splits_for(programs: int, tiles: int, multiprocessors: int) -> int:
    """Into how many parts the keys of a launch are cut, so that it fills a device.

    programs: without cuts. tiles: of keys, that the longest row visits.
    """
    return max(1, min(FILLED * multiprocessors // programs, tiles, MOST_SPLITS))


class TritonDecode:
    """Attention of few queries under one mask, wherever they stand. Forward only.

    forward: of all queries, whose key tiles are taken. Kernels are made for tiles of a few sizes,
    each at the first call that wants it; no position and no number of queries asks for another.
    """

    def __init__(self, mask: Mask, forward: TritonForward) -> None:
        self.mask, self.forward = mask, forward
        self._kernels: dict[tuple[Tile, ...], DecodeKernel] = {}
        self._found: dict[int, DecodeKernel] = {}

    def kernel_for(self, queries: int) -> DecodeKernel:
        """The kernel for calls of so many queries. Raises CompileError."""
        size = (queries - 1).bit_length()  # tiles depend on the next power of two
        if size not in self._found:
            self._found[size] = self._kernel(1 << size)
        return self._found[size]

    def _kernel(self, queries: int) -> DecodeKernel:
        """Tiles hold more queries than asked for while that costs few more key tiles."""
        whole, spec = self.forward.plan, self.forward.spec
        plan = self._plan(query_tiles(whole, spec, queries))
        fewest = per_row(self._plan(query_tiles(whole, spec, queries, queries)))
        longest = max(g.tile.size[-1] for g in plan.q_grids)
        while per_row(plan) > WASTE * fewest and longest > queries:
            longest //= 2
            plan = self._plan(query_tiles(whole, spec, queries, longest))
        tiles = tuple(g.tile for g in plan.q_grids)
        if tiles not in self._kernels:
            one = self.forward.one
            self._kernels[tiles] = DecodeKernel(plan, spec, self.forward.scale, one)
        return self._kernels[tiles]

    def _plan(self, tiles: tuple[Tile, ...]) -> Plan:
        whole = self.forward.plan
        key_tiles = tuple(g.tile for g in whole.kv_grids)
        several = whole.program.segmented
        return self.mask.plan(*(t if several else t[0] for t in (tiles, key_tiles)))

    def __call__(self, call: Call, splits: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """(out, lse) for a checked call that says where its queries stand.

        splits: into how many parts the keys are cut; by default the rule's.
        """
        self.forward._check(call.q)
        return self.kernel_for(call.q.shape[2])(call, splits)


class DecodeKernel(_Loaded):
    """Decoding under a plan with tiles of queries along the last axis. Raises CompileError where
    the plan is beyond kernels.
    """

    def __init__(self, plan: Plan, spec: Spec, scale: float, one: OneForAll | None = None) -> None:
        self.plan, self.spec, self.one = plan, spec, one
        emission = one.decode(plan, spec) if one else None
        emission = emission or DecodeEmission(plan, spec)
        super().__init__(emission, scale)  # type: ignore[arg-type]
        self._merged = emission.merged
        self._heads = plan.program.heads // heads_together(plan)

    @cached_property
    def by_pointers(self) -> DecodeKernel:
        """The same for keys and values that no descriptor sees."""
        spec = replace(self.spec, descriptors=False)
        return DecodeKernel(self.plan, spec, self.scale, self.one)

    @cached_property
    def longest(self) -> int:
        """Tiles of keys that a row visits at most."""
        heads = [c.heads[0] for c in self.plan.head_classes]
        return max(int(np.add(*self.plan.row_counts(h)).max()) for h in heads)

    def __call__(self, call: Call, splits: int | None) -> tuple[torch.Tensor, torch.Tensor]:
        """(out, lse): as of a whole call, for its queries."""
        assert call.first is not None
        q, k, v = call.q, call.k, call.v
        if self._merged is not None and not all(described(x, self._merged) for x in (k, v)):
            return self.by_pointers(call, splits)
        rows = max(1, q.shape[0] * self._heads * self._rows(call.first, q.shape[2]))
        if splits is None:
            splits = splits_for(rows, self.longest, _multiprocessors(q.device))
        if not 1 <= splits <= MOST_SPLITS:
            raise BindError(f"keys are cut into 1 to {MOST_SPLITS} parts, not {splits}")
        if max(rows * splits, q.shape[0] * q.shape[1] * q.shape[2]) > MAX_PROGRAMS:
            raise CompileError(f"a launch has at most {MAX_PROGRAMS} tiles over batch and heads")
        walk = self._tables_on(q.device)
        found: tuple[torch.Tensor, torch.Tensor] = launched(
            q.device, lambda: self._module.decode(
                q, k, v, call.first, self.scale, walk, signed(call.inputs), splits
            )
        )  # fmt: skip
        return found

    def _rows(self, first: int, queries: int) -> int:
        """Tiles of the queries from a position."""
        count = 0
        for segment, grid in zip(self.plan.program.queries, self.plan.q_grids, strict=True):
            low = max(first, segment.offset) - segment.offset
            high = min(first + queries, segment.offset + segment.tokens) - segment.offset
            if low < high:
                count += row_of(grid, high - 1) - row_of(grid, low) + 1
        return count


def row_of(grid: Grid, token: int) -> int:
    """The number of the tile along the last axis that holds a token of the grid's segment."""
    line, at = divmod(token, grid.extents[-1])
    return line * grid.shape[-1] + at // grid.tile.size[-1]


def _multiprocessors(device: torch.device) -> int:
    if device.type != "cuda":
        return 1
    return torch.cuda.get_device_properties(device).multi_processor_count
