"""Source text of expressions: how tightly it binds, how wide its ints are, and its chains."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from maskdsl.codegen.sides import Stage
from maskdsl.ir.nodes import Node
from maskdsl.planner.proofs import INT32, reach

if TYPE_CHECKING:
    from maskdsl.codegen.expressions import Printer

WIDTH = 76  # characters of an expression, past which it gets a name and a line of its own
# how tightly an operator binds, as in Python
COMPARE, OR, AND, SHIFT, SUM, PRODUCT, UNARY, ATOM = range(8)

Key = tuple[Node, bool]  # a node, and whether its floats are exact


@dataclass(frozen=True)
class Text:
    text: str
    binds: int = ATOM

    def within(self, least: int) -> str:
        return self.text if self.binds >= least else f"({self.text})"


class Width:
    """Which ints are held in 64 bits; nodes are given with arguments before users."""

    def __init__(self, nodes: Mapping[Node, Stage]) -> None:
        self.wide: dict[Node, bool] = {}
        for n in nodes:
            self.wide[n] = n.type == "int" and self._is_wide(n)

    def _is_wide(self, n: Node) -> bool:
        if n.op == "batch":
            return False
        return reach(n) >= INT32 or (n.op != "load" and any(self.wide[a] for a in n.args))

    def __getitem__(self, node: Node) -> bool:
        return self.wide[node]


def call(name: str, *args: str) -> Text:
    return Text(f"{name}({', '.join(args)})")


def helper(p: Printer, name: str, *args: str) -> Text:
    p.out.helpers.add(name)
    return call(name, *args)


def parts_of(p: Printer, key: Key) -> list[Text]:
    return [p.use(a, p.stage[key[0]]) for a in p.args(key)]


def plain(p: Printer, key: Key) -> list[str]:
    return [t.text for t in parts_of(p, key)]


def operands(p: Printer, key: Key) -> list[Text]:
    """Arguments of int arithmetic, in 64 bits where the result needs them."""
    node = key[0]
    return [
        Text(f"{text.within(ATOM)}.to(tl.int64)")
        if p.width[node] and not p.width[a] and a.op != "const"
        else text
        for a, text in zip(node.args, parts_of(p, key), strict=True)
    ]


def chained(p: Printer, key: Key, pieces: list[tuple[str, Text]], binds: int) -> Text:
    """`a + b - c ...` of (sign, part); a long chain gets a name, and a line for each part."""
    least = binds + 1
    parts = [("", pieces[0][1].within(least)), *((sign, x.within(least)) for sign, x in pieces[1:])]
    text = Text(" ".join(f"{sign} {x}".strip() for sign, x in parts), binds)
    if len(pieces) == 1:
        return pieces[0][1]
    if len(text.text) <= WIDTH:
        return text
    return p.name(key, text, tuple((sign, x.text) for sign, x in pieces))


def tensors(p: Printer, key: Key) -> list[str]:
    """Arguments of a helper: numbers as tensors."""
    narrow = key[0].type == "int" and not p.width[key[0]]
    return [
        f"tl.full((), {a.value}, {'tl.int32' if narrow else 'tl.int64'})"
        if a.op == "const"
        else text
        for a, text in zip(key[0].args, plain(p, key), strict=True)
    ]


def function(name: str) -> Callable[[Printer, Key], Text]:
    """A function of Triton's on the arguments as they are."""
    return lambda p, key: call(name, *plain(p, key))
