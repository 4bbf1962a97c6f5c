"""The operator that every kernel is called through, `maskdsl::attention`, and its gradients'.

Kernels are named by a string, which a graph can hold: the digest of all that they were compiled
from. What a graph names stays alive; else a kernel lives as long as its caller keeps it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any, Protocol
from weakref import ref

import torch
from torch._functorch import autograd_function
from torch.autograd import forward_ad

from maskdsl.errors import CompileError
from maskdsl.runtime.op_batch import batched

Tensors = Sequence[torch.Tensor]


class Attends(Protocol):
    """What the operator calls. Tensors are in the order that the kernel was compiled for; inputs
    are in the pattern's order.
    """

    @property
    def dtype(self) -> torch.dtype: ...

    @property
    def composite(self) -> bool:
        """Whether `forward` is differentiable as it is, as often as one likes."""

    @property
    def batch_dims(self) -> Sequence[int | None]:
        """The dimension of each input that counts batch entries, if any."""

    def empty(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, inputs: Tensors,
        q_offset: int | None, /,
    ) -> Tensors:  # fmt: skip
        """(out, lse) of a call, of the right shapes, strides and dtypes."""

    def empty_gradients(
        self, named: Tensors, inputs: Tensors, wanted: Sequence[bool], /
    ) -> list[torch.Tensor]:
        """As `gradients` gives them, of the right shapes, strides and dtypes."""

    def forward(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, inputs: Tensors,
        q_offset: int | None, /,
    ) -> Tensors: ...  # fmt: skip

    def gradients(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, out: torch.Tensor,
        lse: torch.Tensor, do: torch.Tensor, grad_lse: torch.Tensor | None, inputs: Tensors,
        wanted: Sequence[bool], q_offset: int | None, /,
    ) -> list[torch.Tensor]:  # fmt: skip
        """Of those of q, k, v and the inputs that are wanted."""

    @property
    def differentiable(self) -> Sequence[bool]:
        """Which inputs may have a gradient."""


_alive: dict[str, list[ref[Attends]]] = {}  # kernels compiled alike have one name
_changing = threading.RLock()  # of `_alive`: a kernel may be collected anywhere, also in `register`
_traced: dict[str, Attends] = {}

_library: Any = torch.library.Library("maskdsl", "DEF")  # type: ignore[no-untyped-call]
_library.define(
    "attention(Tensor q, Tensor k, Tensor v, Tensor[] inputs, str kernel, SymInt? q_offset=None)"
    " -> (Tensor, Tensor)"
)
_library.define(
    "attention_backward(Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, Tensor do, "
    "Tensor? grad_lse, Tensor[] inputs, str kernel, bool[] wanted, SymInt? q_offset=None)"
    " -> Tensor[]"
)
attention: Callable[..., Tensors] = torch.ops.maskdsl.attention.default
attention_backward: Callable[..., list[torch.Tensor]] = torch.ops.maskdsl.attention_backward.default


def register(name: str, kernel: Attends) -> None:
    """Lets the operator find a kernel for as long as somebody else holds it."""
    changing, alive = _changing, _alive  # this module's names are gone when the last kernels go

    def forget(gone: ref[Attends]) -> None:
        with changing:
            alike.remove(gone)
            if not alike and alive.get(name) is alike:
                del alive[name]

    with _changing:
        alike = _alive.get(name, [])
        alike.append(ref(kernel, forget))
        _alive[name] = alike


def _find(name: str) -> Attends:
    for held in reversed(tuple(_alive.get(name, ()))):
        found = held()
        if found is not None:
            return found
    raise CompileError(
        f"this process has no kernel '{name}': compile it again with the same arguments"
    )


def _forward(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, inputs: list[torch.Tensor], kernel: str,
    q_offset: int | None = None,
) -> Tensors:  # fmt: skip
    return _find(kernel).forward(q, k, v, inputs, q_offset)


def _backward(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, out: torch.Tensor, lse: torch.Tensor,
    do: torch.Tensor, grad_lse: torch.Tensor | None, inputs: list[torch.Tensor], kernel: str,
    wanted: list[bool], q_offset: int | None = None,
) -> list[torch.Tensor]:  # fmt: skip
    found = _find(kernel)
    return found.gradients(q, k, v, out, lse, do, grad_lse, inputs, wanted, q_offset)


def _fake_forward(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, inputs: list[torch.Tensor], kernel: str,
    q_offset: int | None = None,
) -> Tensors:  # fmt: skip
    found = _traced[kernel] = _find(kernel)
    return found.empty(q, k, v, inputs, q_offset)


def _fake_backward(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, out: torch.Tensor, lse: torch.Tensor,
    do: torch.Tensor, grad_lse: torch.Tensor | None, inputs: list[torch.Tensor], kernel: str,
    wanted: list[bool], q_offset: int | None = None,
) -> list[torch.Tensor]:  # fmt: skip
    return _find(kernel).empty_gradients((q, k, v), inputs, wanted)


class _Attention(torch.autograd.Function):
    """Saves q, k, v, out, lse and the inputs, nothing of the size of the mask."""

    @staticmethod
    def forward(
        ctx: Any, own: Attends, kernel: str, q_offset: int | None, able: Sequence[bool],
        q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *inputs: torch.Tensor,
    ) -> Tensors:  # fmt: skip
        with torch._C._AutoDispatchBelowAutograd():
            out, lse = attention(q, k, v, inputs, kernel, q_offset)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(q, k, v, out, lse, *inputs)
        ctx.kernel, ctx.q_offset, ctx.able = kernel, q_offset, able
        ctx.own = own  # lives until the backward pass
        return out, lse

    @staticmethod
    def backward(ctx: Any, do: torch.Tensor | None, grad_lse: torch.Tensor | None) -> Any:
        q, k, v, out, lse, *inputs = ctx.saved_tensors
        needed = ctx.needs_input_grad[4:]
        able = (True, True, True, *ctx.able)
        wanted = [n and a for n, a in zip(needed, able, strict=True)]
        if (do is None and grad_lse is None) or not any(wanted):
            return (None,) * (4 + len(wanted))
        do = torch.zeros_like(out) if do is None else do
        found = attention_backward(
            q, k, v, out, lse, do, grad_lse, inputs, ctx.kernel, wanted, ctx.q_offset
        )
        own = iter(found)
        return None, None, None, None, *(next(own) if w else None for w in wanted)


class _Gradients(torch.autograd.Function):
    """The gradients themselves, as a function that cannot be differentiated."""

    @staticmethod
    def forward(
        ctx: Any, kernel: str, wanted: list[bool], q_offset: int | None,
        *tensors: torch.Tensor | None,
    ) -> Any:  # fmt: skip
        own, inputs = tensors[:7], list(tensors[7:])
        with torch._C._AutoDispatchBelowAutograd():
            return tuple(attention_backward(*own, inputs, kernel, wanted, q_offset))

    @staticmethod
    def backward(ctx: Any, *_: torch.Tensor) -> Any:
        raise CompileError("gradients of gradients are for backend='reference' alone")


def _apply(function: type[torch.autograd.Function], *arguments: Any) -> Any:
    """A function of one level: inside torch.func the dispatcher already splits levels, as it does
    for operators written in C++.
    """
    single = super(torch.autograd.Function, function).apply  # type: ignore[misc]
    if not torch._C._are_functorch_transforms_active():
        return single(*arguments)
    with autograd_function.enable_single_level_autograd_function():  # type: ignore[attr-defined]
        return single(*arguments)


def _tracked(*tensors: Any) -> bool:
    """Whether autograd looks, in reverse or (where a function without it raises) forwards."""
    backwards = torch.is_grad_enabled() and torch._C._any_requires_grad(*tensors)
    return backwards or forward_ad._current_level >= 0


def _autograd_forward(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, inputs: list[torch.Tensor], kernel: str,
    q_offset: int | None = None,
) -> Tensors:  # fmt: skip
    if _tracked(q, k, v, inputs):
        own = _find(kernel)
        if own.composite and not torch.compiler.is_compiling():
            return own.forward(q, k, v, inputs, q_offset)
        found: Tensors = _apply(
            _Attention, own, kernel, q_offset, own.differentiable, q, k, v, *inputs
        )
        return found
    with torch._C._AutoDispatchBelowAutograd():
        return attention(q, k, v, inputs, kernel, q_offset)


def _autograd_backward(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, out: torch.Tensor, lse: torch.Tensor,
    do: torch.Tensor, grad_lse: torch.Tensor | None, inputs: list[torch.Tensor], kernel: str,
    wanted: list[bool], q_offset: int | None = None,
) -> list[torch.Tensor]:  # fmt: skip
    own = _find(kernel)
    if own.composite and not torch.compiler.is_compiling():
        return own.gradients(q, k, v, out, lse, do, grad_lse, inputs, wanted, q_offset)
    tensors = (q, k, v, out, lse, do, grad_lse, *inputs)
    if _tracked(*tensors):
        return list(_apply(_Gradients, kernel, wanted, q_offset, *tensors))
    with torch._C._AutoDispatchBelowAutograd():
        return attention_backward(*tensors[:7], inputs, kernel, wanted, q_offset)


def _autocast(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, inputs: list[torch.Tensor], kernel: str,
    q_offset: int | None = None,
) -> Tensors:  # fmt: skip
    dtype = _find(kernel).dtype
    with torch.autocast(q.device.type, enabled=False):
        q, k, v = (x.to(dtype) if x.is_floating_point() else x for x in (q, k, v))
        return attention(q, k, v, inputs, kernel, q_offset)


def _autocast_backward(*arguments: Any) -> list[torch.Tensor]:
    with torch.autocast(arguments[0].device.type, enabled=False):
        return attention_backward(*arguments)


def _vmap_forward(
    info: Any, in_dims: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor,
    inputs: list[torch.Tensor], kernel: str, q_offset: int | None = None,
) -> Any:  # fmt: skip
    places = [0, 0, 0, *_find(kernel).batch_dims]
    dims = [*in_dims[:3], *in_dims[3]]

    def call(x: list[Any]) -> Tensors:
        return attention(*x[:3], x[3:], kernel, q_offset)

    return batched(info.batch_size, [q, k, v, *inputs], dims, places, call, [0, 0])


def _vmap_backward(
    info: Any, in_dims: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, out: torch.Tensor,
    lse: torch.Tensor, do: torch.Tensor, grad_lse: torch.Tensor | None,
    inputs: list[torch.Tensor], kernel: str, wanted: list[bool], q_offset: int | None = None,
) -> Any:  # fmt: skip
    places = _find(kernel).batch_dims
    dims = [*in_dims[:7], *in_dims[7]]
    results = [p for p, w in zip([0, 0, 0, *places], wanted, strict=True) if w]

    def call(x: list[Any]) -> Tensors:
        return attention_backward(*x[:7], x[7:], kernel, wanted, q_offset)

    tensors = [q, k, v, out, lse, do, grad_lse, *inputs]
    found, at = batched(info.batch_size, tensors, dims, [0] * 7 + [*places], call, results)
    return list(found), list(at)


_library.impl("attention", _forward, "CompositeExplicitAutograd")
_library.impl("attention_backward", _backward, "CompositeExplicitAutograd")
_library.impl("attention", _autograd_forward, "Autograd")
_library.impl("attention_backward", _autograd_backward, "Autograd")
for _key in ("AutocastCPU", "AutocastCUDA"):
    _library.impl("attention", _autocast, _key)
    _library.impl("attention_backward", _autocast_backward, _key)
torch.library.register_fake("maskdsl::attention", _fake_forward, lib=_library)
torch.library.register_fake("maskdsl::attention_backward", _fake_backward, lib=_library)
torch.library.register_vmap("maskdsl::attention", _vmap_forward, lib=_library)
torch.library.register_vmap("maskdsl::attention_backward", _vmap_backward, lib=_library)
