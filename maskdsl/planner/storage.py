"""Plans as bytes: one file that holds everything of a plan, its classified tiles included.

The file: MAGIC, the version of the format (4 bytes, little-endian like all numbers here), a BLAKE2b
digest of what follows (32 bytes), the length of a JSON text (8 bytes), the text, and the contents
of arrays one after the other, as the text's list of (dtype, shape) says. Nothing in it is packed or
run, so that reading takes memory in proportion to its length. The digest tells damage, not forgery:
a kernel made from a plan relies on what the plan says.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import math
import struct
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from maskdsl.errors import PlanError
from maskdsl.ir.nodes import Node
from maskdsl.ir.program import Program
from maskdsl.ir.storage import Reader, Writer
from maskdsl.planner.boxes import Side
from maskdsl.planner.layout import Candidate, Layout
from maskdsl.planner.stored_trees import tree_of, tree_record
from maskdsl.planner.tiles import Grid, Tile
from maskdsl.planner.tree import Tree

if TYPE_CHECKING:
    from maskdsl.planner.plan import Patterns, Plan

MAGIC = b"\x8aMaskDSL plan\r\n\x1a"
VERSION = 1
MAX_BYTES = 2**30  # of a file
MAX_TEXT = 2**25  # of its JSON text, whose lists take more room in memory

_HEAD = struct.Struct("<16sI32s")
_LENGTH = struct.Struct("<Q")
_DTYPES = ("|b1", "|i1", "<i2", "<i4", "<i8", "<f8")
# What a text that is not what a plan writes may raise on the way to its objects.
_MALFORMED = (
    ValueError, TypeError, KeyError, IndexError, AttributeError, AssertionError, OverflowError,
    RecursionError,
)  # fmt: skip

GrowTree = Callable[[Node, Side, Side], Tree]
Grids = tuple[Grid, ...]
Classes = Iterable[tuple[tuple[int, ...], "Patterns"]]
MakePlan = Callable[[Program, str, Grids, Grids, Classes, GrowTree, tuple[Layout, ...]], "Plan"]


def save(plan: Plan, path: str | Path) -> None:
    """Write a plan to a file. Raises PlanError."""
    data = pack(plan)
    try:
        Path(path).write_bytes(data)
    except (OSError, ValueError, TypeError) as e:
        raise PlanError(f"the plan cannot be written to {path}: {_cause(e)}") from None


def read(path: str | Path) -> bytes:
    """The bytes of a plan's file. Raises PlanError."""
    try:
        file = Path(path)
        if file.exists() and not file.is_file():
            raise PlanError(f"{path} is not a file")
        with file.open("rb") as opened:
            return opened.read(MAX_BYTES + 1)
    except (OSError, ValueError, TypeError) as e:
        raise PlanError(f"the plan cannot be read from {path}: {_cause(e)}") from None


def _cause(e: Exception) -> str:
    return getattr(e, "strerror", None) or str(e)


def pack(plan: Plan) -> bytes:
    """A plan as bytes. Raises PlanError where it is too large."""
    w = Writer()
    document = {
        "program": w.program(plan.program),
        "source": plan.source,
        "q_tiles": [dataclasses.asdict(g.tile) for g in plan.q_grids],
        "kv_tiles": [dataclasses.asdict(g.tile) for g in plan.kv_grids],
        "classes": [
            {
                "heads": c.heads,
                "keeps": [[w.node(keep) for keep in row] for row in c.keeps],
                "trees": [tree_record(w, tree) for tree in c.all_trees],
            }
            for c in plan.head_classes
        ],
        "layouts": [dataclasses.asdict(x) for x in plan.layouts],
        "tables": w.tables,
    }
    arrays = [_narrowed(a) for a in w.contents]
    kinds = [[a.dtype.str, a.shape] for a in arrays]
    text = json.dumps({**document, "contents": kinds}, separators=(",", ":")).encode()
    body = b"".join([_LENGTH.pack(len(text)), text, *(a.tobytes() for a in arrays)])
    if len(text) > MAX_TEXT or _HEAD.size + len(body) > MAX_BYTES:
        raise PlanError(f"this plan is too large to store: {len(body) >> 20} MiB")
    return _HEAD.pack(MAGIC, VERSION, _digest(body)) + body


def _digest(body: bytes | memoryview) -> bytes:
    return hashlib.blake2b(body, digest_size=32).digest()


def _narrowed(data: np.ndarray) -> np.ndarray:
    """Ints in as few bits as hold them."""
    if data.dtype.kind != "i" or not data.size:
        return data
    low, high = data.min(), data.max()
    for dtype in ("|i1", "<i2", "<i4"):
        if np.iinfo(dtype).min <= low and high <= np.iinfo(dtype).max:
            return data.astype(dtype)
    return data


def unpack(data: bytes, make: MakePlan) -> Plan:
    """The plan that `pack` gave these bytes for, put together by `make`. Raises PlanError."""
    if not isinstance(data, (bytes, bytearray, memoryview)):
        raise PlanError(f"a stored plan is bytes, not {type(data).__name__}")
    if len(data) < _HEAD.size + _LENGTH.size or len(data) > MAX_BYTES:
        raise PlanError(f"this is no stored plan: {len(data)} bytes")
    magic, version, digest = _HEAD.unpack_from(data)
    if magic != MAGIC:
        raise PlanError("this is no stored plan: it does not start as one")
    if version != VERSION:
        raise PlanError(
            f"this plan was stored in version {version} of the format, and this is version "
            f"{VERSION}: make the plan anew"
        )
    body = memoryview(data)[_HEAD.size :]
    if _digest(body) != digest:
        raise PlanError("this stored plan is damaged: its digest is that of other bytes")
    try:
        return _plan(body, make)
    except _MALFORMED as e:
        reason = str(e).split("\n")[0][:120] or type(e).__name__
        raise PlanError(f"this stored plan is malformed: {reason}") from None


def _plan(body: memoryview, make: MakePlan) -> Plan:
    (length,) = _LENGTH.unpack_from(body)
    if length > min(MAX_TEXT, len(body) - _LENGTH.size):
        raise ValueError("a text longer than the file")
    start = _LENGTH.size
    document = json.loads(bytes(body[start : start + length]))
    contents = _contents(body[start + length :], document["contents"])
    reader = Reader(document["tables"], contents)
    program = reader.program(document["program"])
    grids = [
        tuple(
            Grid(_tile(record), segment.shape)
            for record, segment in zip(document[name], segments, strict=True)
        )
        for name, segments in (("q_tiles", program.queries), ("kv_tiles", program.keys))
    ]
    classes = [
        (tuple(c["heads"]), tuple(tuple(reader.node(n) for n in row) for row in c["keeps"]))
        for c in document["classes"]
    ]
    heads = sorted(itertools.chain.from_iterable(heads for heads, _ in classes))
    if heads != list(range(program.heads)) or any(type(h) is not int for h in heads):
        raise ValueError("head classes that are not of the plan's heads")
    trees = [record for c in reversed(document["classes"]) for record in reversed(c["trees"])]

    def grow(keep: Node, queries: Side, keys: Side) -> Tree:
        return tree_of(reader, trees.pop(), keep, queries, keys)

    if not isinstance(document["source"], str):
        raise ValueError("a source that is no text")
    layouts = tuple(_layout(record) for record in document["layouts"])
    plan = make(program, document["source"], grids[0], grids[1], classes, grow, layouts)
    if trees:
        raise ValueError("more trees than pairs of segments")
    return plan


def _contents(data: memoryview, kinds: list[Any]) -> list[np.ndarray]:
    found, at = [], 0
    for dtype, shape in kinds:
        if dtype not in _DTYPES or any(type(n) is not int or n < 0 for n in shape):
            raise ValueError("an array of no known kind")
        count = math.prod(shape)
        size = count * np.dtype(dtype).itemsize
        if size > len(data) - at:
            raise ValueError("arrays longer than the file")
        found.append(np.frombuffer(data[at : at + size], dtype, count).reshape(shape))
        if dtype == "|b1" and (found[-1].view(np.int8) > 1).any():
            raise ValueError("a truth that is neither true nor false")
        at += size
    if at != len(data):
        raise ValueError("arrays shorter than the file")
    return found


def _tile(record: dict[str, list[Any]]) -> Tile:
    return Tile(**{name: tuple(values) for name, values in record.items()})


def _layout(record: dict[str, Any]) -> Layout:
    def candidate(c: dict[str, Any]) -> Candidate:
        tiles = _tile(c["q_tile"]), _tile(c["kv_tile"])
        return Candidate(*tiles, float(c["full"]), float(c["partial"]), bool(c["counted"]))

    return Layout(tuple(candidate(c) for c in record["tried"]), int(record["proposed"]))
