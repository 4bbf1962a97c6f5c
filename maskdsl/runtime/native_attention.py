"""Strips of the torch backend by its compiled part: forward and backward, head by head, each on a
core of its own.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from maskdsl.ir.program import Program
from maskdsl.runtime import native_library
from maskdsl.runtime.native_library import TYPES, compiler, library
from maskdsl.runtime.native_planes import Held, Planes
from maskdsl.runtime.native_strips import (
    CCall,
    CMask,
    CScores,
    CStrip,
    CTensor,
    Piece,
    Strips,
    packed,
)
from maskdsl.runtime.torch_masks import Masks
from maskdsl.runtime.torch_pairs import Pairs
from maskdsl.runtime.torch_scores import Scores
from maskdsl.runtime.torch_strips import cut
from maskdsl.runtime.torch_walk import Laid, Walk
from maskdsl.runtime.torch_workers import run_all, workers

HELD = 2**26  # bytes of numbers and masks that a call decides
PAIRS = 2**21  # of a strip that a call decides something for: worked out at once
SHARES = 4  # of the work, for each core, where heads alone do not share it evenly

Prepared = tuple[int, int, ctypes.Array[CStrip], "ctypes.Array[CScores] | None", Held]


def serves(x: torch.Tensor, scores: Scores, backward: bool = False) -> bool:
    """Whether tensors like x can run compiled on this machine, with these scores."""
    if x.device.type != "cpu" or scores.shapes is None:
        return False
    return library(x.dtype, scores.shapes.text, backward) is not None


def expected(program: Program, dtype: torch.dtype) -> bool:
    """Whether attention runs compiled, unless the compiler fails. Then it begins to build."""
    shapes = Scores(program).shapes
    if shapes is None or dtype not in TYPES or compiler() is None:
        return False
    native_library.prepare(dtype, shapes.text)
    return True


def laid_out(strips: Sequence[Piece], scores: Scores, heads: int) -> Strips:
    """Strips, cut where a call works out something for each of their rows, of so many heads."""
    assert scores.shapes is not None
    found = []
    for group, strip, even in strips:
        pairs = len(group.query_offsets) * strip.length
        if scores.shapes.over_pairs and not even:
            pairs *= heads
        elif not group.decided:
            pairs = 0
        rows = max(1, PAIRS // pairs) if pairs else strip.rows
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
    _run(walk, strips, call, False, shares)


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
    _run(walk, strips, call, True, 1)


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


def _run(walk: Walk, strips: Strips, call: CCall, backward: bool, shares: int) -> None:
    assert walk.scores.shapes is not None
    compiled: Any = library(walk.q.dtype, walk.scores.shapes.text, backward)
    function, cores = compiled.maskdsl_run, workers(walk.q.device)
    spare = (ctypes.c_void_p * cores)()
    call.spares, call.spare = cores, ctypes.addressof(spare)

    def task(head: int, first: int, end: int) -> None:
        if function(ctypes.addressof(call), head, first, end):
            raise MemoryError("no memory is left for attention on this CPU")

    prepared = _prepared(walk, strips, backward)
    try:
        for first, end, array, scores, held in prepared:
            # where this is interrupted, tasks that run read them to their end
            call.given = spare, strips, array, scores, held
            call.strips = ctypes.addressof(array)
            call.scores = None if scores is None else ctypes.addressof(scores)
            parts = strips.shares(first, end, shares)
            tasks = [partial(task, h, a, b) for h in range(len(walk.heads.kv)) for a, b in parts]
            run_all(tasks, min(cores, len(tasks)))
    finally:
        compiled.maskdsl_end(ctypes.addressof(call))


def _prepared(walk: Walk, strips: Strips, slopes: bool) -> Iterator[Prepared]:
    """Strips from one to another with all that the call decides, as many as may be held."""
    if not strips.pieces:
        return
    if not walk.scores.any and not any(x.group.decided for x in strips.pieces):
        yield 0, len(strips.pieces), strips.array, None, Held()
        return
    array = (CStrip * len(strips.pieces))(*strips.array)
    scores = (CScores * len(strips.pieces))()
    first, held, planes = 0, Held(), Planes(walk, slopes)
    for i, (group, strip, even) in enumerate(strips.pieces):
        masks = Masks(group, walk.keeps, walk.q.device, walk.dtype)
        laid = Laid(walk, group, strip, masks, even)
        every = slice(0, strip.length)
        if walk.scores.any:
            scores[i] = planes.of(laid, held)
        if group.decided:
            mask = _decided(walk, laid.pairs(laid.whole(strip.rows), every), strips.masks[i], held)
            array[i].mask = ctypes.addressof(mask)
        if held.bytes > HELD or i + 1 == len(strips.pieces):
            yield first, i + 1, array, scores if walk.scores.any else None, held
            first, held = i + 1, Held()


def _decided(
    walk: Walk, pairs: Pairs, planned: ctypes.Array[CMask], held: Held
) -> ctypes.Array[CMask]:
    """The masks of a strip; where the call decides, as it does."""
    found = []
    for part, mask in zip(pairs.group.partial, planned, strict=True):
        if pairs.group.open(part):
            truth = pairs.kept(walk.keeps, part).numpy()
            truth = np.broadcast_to(truth, (*truth.shape[:-1], part.stop - part.start))
            bits = held(packed(truth))
            over = np.broadcast_to(bits, (*pairs.shape, bits.shape[-1]))
            mask = CMask(part.start, part.stop, bits.ctypes.data, *over.strides[:4])
        found.append(mask)
    return held((CMask * len(found))(*found))
