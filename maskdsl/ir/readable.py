"""Expressions as text for people, in the language's own notation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from maskdsl.ir.nodes import Node, postorder

# how tightly an operator binds
CHOICE, OR, AND, NOT, COMPARE, SUM, PRODUCT, ATOM = range(8)
_COMPARISONS = {"le": "<=", "lt": "<", "eq": "==", "same": "=="}
_PRODUCTS = {"mul": "*", "floordiv": "//", "mod": "%", "div": "/"}
_SUMS = {"add": "+", "sub": "-"}
_SILENT = ("to_float", "wide")

Piece = tuple[str, int]


def readable(root: Node, names: Mapping[Any, str] | None = None) -> str:
    """The text of an expression. names: of coordinates, by their value; else `q.n` and so on."""
    done: dict[Node, Piece] = {}
    for node in postorder(root):
        if node.op in ("min", "max"):
            done[node] = f"{node.op}({', '.join(_choices(node, done))})", ATOM
        else:
            done[node] = _piece(node, [done[a] for a in node.args], names or {})
    return done[root][0]


def _within(piece: Piece, least: int) -> str:
    return piece[0] if piece[1] >= least else f"({piece[0]})"


def _piece(node: Node, args: list[Piece], names: Mapping[Any, str]) -> Piece:
    op = node.op
    if op == "const":
        return (str(node.value).lower() if node.type == "bool" else str(node.value)), ATOM
    if op == "coord":
        return names.get(node.value, ".".join(map(str, node.value))), ATOM
    if op == "symbol":
        return str(node.value), ATOM
    if op == "linear":
        return _linear(node, args)
    if op in _SILENT:
        return args[0]
    if op in _COMPARISONS:
        return f" {_COMPARISONS[op]} ".join(_within(a, SUM) for a in args), COMPARE
    if op in _PRODUCTS:
        left, right = args
        return f"{_within(left, PRODUCT)} {_PRODUCTS[op]} {_within(right, ATOM)}", PRODUCT
    if op in _SUMS:
        left, right = args
        return f"{_within(left, SUM)} {_SUMS[op]} {_within(right, PRODUCT)}", SUM
    if op in ("and", "or"):
        own = AND if op == "and" else OR
        return f" {op} ".join(_within(a, own + 1) for a in args), own
    if op == "not":
        return f"not {_within(args[0], NOT)}", NOT
    if op == "select":
        test, a, b = (_within(x, OR) for x in args)
        return f"if {test} then {a} else {b}", CHOICE
    inside = ", ".join(a for a, _ in args)
    if op == "load":
        return f"{node.value.name}[{inside}]", ATOM
    return (f"{op}({inside})" if args else op), ATOM


def _choices(node: Node, done: Mapping[Node, Piece]) -> list[str]:
    """What a min of mins (a max of maxes) chooses from, the constant last."""
    parts, todo = [], list(node.args)
    while todo:
        part = todo.pop()
        if part.op == node.op:
            todo += part.args
        else:
            parts.append((part.is_const, done[part][0]))
    return [text for _, text in sorted(set(parts))]


def _linear(node: Node, args: list[Piece]) -> Piece:
    """Terms with a plus first, the constant last unless it is the only one with a plus."""
    constant, coefficients = node.value
    parts = []
    for c, a in zip(coefficients, args, strict=True):
        size = "" if abs(c) == 1 else f"{abs(c)} * "
        parts.append((c < 0, size + _within(a, ATOM if size or c < 0 else PRODUCT)))
    parts.sort()
    if constant:
        at = 0 if parts[0][0] and constant > 0 else len(parts)
        parts.insert(at, (constant < 0, str(abs(constant))))
    (negative, text), *rest = parts
    text = f"-{text}" if negative else text
    for minus, part in rest:
        text += f" {'-' if minus else '+'} {part}"
    return text, SUM if rest or negative else PRODUCT
