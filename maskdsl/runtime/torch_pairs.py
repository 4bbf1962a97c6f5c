"""The pairs of queries and keys that one product makes, and what expressions read of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from maskdsl.ir.evaluate import evaluate
from maskdsl.ir.program import Block, Program
from maskdsl.runtime.boundary import Call
from maskdsl.runtime.groups import Group
from maskdsl.runtime.torch_space import TorchSpace


@dataclass(frozen=True)
class Heads:
    """Heads of one class, by the head of keys and values they share: int64 (kv heads, heads each),
    and the number of each head of keys and values.
    """

    heads: torch.Tensor
    kv: tuple[int, ...]

    @staticmethod
    def of(heads: tuple[int, ...], program: Program, device: torch.device) -> Heads:
        each = program.heads // program.kv_heads
        kv = [h // each for h in heads]
        distinct = sorted(set(kv))
        if [x for x in distinct for _ in range(len(heads) // len(distinct))] != kv:
            distinct = kv  # uneven: each takes a copy of its keys
        shape = (len(distinct), len(heads) // len(distinct))
        return Heads(torch.tensor(heads, device=device).view(shape), tuple(distinct))

    def some(self, part: slice) -> Heads:
        """Those of some heads of keys and values."""
        return Heads(self.heads[part], self.kv[part])

    def queries(self, x: torch.Tensor) -> torch.Tensor:
        """(kv heads, heads each, tokens, ...) of (heads, tokens, ...): a view where all heads are
        asked for.
        """
        if self.heads.numel() != x.shape[0]:
            x = x.index_select(0, self.heads.flatten())
        return x.view(*self.heads.shape, *x.shape[1:])

    def put(self, x: torch.Tensor, own: torch.Tensor) -> None:
        """Write back what became of `queries(x)`."""
        if own.numel() != x.numel():
            x.index_copy_(0, self.heads.flatten(), own.flatten(0, 1))

    def keys(self, x: torch.Tensor) -> torch.Tensor:
        """(kv heads, tokens, dim) of all heads' keys or values, likewise."""
        return x if self._all(x) else x.index_select(0, torch.tensor(self.kv, device=x.device))

    def add(self, x: torch.Tensor, sums: torch.Tensor) -> None:
        """Add sums over `keys(x)`."""
        if self._all(x):
            x += sums
        else:
            x.index_add_(0, torch.tensor(self.kv, device=x.device), sums)

    def _all(self, x: torch.Tensor) -> bool:
        return self.kv == tuple(range(x.shape[0]))


@dataclass(frozen=True)
class Pairs:
    """Some rows of a group with some of their keys, for some heads.

    heads: int64 (kv heads, heads each). queries: int64 (rows, queries); keys: int64 (rows, keys).
    columns: which of a row's keys they are. Arrays over the pairs have the shape (kv heads, rows,
    heads each, queries, keys).
    """

    program: Program
    call: Call
    batch: int
    group: Group
    heads: torch.Tensor
    queries: torch.Tensor
    keys: torch.Tensor
    columns: slice

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(kv heads, rows, heads each, queries)"""
        return (
            self.heads.shape[0],
            self.queries.shape[0],
            self.heads.shape[1],
            self.queries.shape[1],
        )

    def blocks(self) -> Iterator[tuple[int, Block, slice]]:
        """(key segment, block, its place among the columns) of each segment that is seen."""
        numbers = self.group.key_segment[self.columns]
        blocks = self.program.blocks[self.group.query_segment]
        for at, number in enumerate(self.group.segments):
            first, end = (int(np.searchsorted(numbers, at, side=s)) for s in ("left", "right"))
            if end > first:
                yield number, blocks[number], slice(first, end)

    def leaves(self, block: Block, part: slice) -> dict[Any, Any]:
        """What `evaluate` needs for some of the keys."""
        found: dict[Any, Any] = {
            "batch": self.batch,
            "head": self.heads[:, None, :, None, None],
        }
        for side, segment, at in (
            ("q", block.queries, self.queries[:, None, :, None]),
            ("k", block.keys, self.keys[:, None, None, part]),
        ):
            flat = at - segment.offset
            for name, extent in reversed(segment.axes):
                assert extent is not None
                found[side, name] = flat % extent
                flat = flat // extent
        return found

    def kept(self, keeps: tuple[tuple[Any, ...], ...], part: slice) -> torch.Tensor:
        """Which of some pairs are kept, bool, of a shape that broadcasts to theirs."""
        space = TorchSpace(self.queries.device, torch.float64)
        found = []
        for number, block, columns in self.blocks():
            own = slice(max(columns.start, part.start), min(columns.stop, part.stop))
            if own.start < own.stop:
                keep = keeps[self.group.query_segment][number]
                truth = evaluate(keep, self.leaves(block, own), self.call.inputs, space)
                truth = torch.as_tensor(truth, device=self.queries.device)
                found.append((truth, own.stop - own.start))
        if len(found) == 1:
            return found[0][0]
        shape = torch.broadcast_shapes(  # type: ignore[no-untyped-call]
            *((*t.shape[:-1], 1) for t, _ in found if t.ndim)
        )
        return torch.cat([t.expand(*shape[:-1], n) for t, n in found], -1)


def evaluated(
    root: Any, leaves: Mapping[Any, Any], inputs: Mapping[str, torch.Tensor], space: TorchSpace
) -> torch.Tensor:
    """The value of a float expression as a tensor of the space's type."""
    value = evaluate(root, leaves, inputs, space)
    return torch.as_tensor(value, dtype=space.float_dtype, device=space.device)
