"""Int operations as text.

Ints are int32 where their bounds prove that 32 bits suffice, int64 elsewhere. `//` and `%` floor;
Triton's truncate, which is the same for operands that are proved not negative.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from maskdsl.codegen.text import (
    AND,
    ATOM,
    PRODUCT,
    SHIFT,
    SUM,
    UNARY,
    Key,
    Text,
    call,
    chained,
    function,
    helper,
    operands,
    parts_of,
    plain,
    tensors,
)

if TYPE_CHECKING:
    from maskdsl.codegen.expressions import Printer


def _linear(p: Printer, key: Key) -> Text:
    constant, coefficients = key[0].value
    terms = []
    for c, text in zip(coefficients, operands(p, key), strict=True):
        text = text if abs(c) == 1 else Text(f"{abs(c)} * {text.within(UNARY)}", PRODUCT)
        terms.append(("-" if c < 0 else "+", text))
    terms.sort(key=lambda t: t[0] == "-")  # positive terms first
    if constant:
        at = 0 if terms[0][0] == "-" and constant > 0 else len(terms)
        terms.insert(at, ("-" if constant < 0 else "+", Text(str(abs(constant)))))
    if terms[0][0] == "-":
        terms[0] = ("+", Text(f"-{terms[0][1].within(UNARY)}", PRODUCT))
    return chained(p, key, terms, SUM)


def _mul(p: Printer, key: Key) -> Text:
    return Text(" * ".join(t.within(UNARY) for t in operands(p, key)), PRODUCT)


def _divided(sign: str, name: str) -> Callable[[Printer, Key], Text]:
    def run(p: Printer, key: Key) -> Text:
        a, b = key[0].args
        if a.low < 0 and b.is_const and b.value & (b.value - 1) == 0 and b.value > 0:
            value, low = parts_of(p, key)[0], b.value - 1  # two's complement floors
            if sign == "//":
                return Text(f"{value.within(SHIFT)} >> {low.bit_length()}", SHIFT)
            return Text(f"{value.within(AND)} & {low}", AND)
        if a.low >= 0 and b.low > 0:
            x, y = parts_of(p, key)
            return Text(f"{x.within(PRODUCT)} {sign} {y.within(UNARY)}", PRODUCT)
        return helper(p, name, *tensors(p, key))

    return run


def _pow(p: Printer, key: Key) -> Text:
    node = key[0]
    base, exponent = node.args
    if base.is_const and base.value == 2 and exponent.low >= 0 and exponent.high <= 62:
        one = "tl.full((), 1, tl.int64)" if p.width[node] else "tl.full((), 1, tl.int32)"
        return Text(f"{one} << {parts_of(p, key)[1].within(SUM)}", SHIFT)
    return helper(p, "int_pow", *tensors(p, key))


def _abs(p: Printer, key: Key) -> Text:
    return call("tl.abs", operands(p, key)[0].text)


def _bits(p: Printer, key: Key) -> Text:
    (text,) = plain(p, key)
    return helper(p, key[0].op, text, "32" if p.width[key[0].args[0]] else "16")


def _from_bool(p: Printer, key: Key) -> Text:
    return Text(f"{parts_of(p, key)[0].within(ATOM)}.to(tl.int32)")


def _rounded(p: Printer, key: Key) -> Text:
    node = key[0]
    (x,) = parts_of(p, key)
    inside = node.args[0].low > -(2.0**63) - 1 and node.args[0].high < 2.0**63
    text = x if inside else helper(p, "int64_or_0", x.text)
    if node.op != "truncate":
        text = call(f"tl.{node.op}", text.text)
    return Text(f"{text.within(ATOM)}.to({'tl.int64' if p.width[node] else 'tl.int32'})")


OPS: dict[str, Callable[[Printer, Key], Text]] = {
    "linear": _linear,
    "wide": lambda p, key: parts_of(p, key)[0],
    "mul": _mul,
    "floordiv": _divided("//", "floor_div"),
    "mod": _divided("%", "floor_mod"),
    "pow": _pow,
    "min": function("tl.minimum"),
    "max": function("tl.maximum"),
    "select": function("tl.where"),
    "abs": _abs,
    "bit_length": _bits,
    "bit_count": _bits,
    "truncate": _rounded,
    "floor": _rounded,
    "ceil": _rounded,
    "from_bool": _from_bool,
}
