"""Strips and calls as the compiled part of the torch backend (`native/call.h`) reads them."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from maskdsl.runtime.groups import Group
from maskdsl.runtime.torch_strips import Strip, Tokens

AHEAD, BEHIND = 16, 48  # ones before and after the bits of a mask
LEAST_RUN = 48  # keys, in the mean, that are read where they lie

_Int, _Pointer = ctypes.c_int64, ctypes.c_void_p


class CMask(ctypes.Structure):
    _fields_ = (
        ("first", _Int), ("end", _Int), ("bits", _Pointer), ("head", _Int), ("row", _Int),
        ("each", _Int), ("query", _Int),
    )  # fmt: skip


class CRun(ctypes.Structure):
    _fields_ = (("key", _Int), ("count", _Int))


class CStrip(ctypes.Structure):
    _fields_ = (
        ("rows", _Int), ("size", _Int), ("step", _Int), ("length", _Int), ("query", _Int),
        ("queries", _Pointer), ("key", _Int), ("keys", _Int), ("key_at", _Pointer), ("runs", _Int),
        ("run", _Pointer), ("masks", _Int), ("mask", _Pointer),
    )  # fmt: skip


class CPlane(ctypes.Structure):
    _fields_ = (
        ("values", _Pointer), ("head", _Int), ("row", _Int), ("each", _Int), ("query", _Int),
        ("key", _Int),
    )  # fmt: skip


class CScored(ctypes.Structure):
    _fields_ = (("first", _Int), ("end", _Int), ("number", _Int), ("planes", _Pointer))


class CScores(ctypes.Structure):
    _fields_ = (("count", _Int), ("scored", _Pointer))


class CTensor(ctypes.Structure):
    _fields_ = (("data", _Pointer), ("head", _Int), ("each", _Int), ("token", _Int))


class CCall(ctypes.Structure):
    _fields_ = (
        ("each", _Int), ("tokens", _Int), ("dim", _Int), ("value_dim", _Int),
        ("scale", ctypes.c_double),
        *((x, CTensor) for x in ("q", "k", "v", "out", "lse")), ("sink", _Pointer),
        *((x, CTensor) for x in ("d_out", "d_lse", "dq", "dk", "dv")), ("add", _Int),
        ("strips", _Pointer), ("scores", _Pointer), ("spares", _Int), ("spare", _Pointer),
    )  # fmt: skip


class Piece(NamedTuple):
    """A strip of a group. even: whether what scores read is the same in all rows."""

    group: Group
    strip: Strip
    even: bool


class Strips:
    """Strips of one head class, laid out. work: of each, in pairs of a query and a key."""

    def __init__(self, pieces: Sequence[Piece]) -> None:
        self.pieces = [Piece(*x) for x in pieces]
        self.work = [s.rows * len(g.query_offsets) * s.length for g, s, _ in self.pieces]
        self.masks: list[ctypes.Array[CMask]] = []  # of each
        self._bits: list[np.ndarray] = []
        self._runs: list[ctypes.Array[CRun]] = []
        of: dict[int, ctypes.Array[CMask]] = {}
        found = []
        for group, strip, _ in self.pieces:
            if id(group) not in of:
                of[id(group)] = self._masks(group)
            mask = of[id(group)]
            self.masks.append(mask)
            query, queries = _places(strip.queries)
            key, key_at = _places(strip.keys)
            run = _runs(strip)
            if run:
                self._runs.append(run)
                key, key_at = run[0].key, None
            size, count = len(group.query_offsets), strip.keys.count
            rows = strip.rows, size, strip.step, strip.length
            ends = len(run), ctypes.addressof(run), len(mask), ctypes.addressof(mask)
            found.append(CStrip(*rows, query, queries, key, count, key_at, *ends))
        self.array = (CStrip * len(found))(*found)

    def shares(self, first: int, end: int, count: int) -> list[tuple[int, int]]:
        """The strips from `first` to `end` in about so many shares, alike in work."""
        done = np.cumsum(self.work[first:end])
        bounds = np.searchsorted(done, done[-1] * np.arange(1, count) / count) + 1
        bounds = first + np.unique([0, *bounds, end - first])
        return list(zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True))

    def _masks(self, group: Group) -> ctypes.Array[CMask]:
        found = []
        for part in group.partial:
            # a call gives those that it decides
            bits = packed(group.kept(part if not group.open(part) else slice(0, 0)))
            self._bits.append(bits)
            found.append(CMask(part.start, part.stop, bits.ctypes.data, 0, 0, 0, bits.strides[0]))
        return (CMask * len(found))(*found)


def _runs(strip: Strip) -> ctypes.Array[CRun]:
    """Of the keys of a strip of one row, where those that follow each other are many."""
    if strip.rows > 1 or isinstance(strip.keys.where, slice):
        return (CRun * 0)()
    places = strip.keys.places.numpy()
    starts = np.flatnonzero(np.diff(places, prepend=-2) != 1)
    if len(places) < LEAST_RUN * len(starts):
        return (CRun * 0)()
    counts = np.diff(starts, append=len(places))
    runs = zip(places[starts].tolist(), counts.tolist(), strict=True)
    return (CRun * len(starts))(*(CRun(*x) for x in runs))


def _places(tokens: Tokens) -> tuple[int, int | None]:
    """(the first, None), or (0, where a list of them lies)."""
    if isinstance(tokens.where, slice):
        return int(tokens.where.start), None
    return 0, tokens.where.data_ptr()


def packed(kept: np.ndarray) -> np.ndarray:
    """bool (..., queries, keys) as bits, uint8 (..., queries, bytes)."""
    full = np.ones((*kept.shape[:-1], AHEAD + kept.shape[-1] + BEHIND), bool)
    full[..., AHEAD:-BEHIND] = kept
    return np.packbits(full, axis=-1, bitorder="little")
