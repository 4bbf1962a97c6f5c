"""A model of the part of Gluon that emitted modules use, on CPU tensors: there is no interpreter.

One program runs after another, as one thread of it sees them. Copies land when they are waited for,
and products are taken as late as they may be: what is read too early is NaN, what is overwritten
too early is an error, and a wait for what never comes is one too. Layouts mean nothing here, and
neither do races between warps.
"""

from __future__ import annotations

import math
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

NAN = float("nan")
_program: list[int] = []
_products: list[Product] = []  # started, in order, and not yet waited for
_unfenced: list[Shared] = []


def constexpr(x: Any) -> Any:
    if not isinstance(x, (int, float)):
        return x
    return type("constexpr", (type(x),), {"value": property(lambda self: x)})(x)


@dataclass
class Pointer:
    memory: torch.Tensor  # flat
    at: Any = 0

    def __add__(self, offset: Any) -> Pointer:
        return Pointer(self.memory, self.at + offset)

    def __sub__(self, offset: Any) -> Pointer:
        return Pointer(self.memory, self.at - offset)


@dataclass
class Barrier:
    """Turns from one phase to the other when the bytes it expects have come."""

    turns: int = 0
    expected: int = 0
    copies: list[tuple[Shared, torch.Tensor]] = field(default_factory=list)


class Barriers:
    def __init__(self, count: int) -> None:
        self.each = [Barrier() for _ in range(count)]

    def index(self, i: Any) -> Barrier:
        return self.each[int(i)]


class Shared:
    """A view of shared memory; `home`: the allocation and slot."""

    def __init__(self, x: torch.Tensor, home: tuple[int, int]) -> None:
        self.x, self.home = x, home

    def index(self, i: Any) -> Shared:
        return Shared(self.x[int(i)], (self.home[0], int(i)))

    def reshape(self, shape: list[int]) -> Shared:
        return Shared(self.x.view(shape), self.home)

    def permute(self, order: tuple[int, ...]) -> Shared:
        return Shared(self.x.permute(order), self.home)

    def store(self, value: torch.Tensor) -> None:
        _free(self)
        self.x.copy_(value)
        _unfenced.append(self)


def _free(memory: Shared) -> None:
    for product in _products:
        homes = [x.home for x in (product.a, product.b) if isinstance(x, Shared)]
        assert memory.home not in homes, "overwritten while a product reads it"


@dataclass
class Product:
    a: Any
    b: Shared
    acc: torch.Tensor
    use_acc: bool
    result: torch.Tensor | None = None


def warpgroup_mma(a: Any, b: Shared, acc: Any, *, use_acc: bool = True, is_async: bool) -> Product:
    assert is_async and isinstance(acc, torch.Tensor)
    _products.append(Product(a, b, acc, use_acc))
    return _products[-1]


def warpgroup_mma_wait(pending: int, deps: list[Any]) -> Any:
    while len(_products) > pending:
        p = _products.pop(0)
        a = p.a.x if isinstance(p.a, Shared) else p.a
        p.result = a.float() @ p.b.x.float()
        if p.use_acc:
            p.result = p.result + p.acc
    found = [x.result if isinstance(x, Product) else x for x in deps]
    assert all(x is not None for x in found), "used before it is waited for"
    return found[0] if len(found) == 1 else tuple(found)


@dataclass
class TensorDescriptor:
    x: torch.Tensor
    shape: list[int]
    strides: list[int]
    block: list[int]
    layout: Any

    def __post_init__(self) -> None:
        self.view = self.x.as_strided(self.shape, self.strides)
        nbytes = math.prod(self.block) * self.x.element_size()
        self.block_type = types.SimpleNamespace(nbytes=nbytes)

    def window(self, place: Any) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
        """Of the tensor, and of the box: what lies inside both."""
        low = [int(p) for p in place]
        ends = [min(p + n, s) for p, n, s in zip(low, self.block, self.shape, strict=True)]
        starts = [max(p, 0) for p in low]
        inside = tuple(slice(a, max(a, b)) for a, b in zip(starts, ends, strict=True))
        own = tuple(slice(s.start - p, s.stop - p) for s, p in zip(inside, low, strict=True))
        return inside, own


def copy_in(desc: Any, place: Any, barrier: Any, memory: Shared, wanted: Any = True) -> None:
    if not wanted:
        return
    _free(memory)
    memory.x.fill_(NAN)
    box = torch.zeros(desc.block, dtype=desc.x.dtype)
    inside, own = desc.window(place)
    box[own] = desc.view[inside]
    assert barrier.expected >= desc.block_type.nbytes
    barrier.copies.append((memory, box))


def copy_out(desc: Any, place: Any, memory: Shared) -> None:
    assert not _unfenced
    inside, own = desc.window(place)
    desc.view[inside] = memory.x[own]


def expect(barrier: Any, nbytes: int, wanted: Any = True) -> None:
    if wanted:
        assert barrier.expected == 0
        barrier.expected = nbytes


def wait(barrier: Any, phase: Any, wanted: Any = True) -> None:
    if not wanted or barrier.turns % 2 != int(phase):
        return
    assert barrier.copies, "waits for ever"
    for memory, box in barrier.copies:
        memory.x.copy_(box)
        barrier.expected -= box.numel() * box.element_size()
    assert barrier.expected == 0
    barrier.copies.clear()
    barrier.turns += 1


def allocate(dtype: torch.dtype, shape: list[int], layout: Any) -> Any:
    if dtype == torch.int64:
        return Barriers(shape[0]) if len(shape) > 1 else Barrier()
    x = torch.full(shape, NAN, dtype=dtype)
    return Shared(x, (x.data_ptr(), 0))


def load(p: Pointer, mask: Any = True, other: Any = 0) -> torch.Tensor:
    at, chosen = torch.broadcast_tensors(torch.as_tensor(p.at), torch.as_tensor(mask))
    assert bool(((at >= 0) & (at < len(p.memory)))[chosen].all()), "outside of an array"
    found = torch.full(at.shape, other, dtype=p.memory.dtype)
    found[chosen] = p.memory[at[chosen].long()]
    return found


def store(p: Pointer, value: torch.Tensor, mask: Any = True) -> None:
    chosen = torch.broadcast_to(torch.as_tensor(mask), p.at.shape)
    p.memory[p.at[chosen]] = value[chosen]


def where(condition: Any, a: Any, b: Any) -> Any:
    if isinstance(a, Pointer):
        return a if condition else b
    if isinstance(condition, bool):
        return a if condition else b
    return torch.where(condition, a, b)


def _both(f: Callable[..., Any]) -> Callable[..., Any]:
    return lambda a, b: f(torch.as_tensor(a), torch.as_tensor(b))


class Function:
    """What `gluon.jit` makes: called in a kernel, launched with a grid."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function

    def __call__(self, *arguments: Any) -> Any:
        return self.function(*arguments)

    def __getitem__(self, grid: tuple[int]) -> Callable[..., None]:
        def launch(*arguments: Any, num_warps: int, enable_fp_fusion: bool = True) -> None:
            given = [Pointer(x.view(-1)) if isinstance(x, torch.Tensor) else x for x in arguments]
            for i in range(grid[0]):
                _program[:] = [i]
                self.function(*given)
                assert not _products, "a product is never waited for"

        return launch


def modules() -> dict[str, types.ModuleType]:
    """The modules that an emitted one imports, by name."""
    gl = types.SimpleNamespace(
        constexpr=constexpr, static_range=range, program_id=lambda axis: torch.tensor(_program[0]),
        arange=lambda low, high, layout: torch.arange(low, high),
        zeros=lambda shape, dtype, layout: torch.zeros(shape, dtype=dtype),
        full=lambda shape, x, dtype, layout=None: torch.full(shape, x, dtype=dtype),
        minimum=_both(torch.minimum), maximum=_both(torch.maximum), where=where, load=load,
        store=store, exp2=torch.exp2, log2=torch.log2, abs=torch.abs, max=torch.amax, sum=torch.sum,
        convert_layout=lambda x, layout: x, allocate_shared_memory=allocate,
    )  # fmt: skip
    for name in ("int1", "int32", "int64", "float16", "bfloat16", "float32", "float64"):
        setattr(gl, name, torch.bool if name == "int1" else getattr(torch, name))
    for name in ("NVMMADistributedLayout", "DotOperandLayout", "SliceLayout", "NVMMASharedLayout"):
        setattr(gl, name, lambda *_, **__: None)
    mbarrier = types.SimpleNamespace(
        init=lambda barrier, count: None, expect=expect, wait=wait, MBarrierLayout=lambda: None
    )
    tma = types.SimpleNamespace(
        async_copy_global_to_shared=copy_in, async_copy_shared_to_global=copy_out,
        store_wait=lambda pending: None,
    )  # fmt: skip
    hopper = types.SimpleNamespace(
        mbarrier=mbarrier, tma=tma, warpgroup_mma=warpgroup_mma,
        warpgroup_mma_wait=warpgroup_mma_wait, fence_async_shared=_unfenced.clear,
    )  # fmt: skip
    base = "triton.experimental.gluon"
    contents = {
        base: {"language": gl, "jit": Function},
        f"{base}.language.nvidia": {"hopper": hopper},
        f"{base}.language.nvidia.hopper": vars(hopper),
        f"{base}.nvidia.hopper": {"TensorDescriptor": TensorDescriptor},
    }
    found = {}
    for name, content in contents.items():
        found[name] = types.ModuleType(name)
        vars(found[name]).update(content)
    return found


def run(source: str) -> dict[str, Any]:
    """The names of an emitted module, executed over the model."""
    own = modules()
    names: dict[str, Any] = {"__name__": "emitted"}
    with pytest.MonkeyPatch.context() as patch:
        for name, module in own.items():
            patch.setitem(sys.modules, name, module)
            parent, _, leaf = name.rpartition(".")
            if parent in sys.modules:  # an import looks there first
                patch.setattr(sys.modules[parent], leaf, module, raising=False)
        exec(compile(source, "emitted.py", "exec"), names)
    return names
