"""The torch backend: attention driven by the plan. The default on a CPU, forward and backward.

Rows that are equal up to a translation run together (`groups`), along strips of keys that they
share (`torch_strips`): compiled where the machine, the type and the scores allow it
(`native_attention`), else in plain tensor operations, a few products at a time (`torch_walk`).
Memory beyond inputs, outputs and their gradients is bounded by the keys of a head for each core, or
by `BUDGET` and the longest strip.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
import torch

from maskdsl.errors import PlanError
from maskdsl.planner.boxes import EMPTY, FULL
from maskdsl.planner.plan import Plan
from maskdsl.runtime import native_attention
from maskdsl.runtime.boundary import Call
from maskdsl.runtime.failures import raise_at_call
from maskdsl.runtime.groups import OPEN_SHAPE, Group, Grouping
from maskdsl.runtime.input_tiles import InputTiles, Visits
from maskdsl.runtime.native_strips import Piece, Strips
from maskdsl.runtime.sink_gradients import add_sink
from maskdsl.runtime.torch_backward import Given, Gradients, KeySums, add_gradients
from maskdsl.runtime.torch_forward import attend
from maskdsl.runtime.torch_masks import Masks
from maskdsl.runtime.torch_scores import InputGradients, Scores
from maskdsl.runtime.torch_space import sink_of
from maskdsl.runtime.torch_strips import Strip, even, strips_of, together
from maskdsl.runtime.torch_walk import Laid, Walk
from maskdsl.runtime.torch_workers import Task, run_all, workers


@dataclass(frozen=True)
class Line:
    """A group and its strips; even: of each, whether scores are the same in all rows."""

    group: Group
    strips: tuple[Strip, ...]
    even: tuple[bool, ...]


class Lines:
    """Of one head class. heads: of the program."""

    def __init__(self, lines: Sequence[Line], scores: Scores, heads: int) -> None:
        self.all = lines
        self._scores, self._heads = scores, heads

    @property
    def queries(self) -> int:
        return sum(s.queries.count for line in self.all for s in line.strips)

    @property
    def decided(self) -> bool:
        """Whether the call decides any pair."""
        return any(line.group.decided for line in self.all)

    @cached_property
    def compiled(self) -> Strips:
        """As the compiled part takes them."""
        pieces = [
            Piece(line.group, strip, even)
            for line in self.all
            for strip, even in zip(line.strips, line.even, strict=True)
        ]
        return native_attention.laid_out(pieces, self._scores, self._heads)


class TorchBackend:
    """Attention under one plan, and its gradients. scale: of the products."""

    def __init__(self, plan: Plan, scale: float) -> None:
        self.plan = plan
        self.program = plan.program
        self.scale = scale
        self._scores = Scores(plan.program)
        self._groupings = [Grouping(plan, c) for c in plan.head_classes]
        self._tiles = _input_tiles(plan) if any(g.varies for g in self._groupings) else None
        self._planned = [
            None if g.varies and self._tiles else self._lines(g.planned()) for g in self._groupings
        ]
        queries = self.program.query_tokens
        # whether one call of the compiled part gives all gradients of keys
        self._once = (
            len(self._planned) == 1
            and all(x is not None and x.queries and not x.decided for x in self._planned)
            and self._scores.shapes is not None
            and not self._scores.shapes.planes
        )
        self._whole = all(x is not None and x.queries == queries for x in self._planned)

    def forward(self, call: Call) -> tuple[torch.Tensor, torch.Tensor]:
        """(out, lse): (batch, heads, queries, value_dim) in q's dtype; (batch, heads, queries) in
        float32 (float64 for float64).
        """
        raise_at_call(self.program, call)
        batch, heads, queries, _ = call.q.shape
        out = self._blank((batch, heads, queries, call.v.shape[3]), call.q)
        lse = call.q.new_full((batch, heads, queries), -math.inf, dtype=_compute(call))
        every = torch.arange(heads, device=call.q.device)
        for b, walks in self._walks(call):
            sink = sink_of(self.program, call, b, every, lse.dtype)
            if sink is not None:
                lse[b] = sink[:, None]  # what a query without keys has
            for walk, lines in walks:
                o, l = walk.heads.queries(out[b]), walk.heads.queries(lse[b])
                own = None if sink is None else sink[walk.heads.heads]
                if native_attention.serves(call.q, self._scores):
                    native_attention.attend(walk, lines.compiled, own, o, l)
                else:
                    _attend_all(walk, lines.all, own, o, l)
                walk.heads.put(out[b], o)
                walk.heads.put(lse[b], l)
        return out, lse

    def gradients(
        self, call: Call, out: torch.Tensor, lse: torch.Tensor, do: torch.Tensor,
        grad_lse: torch.Tensor, wanted: tuple[str, ...],
    ) -> list[torch.Tensor | None]:  # fmt: skip
        """Of q, k, v and of each input: None where it is not wanted, or decides only which keys are
        kept.
        """
        compute = _compute(call)
        inputs = InputGradients(call, wanted, compute)
        plain = wanted and self._scores.any
        compiled = not plain and native_attention.serves(call.q, self._scores, backward=True)
        dense = all(x.stride(-1) == 1 for x in (call.k, call.v))
        once = compiled and self._once and dense
        given = out, lse, do, grad_lse
        dq = self._blank(call.q.shape, call.q)
        dk, dv = (
            torch.empty_like(x) if once else torch.zeros_like(x, dtype=compute)
            for x in (call.k, call.v)
        )
        for b, walks in self._walks(call):
            if not compiled or wanted:
                delta = torch.linalg.vecdot(do[b].to(compute), out[b].to(compute)) - grad_lse[b]
                add_sink(inputs, self.program, call, b, lse[b], delta)
            for walk, lines in walks:
                heads = walk.heads
                own_dq = heads.queries(dq[b])
                if compiled:
                    rows = native_attention.Given(*(heads.queries(x[b]) for x in given))
                    sums = [dk[b], dv[b]] if once else _zeros_like_keys(walk)
                    into = native_attention.Gradients(own_dq, sums[0], sums[1], not once)
                    native_attention.differentiate(walk, lines.compiled, rows, into)
                else:
                    own = Given(*(heads.queries(x) for x in (do[b], lse[b], delta)))
                    sums = _differentiate_all(walk, lines.all, own, own_dq, inputs)
                heads.put(dq[b], own_dq)
                if not once:
                    heads.add(dk[b], sums[0])
                    heads.add(dv[b], sums[1])
        named = (call.q, call.k, call.v)
        found = [x.to(g.dtype) for x, g in zip((dq, dk, dv), named, strict=True)]
        return [*found, *(inputs.of(n) for n in call.inputs)]

    def _blank(self, shape: Sequence[int], like: torch.Tensor) -> torch.Tensor:
        """For what rows write: zeros where some queries may lie in no row."""
        return like.new_empty(shape) if self._whole else like.new_zeros(shape)

    def _walks(self, call: Call) -> Iterator[tuple[int, list[tuple[Walk, Lines]]]]:
        """Per batch entry, its head classes with the lines to walk."""
        visits = self._tiles(call.inputs, call.q.shape[0]) if self._tiles else None
        classes = list(enumerate(self.plan.head_classes))
        decided: dict[int, tuple[torch.Tensor, Lines]] = {}
        for b in range(call.q.shape[0]):
            found = []
            for i, c in classes:
                lines = self._planned[i]
                if lines is None:
                    assert visits is not None
                    kinds = visits.kinds[i][b]
                    if i not in decided or not torch.equal(decided[i][0], kinds):
                        decided[i] = kinds, self._decided(i, visits, kinds)
                    lines = decided[i][1]
                walk = Walk(self.program, c.heads, c.keeps, self._scores, self.scale, call, b)
                found.append((walk, lines))
            yield b, found

    def _decided(self, number: int, visits: Visits, kinds: torch.Tensor) -> Lines:
        """The lines of a head class where a call decides the kinds of tiles, int8 (pairs,)."""
        seen = kinds != EMPTY
        row, tile, kind = (
            x[seen].cpu().numpy() for x in (visits.rows[number], visits.columns[number], kinds)
        )
        shape = np.where(kind == FULL, -1, OPEN_SHAPE)
        return self._lines(self._groupings[number].groups(row, tile, shape))

    def _lines(self, groups: list[Group]) -> Lines:
        found = []
        for group in map(together, groups):
            strips = tuple(strips_of(group))
            scored = self._scores.any and self._scores.alike
            alike = [scored and even(group, s, self.program) for s in strips]
            found.append(Line(group, strips, tuple(alike)))
        return Lines(found, self._scores, self.program.heads)


def _attend_all(
    walk: Walk, lines: Sequence[Line], sink: torch.Tensor | None,
    out: torch.Tensor, lse: torch.Tensor,
) -> None:  # fmt: skip
    at_once = workers(walk.q.device)
    count = len(walk.heads.kv) * sum(len(x.strips) for x in lines)
    run_all(_forward_tasks(walk, lines, sink, out, lse), at_once if count >= at_once else 1)


def _forward_tasks(
    walk: Walk, lines: Sequence[Line], sink: torch.Tensor | None,
    out: torch.Tensor, lse: torch.Tensor,
) -> Iterator[Task]:  # fmt: skip
    every = walk.split(len(walk.heads.kv))
    for line in lines:
        masks = Masks(line.group, walk.keeps, walk.q.device, walk.dtype)
        for strip, alike in zip(line.strips, line.even, strict=True):
            for heads, own in every:
                yield partial(
                    _attend, own, line.group, strip, masks, alike,
                    None if sink is None else sink[heads], out[heads], lse[heads],
                )  # fmt: skip


def _attend(
    walk: Walk, group: Group, strip: Strip, masks: Masks, alike: bool,
    sink: torch.Tensor | None, out: torch.Tensor, lse: torch.Tensor,
) -> None:  # fmt: skip
    attend(Laid(walk, group, strip, masks, alike), sink, out, lse)


def _zeros_like_keys(walk: Walk) -> list[torch.Tensor]:
    """For sums of gradients of the walk's keys and values."""
    return [x.new_zeros(x.shape, dtype=walk.dtype) for x in (walk.k, walk.v)]


def _differentiate_all(
    walk: Walk, lines: Sequence[Line], given: Given, dq: torch.Tensor, inputs: InputGradients
) -> list[torch.Tensor]:
    """Gradients of the walk's keys and values."""
    parts, tasks = [], []
    # inputs have one sum
    for part, one in walk.split(1 if inputs.wanted else workers(walk.q.device)):
        sums = KeySums(one.k, walk.dtype), KeySums(one.v, walk.dtype)
        parts.append(Gradients(dq[part], sums[0], sums[1], inputs))
        own = Given(given.do[part], given.lse[part], given.delta[part])
        tasks.append(partial(_differentiate, one, lines, own, parts[-1]))
    run_all(tasks, len(tasks))
    return [torch.cat(x) for x in zip(*((p.dk.total(), p.dv.total()) for p in parts), strict=True)]


def _differentiate(walk: Walk, lines: Sequence[Line], given: Given, found: Gradients) -> None:
    for line in lines:
        masks = Masks(line.group, walk.keeps, walk.q.device, walk.dtype)
        for strip, alike in zip(line.strips, line.even, strict=True):
            add_gradients(Laid(walk, line.group, strip, masks, alike), given, found)


def _input_tiles(plan: Plan) -> InputTiles | None:
    """What decides tiles at a call, unless too many are possible: then all of those are visited."""
    try:
        return InputTiles(plan)
    except PlanError:
        return None


def _compute(call: Call) -> torch.dtype:
    return torch.float64 if call.q.dtype == torch.float64 else torch.float32
