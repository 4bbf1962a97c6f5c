"""The arguments of a kernel: their types, what the launch passes, and the data of constant ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from maskdsl.codegen.operands import Operand
from maskdsl.codegen.walk import Walk
from maskdsl.ir.nodes import Array

TYPES = {"float16": "*fp16", "bfloat16": "*bf16", "float32": "*fp32"}
_INPUT_TYPES = {"int": "*i64", "float": "*fp32", "bool": "*i1"}


@dataclass(frozen=True)
class Argument:
    """An argument of the kernel. type: of a pointer, as Triton writes it. value: what the launch
    passes.
    """

    name: str
    value: str
    type: str = ""


def arguments_of(
    dtype: str,
    tensors: Sequence[Operand],
    per_query: Sequence[str],
    batch_heads: str,
    walk: Walk,
    arrays: Mapping[str, Array],
    text: str,
) -> list[Argument]:
    """All but OFFSETS, in order.

    tensors: of tokens, in `dtype`, by descriptors or with strides. per_query: contiguous float32
    (batch, heads, queries). batch_heads: how many times all rows are walked, in the launch's words.
    text: of all expressions.
    """
    found = []
    element = TYPES[dtype]
    for x in tensors:
        if x.boxes is None:
            found.append(Argument(f"{x.name}_ptr", x.name, element))
        else:
            kind = f"tensordesc<{element.removeprefix('*')}[{x.block}]>"
            found.append(Argument(x.desc, x.described, kind))
    found += [Argument(f"{n}_ptr", n, "*fp32") for n in per_query]
    found = list({a.name: a for a in found}.values())
    plain = list(dict.fromkeys(x.name for x in tensors if x.boxes is None))
    found += [Argument(f"{n}_strides", f"{n}.stride()") for n in plain]
    found.append(Argument("scale", "scale"))
    if not walk.even:
        found.append(Argument("batch_heads", batch_heads))
        found.append(Argument("heads_at_once", "heads_at_once"))
    found += [Argument(n, f'walk["{n}"]', _pointer(x)) for n, x in walk.tables().items()]
    for name, array in arrays.items():
        if not array.is_input:
            found.append(Argument(name, f'walk["{name}"]', _pointer(data_of(array))))
            continue
        value = f'inputs["{array.name}"]'
        found.append(Argument(name, value, _INPUT_TYPES[array.type]))
        if array.rank:
            found.append(Argument(f"{name}_strides", f"{value}.stride()"))
        if f"{name}_sizes[" in text:
            found.append(Argument(f"{name}_sizes", f"tuple({value}.shape)"))
    return found


def data_of(array: Array) -> np.ndarray:
    """A table as the kernel reads it: contiguous, ints in the fewest of 32 or 64 bits, truths as
    bytes.
    """
    data = np.ascontiguousarray(array.data)
    if array.type == "bool":
        return data.astype(np.int8)
    if array.type == "float":
        return data.astype(np.float64)
    small = not data.size or (data.min() >= -(2**31) and data.max() < 2**31)
    return data.astype(np.int32 if small else np.int64)


def _pointer(data: np.ndarray) -> str:
    return {"int8": "*i8", "int32": "*i32", "int64": "*i64", "float64": "*fp64"}[data.dtype.name]
