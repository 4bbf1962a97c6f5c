"""Expressions of a pattern as plain torch source text: the definition that a standalone file is
compared with.

Ints are int64, floats float64. Coordinates are tensors that broadcast over pairs; places where the
language has no value read 0, as in kernels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from maskdsl.codegen.text import AND, ATOM, COMPARE, OR, PRODUCT, SUM, UNARY, WIDTH, Text, call
from maskdsl.errors import CompileError
from maskdsl.ir.nodes import Array, Node, postorder

_INFIX = {
    "add": ("+", SUM), "sub": ("-", SUM), "mul": ("*", PRODUCT), "lt": ("<", COMPARE),
    "le": ("<=", COMPARE), "eq": ("==", COMPARE), "same": ("==", COMPARE), "and": ("&", AND),
    "or": ("|", OR),
}  # fmt: skip
_FUNCTIONS = ("exp", "tanh", "sigmoid", "abs")
_HELPED = {
    "floordiv": "floor_div", "mod": "floor_mod", "pow": "int_pow", "truncate": "rounded",
    "floor": "rounded", "ceil": "rounded", "bit_length": "bit_length", "bit_count": "bit_count",
    "random": "uniform", "div": "finite", "log": "finite", "log2": "finite", "sqrt": "finite",
    "load": "read",
}  # fmt: skip


@dataclass
class TorchText:
    """What was written so far.

    lines: statements, `name = text`. helpers: functions that they use. tables: names given to
    tables, by content; arrays: the tables themselves, by that name.
    """

    lines: list[str] = field(default_factory=list)
    helpers: set[str] = field(default_factory=set)
    tables: dict[str, str] = field(default_factory=dict)
    arrays: dict[str, Array] = field(default_factory=dict)
    _texts: dict[Node, Text] = field(default_factory=dict)
    _count: int = 0

    def write(self, root: Node) -> Text:
        """The text of an expression, after the statements that it needs. Raises CompileError."""
        order = postorder(root)
        uses: dict[Node, int] = {}
        for node in order:
            for arg in node.args:
                uses[arg] = uses.get(arg, 0) + 1
        for node in order:
            if node in self._texts:
                continue
            text = self._text(node)
            named = bool(node.args) and (uses.get(node, 0) > 1 or len(text.text) > WIDTH)
            if named and node is not root:
                name, self._count = f"x{self._count}", self._count + 1
                self.lines.append(f"{name} = {text.text}")
                text = Text(name)
            self._texts[node] = text
        return self._texts[root]

    def forget(self) -> None:
        """Another function begins."""
        self.lines = []
        self._texts, self._count = {}, 0

    def _text(self, node: Node) -> Text:
        op, args = node.op, [self._texts[a] for a in node.args]
        if op == "const":
            return _constant(node)
        if op == "coord":
            return Text("_".join(node.value))
        if op in ("head", "batch", "logit"):
            return Text(op)
        if op == "linear":
            return _linear(node, args)
        if op in _INFIX:
            sign, binds = _INFIX[op]
            first = args[0].within(binds + (binds == COMPARE))
            return Text(f" {sign} ".join([first, *(a.within(binds + 1) for a in args[1:])]), binds)
        if op in ("neg", "not"):
            return Text(("-" if op == "neg" else "~") + args[0].within(UNARY), UNARY)
        if op == "wide":
            return args[0]
        if op in ("to_float", "from_bool"):
            return Text(f"{args[0].within(ATOM)}.{'double' if op == 'to_float' else 'long'}()")
        if op in _FUNCTIONS:
            return call(f"torch.{op}", args[0].text)
        if op in ("min", "max"):
            return self._extreme(node, args)
        if op == "select":
            texts = [a.text for a in args]
            if node.type == "float" and node.args[1].is_const and node.args[2].is_const:
                texts[1] = f"torch.tensor({texts[1]}, dtype=torch.float64)"
            return call("torch.where", *texts)
        return self._helped(node, [a.text for a in args])

    def _extreme(self, node: Node, args: list[Text]) -> Text:
        """A minimum or maximum; with a constant, a clamp."""
        limit = "max" if node.op == "min" else "min"
        for one, other in ((0, 1), (1, 0)):
            if node.args[one].is_const:
                return Text(f"{args[other].within(ATOM)}.clamp({limit}={args[one].text})")
        return call(f"torch.{node.op}imum", *(a.text for a in args))

    def _helped(self, node: Node, texts: list[str]) -> Text:
        """By one of the file's own helpers."""
        op = node.op
        if op in ("floordiv", "mod") and node.args[1].is_const:
            sign = "//" if op == "floordiv" else "%"
            parts = [self._texts[a] for a in node.args]
            return Text(f"{parts[0].within(PRODUCT)} {sign} {parts[1].within(ATOM)}", PRODUCT)
        name = _HELPED.get(op)
        if op == "pow" and node.type == "float":
            name = "finite"
        if name is None:
            raise CompileError(f"a standalone file cannot evaluate '{op}'", node.span)
        self.helpers.add(name)
        if op == "load":
            return call("plain_read", self._array(node.value), *texts)
        if name == "rounded":
            return call("plain_rounded", f"torch.{op.replace('truncate', 'trunc')}", *texts)
        if name == "finite" and op in ("div", "pow"):
            sign = "/" if op == "div" else "**"
            left, right = (self._texts[a].within(ATOM) for a in node.args)
            return call("plain_finite", f"{left} {sign} {right}")
        if name == "finite":
            return call("plain_finite", f"torch.{op}({texts[0]})")
        return call(f"plain_{name}", *texts)

    def _array(self, array: Array) -> str:
        if array.is_input:
            return f'inputs["{array.name}"]'
        key = array.content or array.name
        if key not in self.tables:
            name = array.name if array.name.isidentifier() else "table"
            taken = set(self.tables.values())
            free = (f"{name}{n or ''}" for n in range(len(taken) + 1))
            self.tables[key] = next(n for n in free if n not in taken)
            self.arrays[self.tables[key]] = array
        return f'tables["{self.tables[key]}"]'


def _constant(node: Node) -> Text:
    value = node.value
    if node.type == "bool":
        return Text(f"torch.tensor({value})")
    if node.type == "float" and not math.isfinite(value):
        return Text(f'float("{value}")')
    text = repr(float(value)) if node.type == "float" else str(value)
    return Text(text, UNARY if text.startswith("-") else ATOM)


def _linear(node: Node, args: Sequence[Text]) -> Text:
    """Terms with a plus first."""
    constant, coefficients = node.value
    terms = []
    for c, a in zip(coefficients, args, strict=True):
        size = f"{abs(c)} * " if abs(c) != 1 else ""
        terms.append((c < 0, size + a.within(UNARY if size else PRODUCT)))
    terms.sort(key=lambda term: term[0])
    if constant:
        terms.append((constant < 0, str(abs(constant))))
    (negative, text), *rest = terms
    text = f"-{text}" if negative else text
    text += "".join(f" {'-' if minus else '+'} {part}" for minus, part in rest)
    return Text(text, SUM if rest else PRODUCT if "*" in text else UNARY)


HELPERS: Mapping[str, str] = {
    "floor_div": '''
def plain_floor_div(a, b):
    """a // b rounded down; 0 where b is 0."""
    a, b = torch.as_tensor(a), torch.as_tensor(b)
    return torch.where(b == 0, 0, a // torch.where(b == 0, 1, b))''',
    "floor_mod": '''
def plain_floor_mod(a, b):
    """The rest of the division rounded down; 0 where b is 0."""
    a, b = torch.as_tensor(a), torch.as_tensor(b)
    return torch.where(b == 0, 0, a % torch.where(b == 0, 1, b))''',
    "int_pow": '''
def plain_int_pow(a, b):
    """a ** b; 0 for negative exponents."""
    a, b = torch.as_tensor(a), torch.as_tensor(b)
    return torch.where(b < 0, 0, a ** b.clamp(min=0))''',
    "rounded": '''
def plain_rounded(to, x):
    """A float as an int; 0 where 64 bits do not hold it."""
    x = torch.as_tensor(x, dtype=torch.float64)
    return to(torch.where((x >= -(2.0**63)) & (x < 2.0**63), x, 0.0)).long()''',
    "bit_length": '''
def plain_bit_length(x):
    """Bits of |x|."""
    x = torch.as_tensor(x).abs()
    return sum(((x >> bit) > 0).long() for bit in range(63))''',
    "bit_count": '''
def plain_bit_count(x):
    """Ones in |x|."""
    x = torch.as_tensor(x).abs()
    return sum((x >> bit) & 1 for bit in range(63))''',
    "uniform": '''
def plain_uniform(*ints):
    """The pattern language's `random(seed, i, j)`: murmur3's finalizer, chained."""
    low = 0xFFFFFFFF

    def mix(x):
        for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
            x = ((x ^ (x >> shift)) * factor) & low
        return x ^ (x >> 16)

    ints = [torch.as_tensor(x) for x in ints]
    seed, i, j = ((x & low) ^ ((((x >> 32) & low) * 0x9E3779B9) & low) for x in ints)
    found = mix(mix(mix((seed + 0x9E3779B9) & low) ^ i) ^ j)
    return (found >> 8).double() * 2.0**-24''',
    "finite": '''
def plain_finite(x):
    """x; 0 where it is not finite."""
    return torch.where(torch.isfinite(x), x, 0.0)''',
    "read": '''
def plain_read(array, *at):
    """An element of a table or an input; 0 outside of it."""
    if 0 in array.shape:
        return torch.zeros((), dtype=array.dtype)
    if not at:
        return array.double() if array.is_floating_point() else array
    at = torch.broadcast_tensors(*(torch.as_tensor(x, device=array.device) for x in at))
    inside = torch.ones((), dtype=torch.bool, device=array.device)
    for x, extent in zip(at, array.shape):
        inside = inside & (x >= 0) & (x < extent)
    found = array[tuple(torch.where(inside, x, 0) for x in at)]
    if found.dtype == torch.bool:
        return found & inside
    found = found.double() if found.is_floating_point() else found.long()
    return torch.where(inside, found, 0)''',
}
