"""Expressions of a pattern as JavaScript, where its numbers give the same answers.

A number of JavaScript is a binary64: ints are exact below 2 ** 53, and floats are those of the
language but for transcendental functions, which are refused. Truths are booleans.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from maskdsl.errors import CompileError
from maskdsl.ir.nodes import Array, Node, postorder

EXACT = 2**53
MAX_TEXT = 200_000  # characters of a function
_INFIX = {
    "add": "+", "sub": "-", "mul": "*", "lt": "<", "le": "<=", "eq": "===", "same": "===",
    "and": "&&", "or": "||",
}  # fmt: skip
_CALLS = {
    "min": "Math.min", "max": "Math.max", "abs": "Math.abs", "floordiv": "floorDiv",
    "mod": "floorMod", "pow": "intPow", "bit_length": "bitLength", "bit_count": "bitCount",
    "random": "uniform",
}  # fmt: skip
_ROUNDED = {"truncate": "Math.trunc", "floor": "Math.floor", "ceil": "Math.ceil"}
_SILENT = ("to_float", "wide")


class Tables:
    """Arrays that functions read, as `T[number]`; inputs have the data that they were given."""

    def __init__(self, inputs: Mapping[str, np.ndarray]) -> None:
        self.inputs = inputs
        self.arrays: list[np.ndarray] = []
        self._numbers: dict[tuple[bool, str], int] = {}

    def number(self, array: Array) -> int:
        """Raises CompileError for an input that was not given."""
        key = (array.is_input, array.name if array.is_input else array.content)
        if key not in self._numbers:
            if array.is_input and array.name not in self.inputs:
                raise CompileError(f"the input '{array.name}' decides")
            data = self.inputs[array.name] if array.is_input else array.data
            if data.dtype.kind in "iu" and data.size and np.abs(data).max() >= EXACT:
                raise CompileError(f"'{array.name}' holds ints that JavaScript has not")
            self._numbers[key] = len(self.arrays)
            self.arrays.append(data)
        return self._numbers[key]


def js_function(root: Node, tables: Tables) -> str:
    """`(head, batch, c) => boolean` for a truth of one pair: `c` holds coordinates by name, such as
    `q_t`. Raises CompileError where JavaScript would not give the same answer.
    """
    texts: dict[Node, str] = {}
    lines: list[str] = []
    uses: dict[Node, int] = {}
    order = postorder(root)
    reach: dict[Node, int] = {}
    for node in order:
        for arg in node.args:
            uses[arg] = uses.get(arg, 0) + 1
    for node in order:
        if node.type == "int":
            reach[node] = _reach(node, reach, tables)
            if reach[node] >= EXACT:
                raise CompileError("its ints are beyond those of JavaScript")
        text = _text(node, [texts[a] for a in node.args], tables)
        if node.args and uses.get(node, 0) > 1:
            lines.append(f"const x{len(lines)} = {text};")
            text = f"x{len(lines) - 1}"
        texts[node] = text
        if len(text) > MAX_TEXT:
            raise CompileError("its text is too long")
    body = " ".join([*lines, f"return {texts[root]};"])
    return f"(head, batch, c) => {{ {body} }}"


def _reach(node: Node, below: Mapping[Node, int], tables: Tables) -> int:
    """Not less than any int on the way to the node's value, given those of its arguments."""
    own: int = max(abs(node.low), abs(node.high))
    args = [below.get(a, 0) for a in node.args]
    if node.op == "linear":
        constant, coefficients = node.value
        parts: int = sum(abs(c) * n for c, n in zip(coefficients, args, strict=True))
        return parts + abs(int(constant))
    if node.op == "mul":
        return args[0] * args[1]
    if node.op == "load" and node.value.is_input:
        data = tables.arrays[tables.number(node.value)]
        return int(np.abs(data).max(initial=0))
    if node.op in ("select", "min", "max", "abs", "floordiv", "wide"):
        return min(own, max(args))
    return own


def _text(node: Node, args: list[str], tables: Tables) -> str:
    op = node.op
    if op == "const":
        return _constant(node)
    if op == "coord":
        return "c." + "_".join(node.value)
    if op in ("head", "batch"):
        return op
    if op in _SILENT:
        return args[0]
    if op == "linear":
        constant, coefficients = node.value
        terms = [f"{c} * {a}" for c, a in zip(coefficients, args, strict=True)]
        return "(" + " + ".join([*terms, str(constant)]) + ")"
    if op in _INFIX:
        return "(" + f" {_INFIX[op]} ".join(args) + ")"
    if op in ("neg", "not"):
        return f"({'-' if op == 'neg' else '!'}{args[0]})"
    if op == "from_bool":
        return f"({args[0]} ? 1 : 0)"
    if op == "select":
        return f"({args[0]} ? {args[1]} : {args[2]})"
    if op == "div":
        return f"finite({args[0]} / {args[1]})"
    if op == "sqrt":
        return f"finite(Math.sqrt({args[0]}))"
    if op in _ROUNDED:
        return f"rounded({_ROUNDED[op]}, {args[0]})"
    if op == "load":
        return f"read(T[{tables.number(node.value)}], [{', '.join(args)}])"
    if op in _CALLS and not (op == "pow" and node.type == "float"):
        return f"{_CALLS[op]}({', '.join(args)})"
    raise CompileError(f"JavaScript's '{op}' may differ in the last bit")


def _constant(node: Node) -> str:
    if node.type == "bool":
        return str(node.value).lower()
    if node.type == "float" and not math.isfinite(node.value):
        return {math.inf: "Infinity", -math.inf: "-Infinity"}.get(node.value, "NaN")
    text = repr(node.value)
    return f"({text})" if text.startswith("-") else text
