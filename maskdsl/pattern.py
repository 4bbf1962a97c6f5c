"""The objects users hold: a `Pattern` read from text, and a `Mask`, which is a pattern with
everything bound.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from maskdsl.errors import BindError, ParseError, PlanError, Source, nearest
from maskdsl.ir.definition import arrays_of, dense, host_array, scores
from maskdsl.ir.nodes import Array
from maskdsl.ir.program import Program
from maskdsl.language import syntax
from maskdsl.language.binding import MAX_TOKENS, bind_scalar, bind_table, whole
from maskdsl.language.check import check_def, check_pattern, functions_of, table_dims
from maskdsl.language.library import read, standard_functions
from maskdsl.language.params import MAX_HEADS
from maskdsl.language.parse import parse_text
from maskdsl.language.scope import Bindings
from maskdsl.planner import Cost, Plan, TilesLike, make_plan, plain_plan, work
from maskdsl.planner.branches import branches
from maskdsl.planner.coarse import Vote, blocks_kept
from maskdsl.planner.failures import raise_failures
from maskdsl.planner.layout import kernel_lanes, pair

BLOCKS = "coarse_blocks"  # the table of a coarsened mask


def parse(text: str, name: str | None = None) -> Pattern:
    """The pattern of a text: its last one, or the one called `name`.

    Raises ParseError (not in the grammar), CheckError (a name or type is wrong), BindError (no such
    pattern).
    """
    if not isinstance(text, str):
        raise ParseError(f"a mask's text is a str, not {type(text).__name__}")
    return _pattern(Source("<text>", text), name)


def load(path: str | Path, name: str | None = None) -> Pattern:
    """The pattern of a file, or of a library entry such as `std/radial`; `name` picks one. Errors
    as for `parse`.
    """
    return _pattern(read(path), name)


def _pattern(source: Source, name: str | None) -> Pattern:
    file = parse_text(source.text, source.name)
    functions = functions_of(file, standard_functions())
    for d in file.defs:
        check_def(d, functions)
    names: set[str] = set()
    for p in file.patterns:
        if p.name in names:
            raise BindError(f"the pattern '{p.name}' is defined already", p.span)
        names.add(p.name)
    if not file.patterns:
        raise ParseError(f"{source.name}: the text holds no pattern")
    if name is not None and name not in names:
        raise BindError(f"{source.name}: no pattern '{name}'{nearest(name, names)}")
    programs = {p.name: (p, check_pattern(p, functions)) for p in file.patterns}
    chosen, program = programs[name or file.patterns[-1].name]
    return Pattern(source.text, chosen, functions, program)


@dataclass(frozen=True, eq=False)
class Pattern:
    """A function from parameters and extents to a relation between query and key positions.

    source: the text it was read from.
    """

    source: str
    definition: syntax.PatternDef
    functions: Mapping[str, syntax.Def]
    program: Program  # with symbols for all that is not bound
    block: int | None = None  # of a coarsened pattern over one axis: the tile that suits it

    @property
    def name(self) -> str:
        return self.definition.name

    @property
    def params(self) -> Mapping[str, syntax.Param]:
        """Parameters by name, in order: each has a `type` and a `default` (None where it must be
        given).
        """
        return MappingProxyType({p.name: p for p in self.definition.params})

    @property
    def axes(self) -> tuple[str, ...]:
        """Names of the axes, those of the queries first."""
        segments = (*self.program.queries, *self.program.keys)
        return tuple(dict.fromkeys(name for s in segments for name, _ in s.axes))

    @property
    def inputs(self) -> Mapping[str, Array]:
        """Inputs by name, in order: each has a `type` and `dims`."""
        return MappingProxyType({a.name: a for a in self.program.inputs})

    def bind(self, **values: Any) -> Mask:
        """A mask: extents by axis, parameters by name, `heads` (default 1) and `kv_heads` (default
        `heads`).

        Extents may stay open; a later `bind` adds them. Raises BindError for names and values that
        do not fit and
        EvalError where some pair of the pattern has no value.
        """
        return Mask(self, values)

    def with_blocks(self, block: int, per_head: bool) -> tuple[Pattern, str]:
        """This pattern with its keep clauses replaced by a table, and the table's name: a bool
        parameter of (1 or heads, query blocks, key blocks). A pattern that only keeps is flattened
        to one axis, `token`, so that tiles may be blocks.
        """
        p = self.definition
        span = p.span
        flat = None
        if not any(isinstance(c, (syntax.Score, syntax.Sink)) for c in p.clauses):
            keys = None
            if p.keys is not None:
                keys = (syntax.Segment(None, ("key_token",), span, (span,)),)
            queries = (syntax.Segment(None, ("token",), span, (span,)),)
            p = replace(p, params=(), queries=queries, keys=keys, clauses=())
            flat = block
        named = [c for c in p.clauses if isinstance(c, (syntax.Let, syntax.Input))]
        taken = {*self.axes, *self.params, *(c.name for c in named)}
        table_name = BLOCKS
        while table_name in taken:
            table_name += "_"
        number = syntax.Literal(span, block)
        indices = tuple(
            syntax.Chain(span, syntax.Member(span, side, "index"), (("//", number),), False)
            for side in "qk"
        )
        head = syntax.Name(span, "head") if per_head else syntax.Literal(span, 0)
        keep = syntax.Keep((), syntax.Index(span, table_name, (head, *indices)), span)
        table = syntax.Type("bool", (None, None, None), span)
        clauses = tuple(c for c in p.clauses if not isinstance(c, syntax.Keep))
        params = (*p.params, syntax.Param(table_name, table, None, span))
        definition = replace(p, params=params, clauses=(*clauses, keep))
        source = f"# In whole blocks of {block} tokens:\n{self.source}"
        program = check_pattern(definition, self.functions)
        return Pattern(source, definition, self.functions, program, flat), table_name

    def __repr__(self) -> str:
        return f"<pattern {self.name} over ({', '.join(self.axes)})>"


class Mask:
    """A pattern whose parameters, extents and head count are bound (extents may still be open)."""

    def __init__(self, pattern: Pattern, values: Mapping[str, Any]) -> None:
        self.pattern = pattern
        self.values = dict(values)
        known = [*pattern.axes, *pattern.params, "heads", "kv_heads"]
        for name in values:
            if name in pattern.inputs:
                raise BindError(f"'{name}' is an input of {pattern.name}: it is given at each call")
            if name not in known:
                raise BindError(
                    f"{pattern.name} has nothing called '{name}' to bind "
                    f"(it has {', '.join(known)}){nearest(name, known)}"
                )
        self.heads = whole("heads", values.get("heads", 1), least=1)
        if self.heads > MAX_HEADS:
            raise BindError(f"heads must be at most {MAX_HEADS}, not {self.heads}")
        self.kv_heads = whole("kv_heads", values.get("kv_heads", self.heads), least=1)
        if self.heads % self.kv_heads:
            raise BindError(
                f"heads ({self.heads}) must be a multiple of kv_heads ({self.kv_heads})"
            )
        self.extents = {a: whole(a, values[a], least=1) for a in pattern.axes if a in values}
        for axis, extent in self.extents.items():
            if extent > MAX_TOKENS:
                raise BindError(f"{axis} must be at most {MAX_TOKENS}, not {extent}")
        self.open = tuple(a for a in pattern.axes if a not in self.extents)
        lacking = [n for n, p in pattern.params.items() if n not in values and p.default is None]
        if lacking:
            raise BindError(f"{pattern.name} lacks {', '.join(lacking)}")
        self.program = self._program()

    def _program(self) -> Program:
        pattern = self.pattern
        params: dict[str, Any] = {
            name: bind_scalar(param, self.values[name])
            for name, param in pattern.params.items()
            if name in self.values and not param.type.dims
        }
        tables = [p for p in pattern.params.values() if p.type.dims]
        if tables:
            partly = Bindings(params, self.extents, self.heads, self.kv_heads, False)
            dims = table_dims(pattern.definition, pattern.functions, partly)
            for p in tables:
                params[p.name] = bind_table(p, self.values[p.name], dims[p.name])
        bound = Bindings(params, self.extents, self.heads, self.kv_heads, not self.open)
        program = check_pattern(pattern.definition, pattern.functions, bound)
        for side, n in (("queries", program.query_tokens), ("keys", program.key_tokens)):
            if n > MAX_TOKENS:
                raise BindError(f"{side} must be at most {MAX_TOKENS}, not {n}")
        if not self.open:
            raise_failures(program)
        return program

    def bind(self, **values: Any) -> Mask:
        """This mask with more bound, such as an extent that was open. A branch is bound whole."""
        return Mask(self.pattern, {**self.values, **values})

    def closed(self) -> Program:
        """The program, all bound. Raises BindError where an extent is open."""
        if self.open:
            raise BindError(
                f"{self.pattern.name} lacks the extent of {', '.join(self.open)}: bind it first"
            )
        return self.program

    @property
    def shape(self) -> tuple[int, int, int]:
        """(heads, queries, keys)"""
        program = self.closed()
        return self.heads, program.query_tokens, program.key_tokens

    def dense(
        self,
        head: int = 0,
        batch: int = 0,
        queries: int | None = None,
        q_offset: int | None = None,
        **inputs: Any,
    ) -> np.ndarray:
        """The definition: a bool array (queries, keys), true where the query sees the key.

        queries: fewer queries than keys of a shared space (decoding): query i stands at flattened
        position
        `keys - queries + i`, or `q_offset + i`. inputs: arrays or tensors. Raises EvalError where
        the pattern
        has no value at some pair, BindError for arguments that do not fit.
        """
        program = self.closed()
        arrays = arrays_of(program.inputs, inputs, whole("batch", batch, least=0))
        first, count = self._positions(queries, q_offset)
        self._index("head", head, self.heads)
        return dense(program, head, batch, first, count, arrays)

    def scores(
        self,
        logits: Any,
        /,
        head: int = 0,
        batch: int = 0,
        q_offset: int | None = None,
        **inputs: Any,
    ) -> np.ndarray:
        """The score clauses applied to logits (queries, keys), in their own float type; evaluated
        where kept.
        """
        program = self.closed()
        given = host_array("logits", logits)
        if given.ndim != 2 or given.dtype.kind != "f":
            raise BindError(
                f"logits are a float array (queries, keys), not {given.dtype} {given.shape}"
            )
        first, _ = self._positions(given.shape[0], q_offset)
        if given.shape[1] != self.shape[2]:
            raise BindError(f"logits have {given.shape[1]} keys, the mask {self.shape[2]}")
        self._index("head", head, self.heads)
        arrays = arrays_of(program.inputs, inputs, whole("batch", batch, least=0))
        return scores(program, given, head, batch, first, arrays)

    def plan(
        self,
        q_tile: TilesLike | None = None,
        kv_tile: TilesLike | None = None,
        *,
        target: str | None = None,
        head_dim: int = 128,
        lanes: tuple[int, int] | int | None = None,
        cost: Cost = work,
    ) -> Plan:
        """Classify the tiles of queries and keys: sizes (powers of two) per axis, or `Tile`s; a
        sequence of them, one per segment, where there are several segments.

        Tiles not given are searched for: the cheapest by `cost` of those that the pattern suggests,
        with `lanes` lanes (queries, keys): what suits kernels of `head_dim` on `target` (such as
        "sm_90"), or 64 by 64 where no target is given. Raises PlanError.
        """
        if self.pattern.block is not None:
            q_tile, kv_tile = q_tile or self.pattern.block, kv_tile or self.pattern.block
        if not callable(cost):
            raise PlanError(f"cost is a function of a candidate, not {cost!r}"[:200])
        if target is not None and not (isinstance(target, str) and target.isidentifier()):
            raise PlanError(f"a target is a name such as 'sm_90', not {target!r}"[:200])
        if lanes is None:
            head_dim = whole("head_dim", head_dim, least=1)
            lanes = (64, 64) if target is None else kernel_lanes(head_dim, str(target))
        return make_plan(self.closed(), self.pattern.source, q_tile, kv_tile, pair(lanes), cost)

    def branches(self, lanes: tuple[int, int] | int = 64, cost: Cost = work) -> tuple[Mask, ...]:
        """Masks of disjoint pairs that together keep what this one keeps, each to be planned with
        tiles of its own, where two such cost less than this one: a window `or` far columns, say.
        Otherwise this mask alone.

        Attention over all is `maskdsl.merge` of what kernels of each give. Lanes and cost as for
        `plan`. Raises PlanError.
        """
        found = branches(self.closed(), pair(lanes), cost)
        return (self,) if len(found) == 1 else tuple(self._with(p) for p in found)

    def _with(self, program: Program) -> Mask:
        """This mask with another program."""
        mask = copy(self)
        mask.program = program
        mask.__dict__.pop("pairs", None)
        return mask

    @cached_property
    def pairs(self) -> int:
        """Exact number of allowed pairs over all heads. Raises BindError where an input decides."""
        pairs = plain_plan(self.closed(), self.pattern.source).pairs
        if pairs is None:
            raise BindError(f"the pairs of {self.pattern.name} are decided by its inputs")
        return pairs

    @property
    def density(self) -> float:
        """Allowed pairs as a share of all pairs."""
        return self.pairs / math.prod(self.shape)

    def coarsen(self, block: int = 128, rule: str | Vote = "any") -> Mask:
        """A mask of whole blocks of `block` flattened tokens (a power of two), with the same
        scores.

        rule: "any" keeps a block of which some pair is kept, "all" one of which every pair is; or a
        `Vote`. Raises BindError, PlanError.
        """
        block = whole("block", block, least=1)
        kept = blocks_kept(self.closed(), block, rule)
        if (kept == kept[:1]).all():
            kept = kept[:1]
        pattern, table = self.pattern.with_blocks(block, per_head=len(kept) > 1)
        values = {**self.values, "heads": self.heads, "kv_heads": self.kv_heads, table: kept}
        if pattern.block is not None:
            values |= {"token": self.shape[1], "key_token": self.shape[2]}
        known = (*pattern.axes, *pattern.params, "heads", "kv_heads")
        return Mask(pattern, {n: x for n, x in values.items() if n in known})

    def _positions(self, queries: int | None, q_offset: int | None) -> tuple[int, int]:
        """(position of the first query, number of queries)"""
        _, rows, keys = self.shape
        count = rows if queries is None else whole("queries", queries, least=0)
        if count == rows and q_offset is None:
            return 0, count
        if not self.program.shared:
            raise BindError("only a space that queries and keys share can have fewer queries")
        first = keys - count if q_offset is None else whole("q_offset", q_offset, least=0)
        if first < 0 or first + count > keys:
            raise BindError(f"{count} queries from position {first} do not fit {keys} keys")
        return first, count

    @staticmethod
    def _index(name: str, value: int, count: int) -> None:
        if not 0 <= whole(name, value) < count:
            raise BindError(f"{name} {value} is not one of the mask's {count}")

    def __repr__(self) -> str:
        bound = ", ".join(f"{k}={v!r}" for k, v in self.values.items() if np.ndim(v) == 0)
        return f"<mask {self.pattern.name}({bound})>"
