"""Strips of the torch backend by its compiled part: forward and backward, head by head, each on a
core of its own.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch

from maskdsl.ir.program import Program
from maskdsl.runtime.groups import Group
from maskdsl.runtime.native_library import TYPES, compiler, library
from maskdsl.runtime.native_strips import (
    CAdded,
    CAddition,
    CCall,
    CMask,
    CStrip,
    CTensor,
    Piece,
    Strips,
    packed,
)
from maskdsl.runtime.torch_masks import Masks
from maskdsl.runtime.torch_pairs import Pairs, evaluated
from maskdsl.runtime.torch_scores import Scores
from maskdsl.runtime.torch_strips import cut
from maskdsl.runtime.torch_walk import Laid, Walk
from maskdsl.runtime.torch_workers import run_all, workers

HELD = 2**26  # bytes of numbers and masks that a call decides
PAIRS = 2**21  # of a strip that a call decides something for: worked out at once
SHARES = 4  # of the work, for each core, where heads alone do not share it evenly

X = TypeVar("X")
Prepared = tuple[int, int, ctypes.Array[CStrip], "ctypes.Array[CAddition] | None", "Held"]


class Held:
    """What the compiled part is given pointers to, until it has run. bytes: of arrays."""

    def __init__(self) -> None:
        self.bytes = 0
        self._all: list[object] = []

    def __call__(self, x: X) -> X:
        self._all.append(x)
        self.bytes += int(getattr(x, "nbytes", 0))
        return x


def serves(x: torch.Tensor) -> bool:
    """Whether tensors like x can run compiled on this machine."""
    return x.device.type == "cpu" and library(x.dtype) is not None


def expected(program: Program, dtype: torch.dtype) -> bool:
    """Whether attention runs compiled, unless the compiler fails: scores only add to logits."""
    return Scores(program).only_add and dtype in TYPES and compiler() is not None


def laid_out(strips: Sequence[Piece], scored: bool) -> Strips:
    """Strips, cut where a call works out something for each of their rows."""
    found = []
    for group, strip, even in strips:
        rows = strip.rows
        if group.decided or (scored and not even):
            rows = max(1, PAIRS // (len(group.query_offsets) * strip.length))
        found += [Piece(group, x, even) for x in cut(strip, rows)]
    return Strips(found)


def attend(
    walk: Walk, strips: Strips, sink: torch.Tensor | None, out: torch.Tensor, lse: torch.Tensor
) -> None:
    """Write the rows of strips, as `torch_forward.attend` does."""
    call = _call(walk, out=out, lse=lse)
    own_sink = None if sink is None else sink.contiguous()
    call.sink = None if own_sink is None else own_sink.data_ptr()
    call.tensors.append(own_sink)
    heads, cores = len(walk.heads.kv), workers(walk.q.device)
    shares = 1 if heads % cores == 0 or heads >= SHARES * cores else -(-SHARES * cores // heads)
    _run(walk, strips, call, "maskdsl_forward", shares)


@dataclass(frozen=True)
class Given:
    """What the backward pass is given: (kv heads, heads each, tokens), out and do with a dimension
    more.
    """

    out: torch.Tensor
    lse: torch.Tensor
    do: torch.Tensor
    grad_lse: torch.Tensor


@dataclass(frozen=True)
class Gradients:
    """Where gradients go: dq (kv heads, heads each, tokens, dim), of the rows of strips; dk and dv
    (kv heads, tokens, dim), of all keys.

    add: dk and dv, which are float32 then, are added to. It must be set where a call decides
    anything for pairs: strips are then walked in several turns.
    """

    dq: torch.Tensor
    dk: torch.Tensor
    dv: torch.Tensor
    add: bool


def differentiate(walk: Walk, strips: Strips, given: Given, found: Gradients) -> None:
    """Write the gradients."""
    call = _call(
        walk, out=given.out, lse=given.lse, d_out=given.do, d_lse=given.grad_lse, dq=found.dq,
        dk=found.dk[:, None], dv=found.dv[:, None],
    )  # fmt: skip
    call.add = found.add
    _run(walk, strips, call, "maskdsl_backward", 1)


def _call(walk: Walk, **tensors: torch.Tensor) -> CCall:
    """tensors: (kv heads, heads each, tokens) or with a dimension more."""
    tensors |= {"q": walk.q, "k": walk.k[:, None], "v": walk.v[:, None]}
    call = CCall(
        each=walk.each, tokens=walk.k.shape[1], dim=walk.q.shape[3], value_dim=walk.v.shape[2],
        scale=walk.scale,
    )  # fmt: skip
    call.tensors = []  # they live as long as the call
    for name, x in tensors.items():
        dense = x if x.ndim == 3 or x.stride(3) == 1 or x.shape[3] == 1 else x.contiguous()
        setattr(call, name, CTensor(dense.data_ptr(), *dense.stride()[:3]))
        call.tensors.append(dense)
    return call


def _run(walk: Walk, strips: Strips, call: CCall, name: str, shares: int) -> None:
    function: Any = getattr(library(walk.q.dtype), name)

    def task(head: int, first: int, end: int) -> None:
        if function(ctypes.addressof(call), head, first, end):
            raise MemoryError("no memory is left for attention on this CPU")

    for first, end, array, additions, held in _prepared(walk, strips):
        # where this is interrupted, tasks that run read them to their end
        call.given = strips, array, additions, held
        call.strips = ctypes.addressof(array)
        call.additions = None if additions is None else ctypes.addressof(additions)
        parts = strips.shares(first, end, shares)
        tasks = [partial(task, h, a, b) for h in range(len(walk.heads.kv)) for a, b in parts]
        run_all(tasks, min(workers(walk.q.device), len(tasks)))


def _prepared(walk: Walk, strips: Strips) -> Iterator[Prepared]:
    """Strips from one to another with all that the call decides, as many as may be held."""
    if not strips.pieces:
        return
    if not walk.scores.any and not any(x.group.decided for x in strips.pieces):
        yield 0, len(strips.pieces), strips.array, None, Held()
        return
    array = (CStrip * len(strips.pieces))(*strips.array)
    additions = (CAddition * len(strips.pieces))()
    first, held = 0, Held()
    for i, (group, strip, even) in enumerate(strips.pieces):
        masks = Masks(group, walk.head_class, walk.q.device, walk.dtype)
        laid = Laid(walk, group, strip, masks, even)
        every = slice(0, strip.length)
        if walk.scores.any:
            step = _step(walk, group) if even else 0
            if step:
                added = _added_along(walk, group, step, held)
            else:
                added = _added(walk, laid.pairs(laid.whole(1 if even else strip.rows), every), held)
            additions[i] = CAddition(len(added), ctypes.addressof(added))
        if group.decided:
            mask = _decided(walk, laid.pairs(laid.whole(strip.rows), every), strips.masks[i], held)
            array[i].mask = ctypes.addressof(mask)
        if held.bytes > HELD or i + 1 == len(strips.pieces):
            yield first, i + 1, array, additions if walk.scores.any else None, held
            first, held = i + 1, Held()


def _added(walk: Walk, pairs: Pairs, held: Held) -> ctypes.Array[CAdded]:
    """What scores add to the logits of pairs."""
    found = []
    for columns, value in walk.scores.added(pairs, walk.space):
        keys = columns.stop - columns.start
        value = value.expand(*value.shape[:-1], keys) if value.ndim else value.expand(keys)
        value = held(value.contiguous())
        over = value.expand(*pairs.shape, keys)
        head, row, each, query, _ = over.stride()
        row = 0 if over.shape[1] == 1 else row  # the same for all
        found.append(CAdded(columns.start, columns.stop, over.data_ptr(), head, row, each, query))
    return held((CAdded * len(found))(*found))


def _step(walk: Walk, group: Group) -> int:
    """How far tokens of a row's queries, and of its keys, lie from each other, where that is one
    number along one axis; else 0.
    """
    program = walk.program
    sides = [program.queries[group.query_segment], *(program.keys[n] for n in group.segments)]
    if len(sides) != 2 or any(len(x.axes) != 1 for x in sides):
        return 0
    steps = np.concatenate([np.diff(group.query_offsets), np.diff(group.key_offsets)])
    return int(steps[0]) if len(steps) and (steps == steps[0]).all() else 0


def _added_along(walk: Walk, group: Group, step: int, held: Held) -> ctypes.Array[CAdded]:
    """What scores add where it depends on how far a key is from its query: one number for each
    diagonal of a row's pairs. From query to query it moves by one.
    """
    (number,) = group.segments
    score = walk.scores.of[group.query_segment][number]
    if score is None or score.added is None:
        return held((CAdded * 0)())
    queries, keys = walk.program.queries[group.query_segment], walk.program.keys[number]
    size, length = len(group.query_offsets), len(group.key_offsets)
    first = group.keys[0, 0] + group.key_offsets[0] - keys.offset
    first -= group.queries[0] + group.query_offsets[0] - queries.offset
    apart = int(first) + step * torch.arange(1 - size, length)
    leaves: dict[Any, Any] = {
        "batch": walk.batch,
        "head": walk.heads.heads[:, :, None],
        ("q", queries.axes[0][0]): torch.zeros((), dtype=torch.int64),
        ("k", keys.axes[0][0]): apart,
    }
    value = evaluated(score.added, leaves, walk.call.inputs, walk.space)
    value = held(value.expand(*value.shape[:-1], len(apart)).contiguous())
    head, each, _ = value.expand(*walk.heads.heads.shape, len(apart)).stride()
    at = value.data_ptr() + (size - 1) * value.element_size()
    return held((CAdded * 1)(CAdded(0, length, at, head, 0, each, -1)))


def _decided(
    walk: Walk, pairs: Pairs, planned: ctypes.Array[CMask], held: Held
) -> ctypes.Array[CMask]:
    """The masks of a strip; where the call decides, as it does."""
    found = []
    for part, mask in zip(pairs.group.partial, planned, strict=True):
        if pairs.group.open(part):
            truth = pairs.kept(walk.head_class.keeps, part).numpy()
            truth = np.broadcast_to(truth, (*truth.shape[:-1], part.stop - part.start))
            bits = held(packed(truth))
            over = np.broadcast_to(bits, (*pairs.shape, bits.shape[-1]))
            mask = CMask(part.start, part.stop, bits.ctypes.data, *over.strides[:4])
        found.append(mask)
    return held((CMask * len(found))(*found))
