"""Expressions as text for people, in the language's own notation."""

from __future__ import annotations

from collections.abc import Mapping

from maskdsl.ir.nodes import Node, postorder

# how tightly an operator binds
CHOICE, OR, AND, NOT, COMPARE, SUM, PRODUCT, ATOM = range(8)
_COMPARISONS = {"le": "<=", "lt": "<", "eq": "==", "same": "=="}
_PRODUCTS = {"mul": "*", "floordiv": "//", "mod": "%", "div": "/"}
_SUMS = {"add": "+", "sub": "-"}
_SILENT = ("to_float", "wide")

Piece = tuple[str, int]


def readable(root: Node, names: Mapping[object, str] | None = None) -> str:
    """The text of an expression. names: of coordinates, by their value; else `q.n` and so on."""
    done: dict[Node, Piece] = {}
    for node in postorder(root):
        done[node] = _piece(node, [done[a] for a in node.args], names or {})
    return done[root][0]


def _within(piece: Piece, least: int) -> str:
    return piece[0] if piece[1] >= least else f"({piece[0]})"


def _piece(node: Node, args: list[Piece], names: Mapping[object, str]) -> Piece:
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


def _linear(node: Node, args: list[Piece]) -> Piece:
    """Terms with a plus first, the constant last."""
    constant, coefficients = node.value
    parts = []
    for c, a in zip(coefficients, args, strict=True):
        size = "" if abs(c) == 1 else f"{abs(c)} * "
        text = size + _within(a, ATOM if size else PRODUCT)
        parts.append((c < 0, text))
    parts.sort()
    parts += [(constant < 0, str(abs(constant)))] if constant else []
    if parts[0][0] and parts[-1] == (False, str(constant)):
        parts = [parts[-1], *parts[:-1]]
    text = ("-" if parts[0][0] else "") + parts[0][1]
    for negative, part in parts[1:]:
        text += f" {'-' if negative else '+'} {part}"
    return text, SUM if len(parts) > 1 or parts[0][0] else PRODUCT
