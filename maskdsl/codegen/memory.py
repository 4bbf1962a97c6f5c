"""Reads of tables and inputs as text: addresses, and what is read outside an array."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

from maskdsl.codegen.sides import Stage
from maskdsl.codegen.text import (
    AND,
    ATOM,
    COMPARE,
    OR,
    PRODUCT,
    SUM,
    Key,
    Text,
    chained,
    parts_of,
)
from maskdsl.ir.nodes import Array, Node, postorder

if TYPE_CHECKING:
    from maskdsl.codegen.expressions import Printer


ROOM = 40  # characters for an address and a mask on one line


def checked(node: Node, dimension: int) -> bool:
    """Whether an index must be compared with its extent."""
    index, array = node.args[dimension], node.value
    extent = _extent(array, dimension)
    if array.is_input and array.dims[dimension] == "batch" and index.op == "batch":
        return False
    return bool(extent is None or index.low < 0 or index.high >= extent)


def _extent(array: Array, dimension: int) -> int | None:
    if array.data is not None:
        return int(array.data.shape[dimension])
    extent = array.dims[dimension]
    return extent if isinstance(extent, int) else None


def load(p: Printer, key: Key) -> Text:
    """An element of a table or an input; 0 outside of it, without touching memory."""
    node, exact = key
    array: Array = node.value
    if array.data is not None and array.data.size == 0:
        return Text("0")
    name = _array_name(p, array)
    p.out.arrays[name] = array
    p.out.indexing |= {n.value[0] for n in postorder(*node.args) if n.op == "coord"}
    known: list[tuple[str, Text]] = [("+", Text(name))]  # the address, by when it is known
    varying: list[tuple[str, Text]] = []
    checks: list[tuple[str, Text]] = []
    for i, (arg, index) in enumerate(zip(node.args, parts_of(p, key), strict=True)):
        if not (arg.is_const and arg.value == 0):
            part = ("+", _offset(array, name, i, arg, index))
            (known if p.stage[arg] == Stage.ONCE else varying).append(part)
        if checked(node, i):
            checks += [("&", check) for check in _checks(array, name, i, arg, index)]
    base = Text(" + ".join(t.within(PRODUCT) for _, t in known), SUM if len(known) > 1 else ATOM)
    if varying and len(known) > 1:
        base = p.name(key, base, stage=Stage.ONCE)
    address = chained(p, key, [("+", base), *varying], SUM)
    if checks:
        mask = chained(p, key, checks, AND)
        if len(address.text) + len(mask.text) > ROOM:
            address = p.name(key, address, stage=p.stage[node])
        text = f"tl.load({address.text}, mask={mask.text}, other=0)"
    else:
        text = f"tl.load({address.text})"
    if node.type == "float":
        return Text(f"{text}.to({'tl.float64' if exact else 'tl.float32'})")
    if node.type == "bool" and not array.is_input:
        return Text(f"{text} != 0", COMPARE)
    if node.type == "int" and array.is_input and node not in p.compared:
        return Text(f"{text}.to(tl.int64)")
    return Text(text)


def only_compared(nodes: Iterable[Node]) -> set[Node]:
    """Int inputs that only comparisons with each other read: they stay in their own type."""
    found = {n for n in nodes if n.op == "load" and n.type == "int" and n.value.is_input}
    for n in nodes:
        among = n.op in ("le", "eq") and all(
            a.op == "load" and a.type == "int" and a.value.is_input for a in n.args
        )
        if not among:
            found -= set(n.args)
    return found


def _array_name(p: Printer, array: Array) -> str:
    """Of the kernel's argument; tables made by the compiler have numbers."""
    if array.name:
        return f"in_{array.name}" if array.is_input else f"table_{array.name}"
    return f"table{p.numbers.setdefault(array.content, len(p.numbers))}"


def _offset(array: Array, name: str, i: int, arg: Node, index: Text) -> Text:
    """The part of an address that one index adds."""
    if array.is_input:
        wide = f"tl.full((), {arg.value}, tl.int64)" if arg.is_const else ""
        return Text(
            f"{wide or index.within(ATOM) + '.to(tl.int64)'} * {name}_strides[{i}]", PRODUCT
        )
    stride = math.prod(array.data.shape[i + 1 :])
    return index if stride == 1 else Text(f"{index.within(PRODUCT)} * {stride}", PRODUCT)


def _checks(array: Array, name: str, i: int, arg: Node, index: Text) -> list[Text]:
    """That an index lies inside its array, as far as bounds do not prove it."""
    extent = _extent(array, i)
    found = [Text(f"{index.within(OR)} >= 0", COMPARE)] if arg.low < 0 else []
    if extent is None or arg.high >= extent:
        limit = f"{name}_sizes[{i}]" if extent is None else str(extent)
        found.append(Text(f"{index.within(OR)} < {limit}", COMPARE))
    return found


def address_parts(node: Node, name: str, indices: list[Text]) -> tuple[list[str], list[str]]:
    """(offsets, checks) of an input's element: what each index adds to the address, and that it
    lies inside.
    """
    array: Array = node.value
    offsets, checks = [], []
    for i, (arg, index) in enumerate(zip(node.args, indices, strict=True)):
        if not (arg.is_const and arg.value == 0):
            offsets.append(_offset(array, name, i, arg, index).text)
        if checked(node, i):
            checks += [check.text for check in _checks(array, name, i, arg, index)]
    return offsets, checks
