"""The canonical form of a text, and expressions as text.

A syntax tree becomes a flat list of words and of places where a line may end (`_Writer`); the
comments of the source are found again between the same words (`_gaps`); then lines are filled
(`Layout`). The result depends on the tree, the comments and the blank lines around clauses only:
formatting it again changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from maskdsl.language import syntax
from maskdsl.language.grammar import parser
from maskdsl.language.layout import Comment, Gap, Layout, Op, width
from maskdsl.language.parse import MAX_TEXT, parse_text

SPACE, LINE, SOFT, FILL = Op.SPACE, Op.LINE, Op.SOFT, Op.FILL
OPEN, CLOSE, IN, OUT = Op.OPEN, Op.CLOSE, Op.IN, Op.OUT


def format_text(text: str, name: str = "<text>") -> str:
    """The canonical form of a whole text: the same program with the same comments.

    A text whose canonical form would pass the limit of 64 KB is left as it is. Raises ParseError.
    """
    writer = _Writer(text)
    writer.file(parse_text(text, name))
    formatted = Layout(writer.ops, _gaps(text, writer)).run()
    return formatted if len(formatted.encode("utf-8", "surrogatepass")) <= MAX_TEXT else text


def print_file(file: syntax.File) -> str:
    """A text with this syntax tree, in canonical form."""
    writer = _Writer()
    writer.file(file)
    return Layout(writer.ops, [Gap() for _ in range(writer.words + 1)]).run()


def print_signature(pattern: syntax.PatternDef) -> str:
    """A pattern's parameters, axes and inputs, in canonical form."""
    inputs = tuple(c for c in pattern.clauses if isinstance(c, syntax.Input))
    return print_file(syntax.File((), (replace(pattern, clauses=inputs),)))


def print_expr(expr: syntax.Expr) -> str:
    """One line with this syntax tree; only the parentheses it needs."""
    writer = _Writer()
    writer.expr(expr)
    return "".join(op if isinstance(op, str) else " " * width(op) for op in writer.ops)


# Precedence, low to high; `_level` gives an expression's own.
EXPR, OR, AND, NOT, COMPARE, SUM, PRODUCT, UNARY, POWER, ATOM = range(10)


def _level(e: syntax.Expr) -> int:
    match e:
        case syntax.If() | syntax.Fold():
            return EXPR
        case syntax.Logic(op=op):
            return OR if op == "or" else AND
        case syntax.Not():
            return NOT
        case syntax.Chain(compares=compares, rest=rest):
            return COMPARE if compares else SUM if rest[0][0] in "+-" else PRODUCT
        case syntax.Within():
            return COMPARE
        case syntax.Negative():
            return UNARY
        case syntax.Power():
            return POWER
        case _:
            return ATOM


class _Writer:
    """Collects the words of a tree, each one token, and what may stand between them."""

    def __init__(self, source: str | None = None) -> None:
        self.source = source  # literals are spelt as they are there
        self.ops: list[str | Op] = []
        self.words = 0
        self.leading: set[int] = set()  # words that start a line where one ends before them

    def add(self, *ops: str | Op) -> None:
        self.ops += ops
        self.words += sum(isinstance(op, str) for op in ops)

    def lead(self, word: str, line: Op = LINE) -> None:
        self.leading.add(self.words)
        self.add(line, word, SPACE)

    def listed(self, opening: str, emits: Sequence[Callable[[], None]], closing: str) -> None:
        if emits:
            self.add(OPEN, opening, IN, SOFT)
            self.separated(emits)
            self.add(OUT, SOFT, closing, CLOSE)
        else:
            self.add(opening, closing)

    def separated(self, emits: Sequence[Callable[[], None]]) -> None:
        for i, emit in enumerate(emits):
            if i:
                self.add(",", LINE)
            emit()

    # expressions

    def expr(self, e: syntax.Expr, least: int = EXPR, ranged: bool = False) -> None:
        """Parentheses where `e` binds less than `least`. ranged: a `..` follows, which an `in`
        without a range of its own would take.
        """
        if _level(e) < least or (ranged and isinstance(e, syntax.Within) and e.high is None):
            self.add(OPEN, "(", IN, SOFT)
            self.bare(e, False, False)
            self.add(OUT, SOFT, ")", CLOSE)
        else:
            self.bare(e, ranged, True)

    def bare(self, e: syntax.Expr, ranged: bool, hang: bool) -> None:
        match e:
            case syntax.Literal():
                self.add(self.literal(e))
            case syntax.Name():
                self.add(e.name)
            case syntax.Member():
                self.add(e.base, ".", e.name)
            case syntax.Call():
                self.add(e.name)
                self.listed("(", [partial(self.argument, *a) for a in e.args], ")")
            case syntax.Index():
                self.add(e.name)
                self.listed("[", [partial(self.expr, a) for a in e.args], "]")
            case syntax.If():
                self.choice(e, ranged, hang)
            case syntax.Fold():
                self.add(OPEN, e.kind, SPACE, e.name, SPACE, "in", SPACE)
                self.expr(e.low, ranged=True)
                self.add(SPACE, "..", SPACE)
                self.expr(e.high)
                self.add(":", IN, LINE)
                self.expr(e.body, EXPR, ranged)
                self.add(OUT, CLOSE)
            case syntax.Logic():
                rest = [(e.op, a) for a in e.args[1:]]
                self.operators(e.args[0], rest, _level(e) + 1, LINE, ranged, hang)
            case syntax.Chain():
                self.operators(e.first, e.rest, _level(e) + 1, FILL, False, hang)
            case syntax.Not():
                self.add("not", SPACE)
                self.expr(e.arg, NOT, ranged)
            case syntax.Within():
                self.expr(e.arg, SUM)
                self.add(SPACE, "in", SPACE)
                self.expr(e.low, SUM)
                if e.high is not None:
                    self.add(SPACE, "..", SPACE)
                    self.expr(e.high, SUM)
            case syntax.Negative():
                self.add("-")
                self.expr(e.arg, UNARY)
            case syntax.Power():
                self.expr(e.base, ATOM)
                self.add(SPACE, "**", SPACE)
                self.expr(e.exponent, UNARY)
            case _:
                raise TypeError(f"a {type(e).__name__} has no text")

    def literal(self, e: syntax.Literal) -> str:
        if self.source is not None:
            return self.source[e.span.start : e.span.end]
        return str(e.value).lower() if isinstance(e.value, bool) else repr(e.value)

    def argument(self, keyword: str | None, value: syntax.Expr) -> None:
        if keyword is not None:
            self.add(keyword, "=")
        self.expr(value)

    def operators(
        self,
        first: syntax.Expr,
        rest: Sequence[tuple[str, syntax.Expr]],
        least: int,
        line: Op,
        ranged: bool,
        hang: bool,
    ) -> None:
        self.add(OPEN)
        self.expr(first, least)
        self.add(*[IN] * hang)
        for i, (op, e) in enumerate(rest, 1):
            self.lead(op, line)
            self.expr(e, least, ranged and i == len(rest))
        self.add(*[OUT] * hang, CLOSE)

    def choice(self, e: syntax.If, ranged: bool, hang: bool) -> None:
        """An `else if` starts a line beside the `else`s before it."""
        self.add(OPEN, *[IN] * hang)
        other: syntax.Expr = e
        while isinstance(other, syntax.If):
            self.add(OPEN, "if", SPACE)
            self.expr(other.test)
            self.add(IN)
            self.lead("then")
            self.expr(other.then)
            self.add(OUT, CLOSE)
            self.lead("else")
            other = other.other
        self.expr(other, EXPR, ranged)
        self.add(*[OUT] * hang, CLOSE)

    # clauses and definitions

    def file(self, file: syntax.File) -> None:
        found: list[syntax.Def | syntax.PatternDef] = [*file.defs, *file.patterns]
        for d in sorted(found, key=lambda d: d.span.start):
            if isinstance(d, syntax.Def):
                self.function(d)
            else:
                self.pattern(d)
        self.add(Op.END)

    def function(self, d: syntax.Def) -> None:
        self.add(Op.DEFINITION, "def", SPACE, d.name)
        self.listed("(", [partial(self.param, p) for p in d.params], ")")
        for let in d.lets:
            self.clause(let)
        self.add(Op.CLAUSE, "return", SPACE)
        self.expr(d.value)

    def pattern(self, p: syntax.PatternDef) -> None:
        self.add(Op.DEFINITION, "pattern", SPACE, p.name)
        if p.params:
            self.listed("(", [partial(self.param, x) for x in p.params], ")")
        self.add(Op.HEADER, OPEN, "over", SPACE, IN)
        self.space(p.queries)
        if p.keys is not None:
            self.lead("->")
            self.space(p.keys)
        self.add(OUT, CLOSE)
        for clause in p.clauses:
            self.clause(clause)

    def param(self, p: syntax.Param) -> None:
        self.add(p.name, ":", SPACE, p.type.base)
        if p.type.dims:
            self.dims(p.type.dims)
        if p.default is not None:
            self.add(SPACE, "=", SPACE)
            self.expr(p.default)

    def dims(self, dims: tuple[syntax.Expr | None, ...]) -> None:
        emits = [partial(self.add, "_") if d is None else partial(self.expr, d) for d in dims]
        self.listed("[", emits, "]")

    def space(self, space: syntax.Space) -> None:
        for i, segment in enumerate(space):
            if i:
                self.lead("then")
            if segment.name is not None:
                self.add(segment.name)
            self.listed("(", [partial(self.add, a) for a in segment.axes], ")")

    def clause(self, c: syntax.Clause) -> None:
        self.add(Op.CLAUSE, type(c).__name__.lower(), SPACE)
        if isinstance(c, syntax.Input):
            self.add(c.name)
            self.dims(c.dims)
            self.add(":", SPACE, c.type)
            return
        if isinstance(c, syntax.Let):
            self.add(c.name, SPACE, "=", SPACE)
        elif isinstance(c, syntax.Keep | syntax.Score) and c.scopes:
            self.add(OPEN, IN)
            ends = [(s.query, SPACE, "->", SPACE, s.key) for s in c.scopes]
            self.separated([partial(self.add, *e) for e in ends])
            self.add(OUT, CLOSE, ":", SPACE)
        self.expr(c.value)


def _gaps(text: str, writer: _Writer) -> list[Gap]:
    """What stands before each word. The source has the same words, and perhaps more parentheses."""
    words = [op for op in writer.ops if isinstance(op, str)]
    gaps = [Gap() for _ in range(len(words) + 1)]
    n = end = 0
    for token in [*parser().lex(text), None]:
        start = len(text) if token is None else token.start_pos or 0
        between = _gap(text[end:start], end == 0)
        gaps[n].take(between, first=False)
        gaps[n].blank = between.blank
        if token is not None:
            end = start + len(token)
            n += n < len(words) and words[n] == token
    for n, word in enumerate(words):
        if n in writer.leading:  # `a and # why`: the line ends before the `and`
            gaps[n].take(gaps[n + 1], first=False)
        elif word == ",":
            gaps[n + 1].take(gaps[n], first=True)
    return gaps


def _gap(text: str, first: bool) -> Gap:
    """What stands between two tokens. first: before any token."""
    lines = [line.strip() for line in text.split("\n")]
    blanks = [i > 1 - first and not lines[i - 1] for i in range(len(lines))]
    comments = [
        Comment(line, i == 0 and not first, blank)
        for i, (line, blank) in enumerate(zip(lines, blanks, strict=True))
        if line
    ]
    return Gap(comments, blanks[-1])
