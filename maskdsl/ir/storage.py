"""Programs as plain data: tables of nodes, arrays, spans and texts that JSON can hold, each entry
once, and the numbers that refer to them. Contents of arrays go beside them, as numpy arrays.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from maskdsl.errors import Source, Span
from maskdsl.ir.nodes import Array, Node, postorder
from maskdsl.ir.program import Block, Program, Segment, Site
from maskdsl.ir.verify import verify_program

_DTYPES = {"int": np.int64, "float": np.float64, "bool": np.bool_}
_SCALARS = {"int": int, "float": float, "bool": bool}


def content_of(data: np.ndarray) -> str:
    """The digest of a table that `Array.content` holds."""
    return hashlib.blake2b(data.tobytes(), digest_size=16).hexdigest()


class Writer:
    """Tables of what has been written so far; every method gives the number of an entry."""

    def __init__(self) -> None:
        self.tables: dict[str, list[Any]] = {"texts": [], "spans": [], "arrays": [], "nodes": []}
        self.contents: list[np.ndarray] = []
        self._numbers: dict[tuple[str, Any], int] = {}

    def _entry(self, table: str, key: Any, record: Callable[[], Any]) -> int:
        if (table, key) not in self._numbers:
            written = record()  # may write entries of its own first
            self._numbers[table, key] = len(self.tables[table])
            self.tables[table].append(written)
        return self._numbers[table, key]

    def content(self, data: np.ndarray) -> int:
        self.contents.append(data)
        return len(self.contents) - 1

    def array(self, a: Array) -> int:
        def record() -> Any:
            data = None if a.data is None else self.content(a.data)
            return [a.name, a.type, list(a.dims), a.is_input, data, a.content]

        return self._entry("arrays", a, record)

    def span(self, span: Span | None) -> int | None:
        if span is None:
            return None
        text = span.source
        source = self._entry("texts", text, lambda: [text.name, text.text])
        call = self.span(span.call)
        return self._entry("spans", span, lambda: [source, span.start, span.end, call])

    def node(self, root: Node) -> int:
        for n in postorder(root):
            if ("nodes", n) not in self._numbers:
                args = [self._numbers["nodes", a] for a in n.args]
                ends = [self._plain(n.low), self._plain(n.high)]
                record = [n.op, n.type, args, self._plain(n.value), *ends, self.span(n.span)]
                self._numbers["nodes", n] = len(self.tables["nodes"])
                self.tables["nodes"].append(record)
        return self._numbers["nodes", root]

    def _plain(self, value: Any) -> Any:
        if isinstance(value, tuple):
            return {"tuple": [self._plain(v) for v in value]}
        return {"array": self.array(value)} if isinstance(value, Array) else value

    def program(self, p: Program) -> dict[str, Any]:
        def block(b: Block) -> list[int | None]:
            roots = (b.keep, b.error, b.score, b.score_error)
            return [None if r is None else self.node(r) for r in roots]

        return {
            "name": p.name,
            "queries": [_segment_record(s) for s in p.queries],
            "keys": [_segment_record(s) for s in p.keys],
            "shared": p.shared,
            "heads": p.heads,
            "kv_heads": p.kv_heads,
            "inputs": [self.array(a) for a in p.inputs],
            "blocks": [[block(b) for b in row] for row in p.blocks],
            "sink": None if p.sink is None else self.node(p.sink),
            "sink_error": self.node(p.sink_error),
            "sites": [[self.node(n), self.span(s.span), s.message] for n, s in p.sites.items()],
        }


def _segment_record(s: Segment) -> list[Any]:
    return [s.name, [list(axis) for axis in s.axes], s.offset]


class Reader:
    """What a `Writer` wrote. Raises ValueError and its like where that is not so.

    contents: the arrays that go beside the tables.
    """

    def __init__(self, tables: dict[str, list[Any]], contents: Sequence[np.ndarray]) -> None:
        self.contents = contents
        self.texts = [Source(_of(str, name), _of(str, text)) for name, text in tables["texts"]]
        self.spans: list[Span] = []
        for source, start, end, call in tables["spans"]:
            around = None if call is None else _at(self.spans, call)
            text = _at(self.texts, source)
            if not 0 <= _of(int, start) <= _of(int, end) <= len(text.text):
                raise ValueError("a place outside its text")
            self.spans.append(Span(text, start, end, around))
        self.arrays = [self._array(*record) for record in tables["arrays"]]
        self.nodes: list[Node] = []
        for record in tables["nodes"]:
            self.nodes.append(self._node(*record))

    def content(self, number: Any, dtype: Any) -> np.ndarray:
        """Ints may have been written in fewer bits."""
        data: np.ndarray = _at(self.contents, number)
        return data.astype(dtype, casting="safe")

    def _array(
        self, name: Any, kind: Any, dims: Any, is_input: Any, data: Any, digest: Any
    ) -> Array:
        extents = tuple(d if d is None or isinstance(d, str) else _of(int, d) for d in dims)
        table = None if data is None else self.content(data, _DTYPES[kind])
        if table is not None:
            table.setflags(write=False)
            if table.shape != extents or content_of(table) != digest:
                raise ValueError("a table that is not what it says")
        if (table is None) != _of(bool, is_input) or kind not in _DTYPES:
            raise ValueError("an array that is neither a table nor an input")
        return Array(_of(str, name), kind, extents, is_input, table, _of(str, digest))

    def _node(
        self, op: Any, type_: Any, args: Any, value: Any, low: Any, high: Any, span: Any
    ) -> Node:
        operands = tuple(_at(self.nodes, a) for a in args)
        place = None if span is None else _at(self.spans, span)
        n = Node(_of(str, op), _of(str, type_), operands, self._value(value), low, high, place)
        if any(type(end) not in (bool, int, float) for end in (low, high)):
            raise ValueError("bounds that are no numbers")
        fits = True
        if op == "const":
            fits = type(n.value) is _SCALARS[type_]
        elif op == "linear":
            fits = all(type(c) is int for c in (n.value[0], *n.value[1]))
        elif op == "load":
            fits = isinstance(n.value, Array) and n.value.rank == len(operands)
        if not fits:
            raise ValueError(f"a value that {op} does not have")
        return n

    def _value(self, value: Any) -> Any:
        if isinstance(value, dict):
            if "array" in value:
                return _at(self.arrays, value["array"])
            return tuple(self._value(v) for v in value["tuple"])
        if isinstance(value, list):
            raise ValueError("a list for a value")
        return value

    def node(self, number: Any) -> Node:
        found: Node = _at(self.nodes, number)
        return found

    def program(self, record: dict[str, Any]) -> Program:
        queries, keys = (_segments(record[side]) for side in ("queries", "keys"))

        def block(q: Segment, k: Segment, roots: Any) -> Block:
            keep, error, score, score_error = roots
            kept = None if score is None else self.node(score)
            return Block(q, k, self.node(keep), self.node(error), kept, self.node(score_error))

        blocks = tuple(
            tuple(block(q, k, roots) for k, roots in zip(keys, row, strict=True))
            for q, row in zip(queries, record["blocks"], strict=True)
        )
        heads, kv_heads = (_of(int, record[n]) for n in ("heads", "kv_heads"))
        if heads < 1 or kv_heads < 1 or heads % kv_heads:
            raise ValueError("heads that are no multiple of kv_heads")
        sink = record["sink"]
        program = Program(
            name=_of(str, record["name"]),
            queries=queries,
            keys=keys,
            shared=_of(bool, record["shared"]),
            heads=heads,
            kv_heads=kv_heads,
            inputs=tuple(_at(self.arrays, a) for a in record["inputs"]),
            blocks=blocks,
            sink=None if sink is None else self.node(sink),
            sink_error=self.node(record["sink_error"]),
            sites={
                self.node(n): Site(_at(self.spans, span), _of(str, message))
                for n, span, message in record["sites"]
            },
        )
        verify_program(program)
        return program


def _segments(records: list[Any]) -> tuple[Segment, ...]:
    found: list[Segment] = []
    for name, axes, offset in records:
        extents = tuple((_of(str, axis), _of(int, extent)) for axis, extent in axes)
        after = found[-1].offset + found[-1].tokens if found else 0
        if _of(int, offset) != after or not extents or any(e < 1 for _, e in extents):
            raise ValueError("segments that do not follow one another")
        found.append(Segment(None if name is None else _of(str, name), extents, offset))
    if not found:
        raise ValueError("a space without segments")
    return tuple(found)


def _of(kind: type, value: Any) -> Any:
    if type(value) is not kind:
        raise ValueError(f"not of {kind.__name__}")
    return value


def _at(entries: Sequence[Any], number: Any) -> Any:
    if not 0 <= _of(int, number) < len(entries):
        raise ValueError("a number without an entry")
    return entries[number]
