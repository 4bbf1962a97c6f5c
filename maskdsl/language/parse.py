"""Text to syntax tree."""

from __future__ import annotations

from typing import Any

import lark
from lark import Token
from lark.visitors import Transformer_NonRecursive, v_args

from maskdsl.errors import ParseError, Source, Span
from maskdsl.language import syntax
from maskdsl.language.diagnostics import explain_character, explain_token
from maskdsl.language.grammar import parser

MAX_TEXT = 64 * 1024  # bytes of one text
MAX_NESTING = 100  # expressions inside expressions
MAX_DIGITS = 19  # of an integer literal: 2**63 - 1 has 19
MAX_NAME = 200  # characters of a name


def parse_text(text: str, name: str = "<text>") -> syntax.File:
    """The syntax tree of a whole text; `name` is what errors call it. Raises ParseError."""
    source = Source(name, text)
    if len(text.encode("utf-8", "surrogatepass")) > MAX_TEXT:
        raise ParseError(f"{name}: the text is longer than {MAX_TEXT} bytes")
    try:
        tree = parser().parse(text)
    except lark.UnexpectedCharacters as e:
        raise explain_character(source, e) from None
    except lark.UnexpectedToken as e:
        raise explain_token(source, e, parser()) from None
    try:
        file: syntax.File = _Build(source).transform(tree)
    except lark.exceptions.VisitError as e:
        raise e.orig_exc from None
    return file


class _Build(Transformer_NonRecursive[Token, Any]):
    """One method a grammar rule; keeps count of nesting so that later passes may recurse."""

    def __init__(self, source: Source) -> None:
        super().__init__()
        self.source = source
        self.depth: dict[int, int] = {}  # by id: every expression lives as long as the tree

    def span(self, meta: Any) -> Span:
        return Span(self.source, getattr(meta, "start_pos", 0), getattr(meta, "end_pos", 0))

    def token_span(self, token: Token) -> Span:
        start = token.start_pos or 0
        return Span(self.source, start, start + len(token))

    def name_of(self, token: Token) -> str:
        if len(token) > MAX_NAME:
            span = self.token_span(token)
            raise ParseError(f"this name is longer than {MAX_NAME} characters", span)
        return str(token)

    def _expr(self, node: syntax.Expr, *children: Any) -> syntax.Expr:
        depth = 1 + max((self.depth.get(id(c), 0) for c in children), default=0)
        if depth > MAX_NESTING:
            raise ParseError(f"expressions nest deeper than {MAX_NESTING}", node.span)
        self.depth[id(node)] = max(depth, self.depth.get(id(node), 0))
        return node

    # expressions

    @v_args(meta=True)
    def integer(self, meta: Any, items: list[Token]) -> syntax.Expr:
        digits = items[0].replace("_", "").lstrip("0") or "0"
        if len(digits) > MAX_DIGITS or int(digits) > 2**63 - 1:
            raise ParseError("this integer does not fit in 64 bits", self.span(meta))
        return self._expr(syntax.Literal(self.span(meta), int(digits)))

    @v_args(meta=True)
    def real(self, meta: Any, items: list[Token]) -> syntax.Expr:
        value = float(items[0])
        if value in (float("inf"), float("-inf")):
            raise ParseError("this number does not fit in 64 bits", self.span(meta))
        return self._expr(syntax.Literal(self.span(meta), value))

    @v_args(meta=True)
    def boolean(self, meta: Any, items: list[Token]) -> syntax.Expr:
        return self._expr(syntax.Literal(self.span(meta), items[0] == "true"))

    @v_args(meta=True)
    def name(self, meta: Any, items: list[Token]) -> syntax.Expr:
        return self._expr(syntax.Name(self.span(meta), self.name_of(items[0])))

    @v_args(meta=True)
    def member(self, meta: Any, items: list[Token]) -> syntax.Expr:
        base, name = map(self.name_of, items)
        return self._expr(syntax.Member(self.span(meta), base, name))

    @v_args(meta=True)
    def call(self, meta: Any, items: list[Any]) -> syntax.Expr:
        args = items[1] or ()
        values = [value for _, value in args]
        node = syntax.Call(self.span(meta), self.name_of(items[0]), tuple(args))
        return self._expr(node, *values)

    def arguments(self, items: list[Any]) -> tuple[Any, ...]:
        return tuple(items)

    def argument(self, items: list[Any]) -> tuple[str | None, syntax.Expr]:
        return (None if items[0] is None else self.name_of(items[0])), items[1]

    @v_args(meta=True)
    def index(self, meta: Any, items: list[Any]) -> syntax.Expr:
        node = syntax.Index(self.span(meta), self.name_of(items[0]), tuple(items[1:]))
        return self._expr(node, *items[1:])

    def group(self, items: list[Any]) -> syntax.Expr:
        return self._expr(items[0], items[0])

    @v_args(meta=True)
    def ifelse(self, meta: Any, items: list[Any]) -> syntax.Expr:
        return self._expr(syntax.If(self.span(meta), *items), *items)

    @v_args(meta=True)
    def fold(self, meta: Any, items: list[Any]) -> syntax.Expr:
        kind, name, low, _, high, body = items
        node = syntax.Fold(self.span(meta), str(kind), self.name_of(name), low, high, body)
        return self._expr(node, low, high, body)

    @v_args(meta=True)
    def disjunction(self, meta: Any, items: list[Any]) -> syntax.Expr:
        return self._expr(syntax.Logic(self.span(meta), "or", tuple(items)), *items)

    @v_args(meta=True)
    def conjunction(self, meta: Any, items: list[Any]) -> syntax.Expr:
        return self._expr(syntax.Logic(self.span(meta), "and", tuple(items)), *items)

    @v_args(meta=True)
    def negation(self, meta: Any, items: list[Any]) -> syntax.Expr:
        return self._expr(syntax.Not(self.span(meta), items[0]), *items)

    @v_args(meta=True)
    def chain(self, meta: Any, items: list[Any]) -> syntax.Expr:
        return self._chain(meta, items, True)

    @v_args(meta=True)
    def arithmetic(self, meta: Any, items: list[Any]) -> syntax.Expr:
        return self._chain(meta, items, False)

    def _chain(self, meta: Any, items: list[Any], compares: bool) -> syntax.Expr:
        rest = tuple((str(op), e) for op, e in zip(items[1::2], items[2::2], strict=True))
        node = syntax.Chain(self.span(meta), items[0], rest, compares)
        return self._expr(node, *items[::2])

    @v_args(meta=True)
    def within(self, meta: Any, items: list[Any]) -> syntax.Expr:
        arg, low, _, high = items
        return self._expr(syntax.Within(self.span(meta), arg, low, high), arg, low, high)

    @v_args(meta=True)
    def negative(self, meta: Any, items: list[Any]) -> syntax.Expr:
        return self._expr(syntax.Negative(self.span(meta), items[1]), items[1])

    @v_args(meta=True)
    def power(self, meta: Any, items: list[Any]) -> syntax.Expr:
        base, _, exponent = items
        return self._expr(syntax.Power(self.span(meta), base, exponent), base, exponent)

    # clauses

    def dim(self, items: list[Any]) -> syntax.Expr | None:
        return None if isinstance(items[0], Token) else items[0]

    def dims(self, items: list[Any]) -> tuple[Any, ...]:
        return tuple(items)

    @v_args(meta=True)
    def type(self, meta: Any, items: list[Any]) -> syntax.Type:
        return syntax.Type(str(items[0]), items[1] or (), self.span(meta))

    def param(self, items: list[Any]) -> syntax.Param:
        name, type_, default = items
        return syntax.Param(self.name_of(name), type_, default, self.token_span(name))

    def params(self, items: list[Any]) -> tuple[Any, ...]:
        return tuple(items)

    @v_args(meta=True)
    def segment(self, meta: Any, items: list[Any]) -> syntax.Segment:
        name = None if items[0] is None else self.name_of(items[0])
        spans = tuple(map(self.token_span, items[1:]))
        return syntax.Segment(name, tuple(map(self.name_of, items[1:])), self.span(meta), spans)

    def space(self, items: list[Any]) -> syntax.Space:
        return tuple(items)

    def let(self, items: list[Any]) -> syntax.Let:
        return syntax.Let(self.name_of(items[0]), items[1], self.token_span(items[0]))

    def input(self, items: list[Any]) -> syntax.Input:
        name, dims, type_ = items
        return syntax.Input(self.name_of(name), dims, str(type_), self.token_span(name))

    def end(self, items: list[Any]) -> str:
        return self.name_of(items[0])

    @v_args(meta=True)
    def scope(self, meta: Any, items: list[Any]) -> syntax.Scope:
        return syntax.Scope(items[0], items[2], self.span(meta))

    def scopes(self, items: list[Any]) -> tuple[Any, ...]:
        return tuple(items)

    @v_args(meta=True)
    def keep(self, meta: Any, items: list[Any]) -> syntax.Keep:
        return syntax.Keep(items[0] or (), items[1], self.span(meta))

    @v_args(meta=True)
    def score(self, meta: Any, items: list[Any]) -> syntax.Score:
        return syntax.Score(items[0] or (), items[1], self.span(meta))

    @v_args(meta=True)
    def sink(self, meta: Any, items: list[Any]) -> syntax.Sink:
        return syntax.Sink(items[0], self.span(meta))

    # definitions

    def _def(self, items: list[Any]) -> syntax.Def:
        name, params, *lets, value = items
        span = self.token_span(name)
        return syntax.Def(self.name_of(name), params or (), tuple(lets), value, span)

    def pattern(self, items: list[Any]) -> syntax.PatternDef:
        name, params, queries, _, keys, *clauses = items
        return syntax.PatternDef(
            self.name_of(name), params or (), queries, keys, tuple(clauses), self.token_span(name)
        )

    def start(self, items: list[Any]) -> syntax.File:
        defs = tuple(x for x in items if isinstance(x, syntax.Def))
        return syntax.File(defs, tuple(x for x in items if isinstance(x, syntax.PatternDef)))


setattr(_Build, "def", _Build._def)  # a rule named like a Python keyword
