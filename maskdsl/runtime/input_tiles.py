"""The tiles that a call's inputs leave to visit, decided on the inputs' device.

One pass over the tokens takes the bounds of what each tile reads, and one over the tile pairs that
the plan leaves possible gives their kinds. The work and memory of a call are in proportion to
tokens and possible pairs; every shape is known beforehand, so the host waits for nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from maskdsl.errors import BindError
from maskdsl.ir.definition import positions
from maskdsl.language.binding import whole
from maskdsl.planner.boxes import EMPTY, FULL, PARTIAL
from maskdsl.planner.conditions import Reads
from maskdsl.planner.inputs import BlockQuestion, ClassQuestion, Pairs, questions
from maskdsl.planner.plan import Plan
from maskdsl.runtime.boundary import check_inputs
from maskdsl.runtime.tile_bounds import DeviceBlock, DeviceSpace, TileBounds, TokenTiles


@dataclass(frozen=True)
class Lists:
    """Per tile of one side, the tiles of the other that it visits.

    partial, full: int64 (batch, tiles), how many. tiles: int64 (batch, tiles, widest): the partial
    ones in order, then the full ones in order, then what is not visited.
    """

    partial: torch.Tensor
    full: torch.Tensor
    tiles: torch.Tensor


@dataclass(frozen=True)
class Index:
    """Where the possible pairs of each tile of one side stand: int64 (tiles, widest), number of the
    pair (that of none: how many pairs there are); and the tile at the other end.
    """

    pairs: torch.Tensor
    tiles: torch.Tensor


@dataclass(frozen=True)
class DeviceClass:
    """A head class on a device: int64 (pairs,) rows, columns and order, bool (pairs,) full."""

    rows: torch.Tensor
    columns: torch.Tensor
    order: torch.Tensor | None
    full: torch.Tensor
    blocks: tuple[DeviceBlock, ...]
    indices: dict[str, Index]


@dataclass(frozen=True)
class Visits:
    """The kinds of all possible tile pairs at one call.

    kinds: per head class of the plan, int8 (batch, pairs): 0 empty, 1 full, 2 partial. A full tile
    is certainly all kept; an empty one keeps nothing. rows, columns: int64 (pairs,), the query tile
    and the key tile of each pair, sorted.
    """

    kinds: tuple[torch.Tensor, ...]
    rows: tuple[torch.Tensor, ...]
    columns: tuple[torch.Tensor, ...]
    indices: tuple[dict[str, Index], ...]

    def lists(self, number: int = 0, side: str = "q") -> Lists:
        """Of head class `number`, the tiles to walk for each query tile ("q") or key tile ("k")."""
        index = self.indices[number][side]
        kinds = torch.nn.functional.pad(self.kinds[number], (0, 1))
        found = kinds.index_select(1, index.pairs.reshape(-1))
        found = found.reshape(kinds.shape[0], *index.pairs.shape)
        partial, full = found == PARTIAL, found == FULL
        # partial ones first: their kind is the largest
        order = torch.sort(found, dim=-1, descending=True, stable=True).indices
        tiles = index.tiles.expand(order.shape).gather(2, order)
        return Lists(partial.sum(-1), full.sum(-1), tiles)


class InputTiles:
    """The tiles that inputs decide, for one plan; what does not depend on them is worked out here.

    Raises PlanError where too many pairs of tiles are possible.
    """

    def __init__(self, plan: Plan) -> None:
        self.program = plan.program
        self.reads = Reads()
        self.questions = questions(plan, self.reads)
        self.tiles = {"q": plan.q_tiles, "k": plan.kv_tiles}
        self._devices: dict[torch.device, tuple[DeviceClass, ...]] = {}

    def __call__(self, inputs: Mapping[str, torch.Tensor], batch: int) -> Visits:
        """inputs: checked and on one device, as `boundary.Call` holds them; read by `batch`
        entries. Nothing is copied to the host.
        """
        device = next((x.device for x in inputs.values()), torch.device("cpu"))
        if device not in self._devices:
            self._devices[device] = tuple(self._put(q, device) for q in self.questions)
        classes = self._devices[device]
        with torch.no_grad():
            kinds = tuple(_kinds(c, inputs, batch) for c in classes)
        rows, columns, indices = zip(
            *((c.rows, c.columns, c.indices) for c in classes), strict=True
        )
        return Visits(kinds, rows, columns, indices)

    def _put(self, question: ClassQuestion, device: torch.device) -> DeviceClass:
        pairs = question.pairs
        one = len(question.blocks) == 1
        return DeviceClass(
            _tensor(pairs.rows, device),
            _tensor(pairs.columns, device),
            None if one else _tensor(question.order, device),
            _tensor(pairs.kinds == FULL, device),
            tuple(_put_block(b, self.reads, device) for b in question.blocks),
            {s: _index(pairs, s, n, device) for s, n in self.tiles.items()},
        )


def input_tiles(plan: Plan, batch: int | None = None, **inputs: Any) -> Visits:
    """The tiles to visit under these inputs (tensors on one device, or arrays).

    batch: entries to decide, where no input has a batch dimension to tell (default 1). Raises
    BindError where an input does not fit, PlanError. For many calls keep an `InputTiles`.
    """
    if not isinstance(plan, Plan):
        raise BindError(f"input_tiles takes a plan, not {type(plan).__name__}")
    program = plan.program
    shapes = [(a.dims, tuple(getattr(inputs.get(a.name), "shape", ()))) for a in program.inputs]
    given = [n for dims, shape in shapes for d, n in zip(dims, shape, strict=False) if d == "batch"]
    count = given[0] if given else 1 if batch is None else whole("batch", batch, least=0)
    if batch is not None and count != batch:
        raise BindError(f"the inputs have batch {count}, not {batch}")
    devices = [x.device for x in inputs.values() if isinstance(x, torch.Tensor)]
    device = devices[0] if devices else torch.device("cpu")
    return InputTiles(plan)(check_inputs(program, count, device, inputs), count)


def _kinds(c: DeviceClass, inputs: Mapping[str, torch.Tensor], batch: int) -> torch.Tensor:
    """int8 (batch, pairs)"""
    parts = []
    for on in c.blocks:
        always, possibly = TileBounds(on, inputs, batch).kinds()
        kind = torch.where(always, FULL, PARTIAL).to(torch.int8)
        kind = torch.where(possibly, kind, EMPTY)
        parts.append(kind.expand(batch, len(on.question.pairs.rows)))
    kinds = parts[0] if c.order is None else torch.cat(parts, 1).index_select(1, c.order)
    return torch.where(c.full, FULL, kinds)


def _tensor(x: np.ndarray, device: torch.device) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(x)).to(device)


def _put_block(question: BlockQuestion, reads: Reads, device: torch.device) -> DeviceBlock:
    sides = {}
    for name, segment, at in (
        ("q", question.block.queries, question.pairs.rows),
        ("k", question.block.keys, question.pairs.columns),
    ):
        lanes = question.lanes[name]
        flat = np.arange(segment.tokens)
        plain = lanes.size == flat.size and bool((lanes.reshape(-1) == flat).all())
        sides[name] = TokenTiles(
            {key: _tensor(c, device) for key, c in positions(segment, name, flat).items()},
            segment.tokens,
            None if plain else _tensor(lanes.reshape(-1), device),
            (lanes.shape[0], lanes.shape[1]),
            _tensor(at, device),
        )
    fixed = {
        node: (_tensor(kinds == FULL, device)[None], _tensor(kinds != EMPTY, device)[None])
        for node, kinds in question.fixed.items()
    }
    return DeviceBlock(question, reads, DeviceSpace(device), sides, fixed)


def _index(pairs: Pairs, side: str, tiles: int, device: torch.device) -> Index:
    own, other = (pairs.rows, pairs.columns) if side == "q" else (pairs.columns, pairs.rows)
    order = np.argsort(own, kind="stable")
    own, other = own[order], other[order]
    counts = np.bincount(own, minlength=tiles)
    within = np.arange(len(own)) - np.repeat(np.cumsum(counts) - counts, counts)
    shape = (tiles, max(int(counts.max()), 1))
    numbers = np.full(shape, len(own))
    numbers[own, within] = order
    ends = np.zeros(shape, dtype=np.int64)
    ends[own, within] = other
    return Index(_tensor(numbers, device), _tensor(ends, device))
