"""What a condition can be on pairs of tiles, from tensors of inputs: bounds that never leave the
device (see `tile_rules`).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from maskdsl.ir.evaluate import evaluate, evaluate_all
from maskdsl.ir.nodes import INT_MAX, INT_MIN, Node
from maskdsl.planner.conditions import Conjunction, Reads, alike, is_equality
from maskdsl.planner.inputs import BlockQuestion
from maskdsl.runtime.renamed import among, first_positions
from maskdsl.runtime.tile_rules import RULES, Bound, hull, joined
from maskdsl.runtime.torch_space import TorchSpace

MAX_READS = 16  # elements of an array that are read for one pair of tiles

DTYPES = {"int": torch.int64, "float": torch.float64, "bool": torch.bool}
ENDS: dict[torch.dtype, tuple[Any, Any]] = {
    torch.int64: (INT_MAX, INT_MIN),
    torch.float64: (math.inf, -math.inf),
}


class DeviceSpace(TorchSpace):
    """Constants are tensors that the device fills once: none is copied there in a call."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(device, torch.float64)
        self.constants: dict[tuple[Any, str], torch.Tensor] = {}

    def constant(self, value: Any, type_: str) -> torch.Tensor:
        key = (value, type_)
        if key not in self.constants:
            filled = torch.full((1,), value, dtype=DTYPES[type_], device=self.device)
            self.constants[key] = filled
        return self.constants[key]


@dataclass(frozen=True)
class TokenTiles:
    """One side of a block on a device.

    coordinates: int64 (tokens,) per axis. order: int64 (tiles * lanes,), the token in each lane, or
    None where tokens lie tile after tile. at: int64 (pairs,), the tile of each pair.
    """

    coordinates: dict[tuple[str, str], torch.Tensor]
    tokens: int
    order: torch.Tensor | None
    shape: tuple[int, int]
    at: torch.Tensor

    def lanes(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, tokens) as (batch, tiles, lanes)"""
        x = x if self.order is None else x.index_select(1, self.order)
        return x.reshape(x.shape[0], *self.shape)

    def pairs(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, tiles) as (batch, pairs)"""
        return x.index_select(1, self.at)


@dataclass(frozen=True)
class DeviceBlock:
    """A block's question on a device: its sides, and (always, possibly) of its fixed conditions."""

    question: BlockQuestion
    reads: Reads
    space: DeviceSpace
    sides: dict[str, TokenTiles]
    fixed: dict[Node, Bound]


@dataclass(frozen=True, eq=False)
class Lanes:
    """The tokens that matter, None for all: bool (batch, tokens) of each side, and the same as
    (batch, tiles, lanes); and what is known of them.
    """

    tokens: dict[str, torch.Tensor | None]
    lanes: dict[str, torch.Tensor | None]
    known: dict[Node, Bound] = field(default_factory=dict)


class TileBounds:
    """Bounds of the conditions of one block at one call."""

    def __init__(self, on: DeviceBlock, inputs: Mapping[str, torch.Tensor], batch: int) -> None:
        self.on = on
        self.reads = on.reads
        self.inputs = inputs
        device = on.space.device
        self.batch = torch.arange(batch, device=device)[:, None]
        self.values: dict[Node, torch.Tensor] = {}
        for side, roots in on.question.roots.items():
            leaves: dict[Any, Any] = {"batch": self.batch}
            leaves |= on.sides[side].coordinates if side else {}
            count = on.sides[side].tokens if side else 1
            found = evaluate_all(roots, leaves, inputs, on.space)
            for node, x in zip(roots, found, strict=True):
                rows = x.shape[0] if x.ndim > 1 else 1
                self.values[node] = x.expand(rows, count)

    def kinds(self) -> Bound:
        """(always, possibly) of the keep expression, over all pairs."""
        everything: dict[str, torch.Tensor | None] = {"q": None, "k": None}
        return self._all_of(self.on.question.root, Lanes(everything, everything))

    def _all_of(self, c: Conjunction, outer: Lanes) -> Bound:
        always, possibly = [], []
        lanes = outer
        for side, condition in (("q", c.queries), ("k", c.keys)):
            if condition is None:
                continue
            tiles = self.on.sides[side]
            holds = self.values[condition].expand(-1, tiles.tokens)
            mask = outer.tokens[side]
            matter = holds if mask is None else mask & holds
            every = holds if mask is None else holds | ~mask
            lanes = self._only(lanes, side, matter)
            some = lanes.lanes[side]
            assert some is not None
            always.append(tiles.pairs(tiles.lanes(every).all(-1)))
            possibly.append(tiles.pairs(some.any(-1)))
        bounds = [self.on.fixed[c.fixed]] if c.fixed is not None else []
        for part in c.parts:
            if isinstance(part, Conjunction):
                bounds.append(self._all_of(part, lanes))
            else:
                bounds.append(self._bound(part, lanes))
        low = joined([*always, *(b[0] for b in bounds)])
        high = joined([*possibly, *(b[1] for b in bounds)])
        return (~high, ~low) if c.negated else (low, high)

    def _only(self, lanes: Lanes, side: str, tokens: torch.Tensor) -> Lanes:
        """With these tokens of a side."""
        spread = self.on.sides[side].lanes(tokens)
        return Lanes({**lanes.tokens, side: tokens}, {**lanes.lanes, side: spread})

    def _bound(self, root: Node, lanes: Lanes) -> Bound:
        known, stack = lanes.known, [root]
        while stack:
            node = stack[-1]
            todo = [n for n in self._needs(node) if n not in known]
            if todo:
                stack += todo
                continue
            stack.pop()
            if node not in known:
                known[node] = self._rule(node, lanes)
        return known[root]

    def _needs(self, node: Node) -> tuple[Node, ...]:
        if self.reads.sides(node) != "qk" or is_equality(node, self.reads):
            return ()
        if node.op == "linear":
            return tuple(part for _, part in self.reads.summands(node))
        return node.args

    def _rule(self, node: Node, lanes: Lanes) -> Bound:
        side = self.reads.sides(node)
        if side == "":
            return self.values[node], self.values[node]
        if side != "qk":
            return self._extent(self.values[node], side, lanes.lanes[side])
        if is_equality(node, self.reads):
            return self._equality(node, lanes)
        if node.op == "linear":
            return self._sum(node, lanes)
        if node.op == "load":
            return self._load(node, lanes)
        rule = RULES.get(node.op)
        found = rule(node, [lanes.known[a] for a in node.args]) if rule else None
        return found or self._unknown(node)

    def _extent(self, x: torch.Tensor, side: str, mask: torch.Tensor | None) -> Bound:
        """Least and greatest of (batch, tokens) over the tokens that matter, per pair of tiles."""
        tiles = self.on.sides[side]
        lanes = tiles.lanes(x)
        if x.dtype == torch.bool:
            low = (lanes if mask is None else lanes | ~mask).all(-1)
            high = (lanes if mask is None else lanes & mask).any(-1)
        elif mask is None:
            low, high = torch.aminmax(lanes, dim=-1)
        else:
            most, least = ENDS[x.dtype]
            low = torch.where(mask, lanes, most).amin(-1)
            high = torch.where(mask, lanes, least).amax(-1)
        return tiles.pairs(low), tiles.pairs(high)

    def _equality(self, node: Node, lanes: Lanes) -> Bound:
        """Equal ids: each id is renamed to where it first stands, so that ids of neighbours are
        near each other whatever they are called; what no token of the other side equals is left
        out.
        """
        names, total = self._names(*node.args)
        every, only = [], lanes
        for side, other in (("q", "k"), ("k", "q")):
            theirs = lanes.tokens[other]
            if theirs is None and names[side] is names[other]:
                continue  # each token is on the other side too
            met = among(names[side], names[other], theirs, total)
            mask = lanes.tokens[side]
            tiles = self.on.sides[side]
            every.append(tiles.lanes(met if mask is None else met | ~mask).all(-1))
            every[-1] = tiles.pairs(every[-1])
            only = self._only(only, side, met if mask is None else met & mask)
        q_low, q_high = self._extent(names["q"], "q", only.lanes["q"])
        k_low, k_high = self._extent(names["k"], "k", only.lanes["k"])
        always = joined([(q_high <= k_low) & (k_high <= q_low), *every])
        return always, (q_low <= k_high) & (k_low <= q_high)

    def _names(self, query: Node, key: Node) -> tuple[dict[str, torch.Tensor], int]:
        """By side, the ids of (batch, tokens) renamed; and how many names there may be."""
        x, y = self.values[query], self.values[key]
        block = self.on.question.block
        if block.queries == block.keys and alike(query, key):
            found = first_positions(x)
            return {"q": found, "k": found}, x.shape[1]
        rows, keys = max(x.shape[0], y.shape[0]), y.shape[1]
        found = first_positions(torch.cat([y.expand(rows, -1), x.expand(rows, -1)], 1))
        return {"q": found[:, keys:], "k": found[:, :keys]}, found.shape[1]

    def _sum(self, node: Node, lanes: Lanes) -> Bound:
        constant, coefficients = node.value
        if max(map(abs, (constant, *coefficients))) > INT_MAX:
            return self._unknown(node)
        low: Any = constant
        high: Any = constant
        summands = [(c, *lanes.known[part]) for c, part in self.reads.summands(node)]
        for c, a, b in summands:
            low = low + c * (a if c > 0 else b)
            high = high + c * (b if c > 0 else a)
        if node.low >= INT_MIN and node.high <= INT_MAX:
            return low, high
        size: Any = abs(float(constant))
        for c, a, b in summands:
            size = size + abs(c) * torch.maximum(a.double().abs(), b.double().abs())
        fits = size < 2.0**62
        return torch.where(fits, low, INT_MIN), torch.where(fits, high, INT_MAX)

    def _load(self, node: Node, lanes: Lanes) -> Bound:
        """Elements at indices that are constant within the tiles, or take few values there."""
        bounds = [
            tuple(x.clamp(n.low, n.high) for x in lanes.known[n]) for n in node.args
        ]  # of tiles without a token that matters, indices mean nothing
        spreads = [self.on.question.spreads.get(n, 1) for n in node.args]
        if math.prod(spreads) > MAX_READS:
            return self._unknown(node)
        names = tuple(
            Node("coord", "int", (), ("at", str(i)), n.low, n.high) for i, n in enumerate(node.args)
        )
        read = Node("load", node.type, names, node.value)
        found: list[torch.Tensor] = []
        for steps in itertools.product(*(range(n) for n in spreads)):
            leaves = {
                name.value: torch.minimum(a + step, b) if step else a
                for name, (a, b), step in zip(names, bounds, steps, strict=True)
            }
            found.append(evaluate(read, leaves, self.inputs, self.on.space))
        low = high = found[0]
        for x in found[1:]:
            low, high = hull((low, high), (x, x))
        whole = self._unknown(node)
        for n, (a, b) in zip(node.args, bounds, strict=True):
            if self.reads.sides(n) and n not in self.on.question.spreads:
                low, high = torch.where(a == b, low, whole[0]), torch.where(a == b, high, whole[1])
        return low, high

    def _unknown(self, node: Node) -> Bound:
        ends: tuple[Any, Any] = (False, True)
        if node.type == "int":
            ends = max(node.low, INT_MIN), min(node.high, INT_MAX)
        elif node.type == "float":
            ends = math.nan, math.nan
        low, high = (self.on.space.constant(x, node.type)[None] for x in ends)
        return low, high
