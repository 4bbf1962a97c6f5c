"""Changes of a call's arguments: layouts in memory, values, shapes, types, devices, inputs."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from call_cases import EITHER, FINE, WRONG, Arguments, change, small


class Tensor(torch.Tensor):
    """A subclass that adds nothing."""


# Other places and other types of the same values.


@change
def other_order_in_memory(a: Arguments) -> str | None:
    name = a.any_tensor()
    i, j = a.rng.sample(range(4), 2)
    a.tensors[name] = a.tensors[name].transpose(i, j).contiguous().transpose(i, j)
    return FINE


@change
def stretched(a: Arguments) -> str | None:
    """Stride 0 in one dimension."""
    name, at = a.any_tensor(), a.rng.randrange(4)
    x = a.tensors[name]
    a.tensors[name] = x.narrow(at, 0, 1).expand(x.shape)
    return FINE


@change
def every_second_element(a: Arguments) -> str | None:
    name, at = a.any_tensor(), a.rng.randrange(4)
    x = a.tensors[name]
    a.tensors[name] = x.repeat_interleave(2, at).index_select(at, torch.arange(2 * x.shape[at]))
    a.tensors[name] = a.tensors[name][tuple([slice(None)] * at + [slice(None, None, 2)])]
    return FINE


@change
def overlapping(a: Arguments) -> str | None:
    name = a.any_tensor()
    x = a.tensors[name]
    flat = small(a.rng, (2 * sum(x.shape) + 7,), x.dtype)
    a.tensors[name] = flat.as_strided(x.shape, (1, 2, 1, 1), a.rng.randrange(3))
    return FINE


@change
def odd_offset(a: Arguments) -> str | None:
    name = a.any_tensor()
    x = a.tensors[name]
    flat = torch.cat([x.new_zeros(3), x.reshape(-1)])
    a.tensors[name] = flat[3:].view(x.shape)
    return FINE


@change
def negative_view(a: Arguments) -> str | None:
    name = a.any_tensor()
    a.tensors[name] = torch._neg_view(a.tensors[name])
    return FINE


@change
def imaginary_part(a: Arguments) -> str | None:
    name = a.any_tensor()
    x = a.tensors[name]
    if x.dtype not in (torch.float32, torch.float64):
        return None
    a.tensors[name] = torch.complex(x, x).conj().imag
    return FINE


@change
def subclass(a: Arguments) -> str | None:
    name = a.any_tensor()
    a.tensors[name] = a.tensors[name].as_subclass(Tensor)
    return FINE


@change
def parameter(a: Arguments) -> str | None:
    name = a.any_tensor()
    a.tensors[name] = torch.nn.Parameter(a.tensors[name].clone())
    return FINE if a.options.get("q_offset") is None and not _short(a) else EITHER


@change
def wants_gradients(a: Arguments) -> str | None:
    for name in a.rng.sample("qkv", a.rng.randrange(1, 4)):
        a.tensors[name] = a.tensors[name].detach().clone().requires_grad_()
    for name, x in a.inputs.items():
        if x.is_floating_point():
            a.inputs[name] = x.detach().clone().requires_grad_()
    return EITHER if _short(a) else FINE


@change
def without_gradients(a: Arguments) -> str | None:
    a.no_grad = True
    return FINE


@change
def with_lse(a: Arguments) -> str | None:
    a.options["return_lse"] = True
    return FINE


@change
def no_batch(a: Arguments) -> str | None:
    for name, x in a.tensors.items():
        a.tensors[name] = x[:0]
    for name, x in a.inputs.items():
        if _of_batch(a, name):
            a.inputs[name] = x[:0]
    a.batch = 0
    return FINE


@change
def fewer_queries(a: Arguments) -> str | None:
    if not a.subject.mask.program.shared:
        return None
    count = a.rng.randrange(1, a.subject.mask.shape[1])
    axis = 2 if a.subject.layout == "bhnd" else 1
    a.tensors["q"] = a.tensors["q"].narrow(axis, 0, count)
    if a.rng.random() < 0.5:
        last = a.subject.mask.shape[2] - count
        a.options["q_offset"] = a.rng.choice([int, np.int64, np.int32])(a.rng.randrange(last + 1))
    return EITHER if any(x.requires_grad for x in a.tensors.values()) else FINE


@change
def as_numpy(a: Arguments) -> str | None:
    name = a.any_input()
    if name is None:
        return None
    x = a.inputs[name].detach().numpy()
    how = a.rng.randrange(6)
    if how == 1:
        x = x.astype(x.dtype.newbyteorder(">"))
    if how == 2:
        x = x.copy()
        x.setflags(write=False)
    if how == 3:
        x = np.flip(np.flip(x, -1).copy(), -1)  # a negative stride
    if how == 4:
        x = np.asfortranarray(x)
    if how == 5:
        x = np.broadcast_to(x[..., :1], x.shape)
    a.inputs[name] = x
    return FINE


@change
def other_numbers(a: Arguments) -> str | None:
    """Narrower and wider types of inputs."""
    name = a.any_input()
    if name is None or a.inputs[name].dtype == torch.bool:
        return None
    ints = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.uint16, torch.uint64)
    floats = (torch.float16, torch.bfloat16, torch.float64)
    x = a.inputs[name]
    a.inputs[name] = x.to(a.rng.choice(floats if x.is_floating_point() else ints))
    return FINE


@change
def input_in_another_order(a: Arguments) -> str | None:
    name = a.any_input()
    if name is None:
        return None
    x = a.inputs[name]
    how = a.rng.randrange(4)
    if how == 3 and x.is_floating_point():
        x = torch._neg_view(x)
    elif how == 0:
        x = x[..., :1].expand(x.shape)
    elif how == 1:
        x = x.T.contiguous().T if x.ndim == 2 else x.as_subclass(Tensor)
    else:
        x = x.repeat_interleave(2, -1)[..., ::2]
    a.inputs[name] = x
    return FINE


@change
def not_finite(a: Arguments) -> str | None:
    """NaN or infinite queries and keys."""
    name = a.rng.choice("qk")
    x = a.tensors[name].detach().clone()
    if x.numel():
        x.view(-1)[a.rng.randrange(x.numel())] = a.rng.choice([math.nan, math.inf, -math.inf])
    a.tensors[name] = x
    return FINE


@change
def mode(a: Arguments) -> str | None:
    """Of torch; none of them changes what a call gives."""
    a.mode = a.rng.choice([torch.inference_mode, default_dtype, strict])
    if a.mode is torch.inference_mode:
        a.no_grad = True
    return FINE


@change
def under_autocast(a: Arguments) -> str | None:
    """A kernel keeps the types it was compiled for."""
    a.mode = lambda: torch.autocast("cpu", dtype=torch.bfloat16)
    return FINE


@change
def another_default_device(a: Arguments) -> str | None:
    a.mode = lambda: torch.device("meta")
    return FINE


@change
def values_not_finite(a: Arguments) -> str | None:
    """NaN or infinite values, which matter only where they are seen."""
    x = a.tensors["v"].detach().clone()
    if x.numel():
        x.view(-1)[a.rng.randrange(x.numel())] = a.rng.choice([math.nan, math.inf, -math.inf])
    a.tensors["v"] = x
    return FINE


@contextmanager
def default_dtype() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextmanager
def strict() -> Iterator[None]:
    """What is not written holds NaN, and nothing may be nondeterministic."""
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


# What does not fit.


@change
def another_size(a: Arguments) -> str | None:
    name, at = a.any_tensor(), a.rng.randrange(4)
    x = a.tensors[name]
    size = a.rng.choice([0, 1, x.shape[at] - 1, x.shape[at] + 1, 2 * x.shape[at]])
    tokens = 2 if a.subject.layout == "bhnd" else 1
    if size == x.shape[at]:
        return None
    if name == "q" and at == tokens and 1 <= size < x.shape[at] and a.subject.mask.program.shared:
        return None  # fewer queries
    a.tensors[name] = x.new_zeros([size if i == at else n for i, n in enumerate(x.shape)])
    return WRONG


@change
def another_rank(a: Arguments) -> str | None:
    name = a.any_tensor()
    x = a.tensors[name]
    a.tensors[name] = a.rng.choice([x[0], x[None], x.reshape(-1), x.sum()])
    return WRONG


@change
def another_type(a: Arguments) -> str | None:
    name = a.any_tensor()
    types = [
        torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64, torch.int8,
        torch.bool, torch.complex64, torch.complex32, torch.uint8, torch.float8_e4m3fn,
    ]  # fmt: skip
    dtype = a.rng.choice([t for t in types if t != a.subject.dtype])
    a.tensors[name] = a.tensors[name].to(dtype)
    return WRONG


@change
def no_strided_tensor(a: Arguments) -> str | None:
    name = a.any_tensor()
    x = a.tensors[name].detach()
    made: list[Any] = [x.to_sparse(), torch.nested.nested_tensor(list(x)), x.to("meta")]
    if x.dtype == torch.float32:
        made += [torch.quantize_per_tensor(x, 0.1, 0, torch.qint8), x.contiguous().to_mkldnn()]
        made += [x.to_sparse_csr(dense_dim=2) if x.shape[0] else x.to_sparse()]
    a.tensors[name] = a.rng.choice(made)
    return WRONG


@change
def no_values(a: Arguments) -> str | None:
    """All of it on the meta device."""
    a.tensors = {n: x.to("meta") for n, x in a.tensors.items()}
    if a.rng.random() < 0.5:
        a.inputs = {n: x.to("meta") for n, x in a.inputs.items()}
    return WRONG


@change
def no_tensor(a: Arguments) -> str | None:
    name = a.any_tensor()
    x = a.tensors[name]
    a.tensors[name] = a.rng.choice([None, 3, "q", x.detach().tolist(), [x], np.zeros(x.shape), {}])
    return WRONG


@change
def bad_offset(a: Arguments) -> str | None:
    keys = a.subject.mask.shape[2]
    a.options["q_offset"] = a.rng.choice(
        [-1, keys, 1, 2**63, 2**200, 0.0, 1.5, math.nan, "0", True, [0], torch.tensor(-3), np.nan]
    )
    return WRONG if not _short(a) else EITHER


@change
def missing_input(a: Arguments) -> str | None:
    name = a.any_input()
    if name is None:
        return None
    del a.inputs[name]
    return WRONG


@change
def unknown_input(a: Arguments) -> str | None:
    a.inputs[a.rng.choice(["dox", "scale", "mask"])] = torch.zeros(2)
    return WRONG


@change
def input_of_another_shape(a: Arguments) -> str | None:
    name = a.any_input()
    if name is None:
        return None
    x = a.inputs[name]
    if name == "reach":  # of any extent: too short a one is an index outside of it
        a.inputs[name] = a.rng.choice([x[:0], x[:2], x[None], x[0]])
        return WRONG
    a.inputs[name] = a.rng.choice([x[:0], x[None], x[0], x.repeat(*[2] * x.ndim), x[..., :-1]])
    return WRONG


@change
def input_of_another_type(a: Arguments) -> str | None:
    name = a.any_input()
    if name is None:
        return None
    x = a.inputs[name]
    shape = tuple(x.shape)
    made: list[Any] = [
        None, 3, "doc", x.tolist(), x.to(torch.complex64), x.to_sparse(), x.to("meta"),
        np.full(shape, "a"), np.full(shape, None), np.full(shape, b"x"), object(), {},
        np.zeros(shape, dtype="datetime64[s]"), np.zeros(shape, dtype=np.complex128),
        np.zeros(shape, dtype=[("x", "i4")]),
    ]  # fmt: skip
    kinds = (torch.bool, torch.int32, torch.float32)
    own = 0 if x.dtype == torch.bool else 2 if x.is_floating_point() else 1
    made += [x.to(kinds[i]) for i in range(3) if i != own]
    a.inputs[name] = a.rng.choice(made)
    return WRONG


@change
def input_too_large(a: Arguments) -> str | None:
    name = a.any_input()
    if name is None or a.inputs[name].dtype != torch.int64:
        return None
    x = np.full(tuple(a.inputs[name].shape), 2**64 - 1, dtype=np.uint64)
    a.inputs[name] = x if a.rng.random() < 0.5 else torch.from_numpy(x)
    return WRONG if x.size else EITHER


@change
def large_ints(a: Arguments) -> str | None:
    """Of 64 bits, where the definition has no bounds for them."""
    name = a.any_input()
    if name is None or a.inputs[name].dtype != torch.int64:
        return None
    x = a.inputs[name].clone()
    x.view(-1)[a.rng.randrange(x.numel())] = a.rng.choice([2**63 - 1, -(2**63), 2**31, -1])
    a.inputs[name] = x
    return FINE


@change
def floats_without_a_value(a: Arguments) -> str | None:
    """NaN and infinite inputs: what a kernel gives then is not looked at, but it must not fail."""
    name = a.any_input()
    if name is None or not a.inputs[name].is_floating_point():
        return None
    x = a.inputs[name].detach().clone()
    x.view(-1)[a.rng.randrange(x.numel())] = a.rng.choice([math.nan, math.inf, -math.inf])
    a.inputs[name] = x
    return EITHER


def _short(a: Arguments) -> bool:
    axis = 2 if a.subject.layout == "bhnd" else 1
    q = a.tensors["q"]
    return isinstance(q, torch.Tensor) and q.ndim == 4 and q.shape[axis] < a.subject.mask.shape[1]


def _of_batch(a: Arguments, name: str) -> bool:
    arrays = a.subject.mask.program.inputs
    return any(x.name == name and x.dims[0] == "batch" for x in arrays)
