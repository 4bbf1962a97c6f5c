"""Scores as the compiled part of the torch backend applies them: what reads the logit is printed as
C++ over vectors of keys, with its slope. What does not is a constant, or a plane: numbers over the
pairs that torch evaluates before.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from maskdsl.ir.evaluate import always_defined
from maskdsl.ir.nodes import Node, postorder

_RAW = {
    "div": "{0} / {1}",
    "pow": "power({0}, {1})",
    "log": "logarithm({0})",
    "log2": "binary_logarithm({0})",
    "sqrt": "root({0})",
}
_POWERS = {  # by exponent
    1.0: "{0}", 2.0: "{0} * {0}", 3.0: "{0} * {0} * {0}", 4.0: "({0} * {0}) * ({0} * {0})",
    0.5: "root({0})", -0.5: "1.0f / root({0})", -1.0: "1.0f / {0}", -2.0: "1.0f / ({0} * {0})",
}  # fmt: skip
_CHEAP = {
    "add": "{0} + {1}",
    "sub": "{0} - {1}",
    "mul": "{0} * {1}",
    "neg": "-{0}",
    "abs": "absolute({0})",
    "min": "lesser({0}, {1})",
    "max": "greater({0}, {1})",
    "lt": "{0} < {1}",
    "le": "{0} <= {1}",
    "eq": "{0} == {1}",
    "same": "{0} == {1}",
    "not": "~{0}",
    "select": "{0} ? {1} : {2}",
}
_OTHERS = {"exp": "exponential({0})", "tanh": "tanh({0})", "sigmoid": "sigmoid({0})"}
_JOINED = {"and": " & ", "or": " | "}
_VECTORS = {"float": "Floats", "bool": "Ints"}

LEAST_PAIRS = 2**22  # of queries and keys of all heads, that a library of its own is built for
ADDED = 0  # the number of the score that `native/score.h` holds


class Plane(NamedTuple):
    """What a score reads. over_pairs: whether it depends on queries and keys."""

    root: Node
    over_pairs: bool


@dataclass(frozen=True)
class Shape:
    """A score as it is compiled. The first `values` of its planes are read for its value, the
    others for its slope.
    """

    number: int
    planes: tuple[Plane, ...]
    values: int


@dataclass(frozen=True)
class Shapes:
    """The scores of a program. text: what stands for `native/score.h`, or nothing. of: by score."""

    text: str
    of: Mapping[Node, Shape]

    @property
    def planes(self) -> bool:
        """Whether scores read anything but the logit."""
        return any(s.planes for s in self.of.values())

    @property
    def over_pairs(self) -> bool:
        """Whether any plane depends on queries and keys."""
        return any(p.over_pairs for s in self.of.values() for p in s.planes)


def adding(added: Mapping[Node, Node]) -> Shapes:
    """Of scores that only add to the logit, by what each adds."""
    return Shapes("", {root: Shape(ADDED, _planes([x]), 1) for root, x in added.items()})


def printed(slopes: Mapping[Node, Node]) -> Shapes | None:
    """Of any scores, by the slope of each by the logit; None where one holds an operation that is
    not compiled.
    """
    of, cases = {}, []
    for number, (root, slope) in enumerate(slopes.items()):
        found = _Printed.of(root, slope)
        if found is None:
            return None
        of[root] = Shape(number, found.planes, found.values)
        cases.append(f"    case {number}: {{\n{found.text}    }}")
    lines = [
        '#include "functions.h"', "",
        "constexpr bool SLOPED = true;", "",
        "template <bool SLOPE, class Y>",
        "inline Floats score(int64_t number, Floats x, const Y& y, Floats& slope) {",
        "    switch (number) {", *cases, "    }", "    return x;", "}", "",
    ]  # fmt: skip
    return Shapes("\n".join(lines), of)


def _planes(roots: Sequence[Node]) -> tuple[Plane, ...]:
    sides = _sides(roots)
    return tuple(Plane(x, len(sides[x]) == 2) for x in roots)


@dataclass(frozen=True)
class _Printed:
    """Statements that return a score and set its slope."""

    text: str
    planes: tuple[Plane, ...]
    values: int

    @staticmethod
    def of(root: Node, slope: Node) -> _Printed | None:
        order = postorder(root, slope)
        inner = _inner(order)
        needed = [_reached(order, x, inner) for x in (root, slope)]
        names: dict[Node, str] = {}
        planes: list[Node] = []
        parts, counts = [], []
        for own in needed:
            lines = []
            for node in order:
                if node not in own or node in names:
                    continue
                names[node] = name = f"v{len(names)}"
                text = _expression(node, names) if node in inner else _leaf(node, len(planes))
                if text is None:
                    return None
                if text.startswith("y("):
                    planes.append(node)
                lines.append(f"const {_VECTORS[node.type]} {name} = {text};")
            parts.append(lines)
            counts.append(len(planes))
        value, change = parts
        text = "".join(f"        {x}\n" for x in value)
        text += "        if constexpr (SLOPE) {\n"
        text += "".join(f"            {x}\n" for x in [*change, f"slope = {names[slope]};"])
        text += f"        }}\n        return {names[root]};\n"
        return _Printed(text, _planes(planes), counts[0])


def _inner(order: Iterable[Node]) -> set[Node]:
    """Nodes to print: those that read the logit, and cheap ones that join what depends on queries
    with what depends on keys, each of which is a plane of fewer numbers.
    """
    order = list(order)
    sides = _sides(order)
    reads, apart = set(), set()
    for node in order:
        if node.op == "logit" or any(a in reads for a in node.args):
            reads.add(node)
        joins = _cheap(node) and all(a in apart for a in node.args)
        if len(sides[node]) < 2 or joins:
            apart.add(node)
    return reads | {n for n in apart if len(sides[n]) == 2}


def _cheap(node: Node) -> bool:
    typed = all(a.type in _VECTORS for a in (node, *node.args))
    return typed and (node.op in _CHEAP or node.op in _JOINED)


def _sides(roots: Iterable[Node]) -> dict[Node, frozenset[str]]:
    """Which of queries and keys nodes depend on."""
    found: dict[Node, frozenset[str]] = {}
    for node in postorder(*roots):
        own = {node.value[0]} if node.op == "coord" else set()
        found[node] = frozenset(own.union(*(found[a] for a in node.args)))
    return found


def _reached(order: list[Node], root: Node, inner: set[Node]) -> set[Node]:
    """The root and what printed nodes read."""
    found = {root}
    for node in reversed(order):
        if node in found and node in inner:
            found.update(node.args)
    return found


def _leaf(node: Node, planes: int) -> str | None:
    if node.type not in _VECTORS:
        return None
    if node.is_const:
        return _constant(node)
    return f"y({planes})" + (" != 0.0f" if node.type == "bool" else "")


def _constant(node: Node) -> str:
    if node.type == "bool":
        return f"Ints{{}} - {int(node.value)}"
    with np.errstate(over="ignore"):
        value = float(np.float32(node.value))
    if math.isfinite(value):
        return f"Floats{{}} + {value.hex()}f"
    return f"Floats{{}} {'-' if value < 0 else '+'} " + (
        '__builtin_nanf("")' if math.isnan(value) else "INFINITE"
    )


def _expression(node: Node, names: Mapping[Node, str]) -> str | None:
    """A node over the names of its arguments, None where it cannot be printed."""
    if node.op == "logit":
        return "x"
    if any(x.type not in _VECTORS for x in (node, *node.args)):
        return None
    args = [names[a] for a in node.args]
    if node.op in _JOINED:
        return _JOINED[node.op].join(args)
    if node.op == "finite":
        return f"is_finite({_raw(node.value, node, args)})"
    if node.op in _RAW:
        raw = _raw(node.op, node, args)
        return raw if always_defined(node) else f"finite_or_0({raw})"
    known = _CHEAP.get(node.op) or _OTHERS.get(node.op)
    return None if known is None else known.format(*args)


def _raw(op: str, node: Node, args: list[str]) -> str:
    exponent = node.args[-1]
    if op == "pow" and exponent.is_const and exponent.value in _POWERS:
        return _POWERS[exponent.value].format(*args)
    return _RAW[op].format(*args)
