"""The operator under what PyTorch does to operators: compilation, export, torch.func, autocast,
checkpoints, copies; and the time that a call takes besides its kernel's.
"""

from __future__ import annotations

import copy
import gc
import io
import pickle
import subprocess
import sys
import time
import types
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch._dynamo.testing import CompileCounter
from torch.func import grad, vmap
from torch.utils.checkpoint import checkpoint

import maskdsl
from maskdsl.errors import BindError, CompileError
from maskdsl.runtime import op

TEXTS = {
    "plain": "pattern p over (n) keep abs(q.n - k.n) < 5",
    "scored": "pattern p over (n) input slope[heads]: float input bias[batch, n]: float "
    "input doc[n]: int keep causal(n) and doc[q.n] == doc[k.n] "
    "score logit * slope[head] + bias[batch, k.n]",
    "sink": "pattern p over (n) input x[heads]: float keep causal(n) sink x[head]",
}
TOKENS = 24


def kernel_of(name: str, backend: str = "torch", **options: Any) -> maskdsl.Kernel:
    mask = maskdsl.parse(TEXTS[name]).bind(n=TOKENS, heads=4, kv_heads=2)
    return maskdsl.compile(mask, 16, backend=backend, **options)


def inputs_of(name: str, batch: int = 2) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(1)
    known = {
        "slope": torch.rand(4, generator=g) + 0.5,
        "bias": torch.rand(batch, TOKENS, generator=g),
        "doc": torch.arange(TOKENS) // 9,
        "x": torch.rand(4, generator=g),
    }
    return {n: known[n] for n in maskdsl.parse(TEXTS[name]).inputs}


def tensors(batch: int = 2, layout: str = "bhnd", seed: int = 0) -> list[torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    found = [torch.randn(batch, h, TOKENS, 16, generator=g) for h in (4, 2, 2)]
    return found if layout == "bhnd" else [x.transpose(1, 2).contiguous() for x in found]


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("layout", ["bhnd", "bnhd"])
@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_the_operator_is_registered_as_torch_wants(name: str, layout: str, backend: str) -> None:
    """Schema, autograd, and fake tensors that agree in shape, stride and dtype with real ones."""
    kernel = kernel_of(name, backend, layout=layout)
    given = [x.requires_grad_() for x in tensors(layout=layout)]
    inputs = [x.requires_grad_() if x.is_floating_point() else x for x in inputs_of(name).values()]
    torch.library.opcheck(torch.ops.maskdsl.attention.default, (*given, inputs, kernel.handle), {})
    out, lse = torch.ops.maskdsl.attention(*given, inputs, kernel.handle)
    tensors_ = [x.detach() for x in (*given, out, lse, out, lse)]
    own = [x.detach() for x in inputs]
    wanted = [True] * 3 + [x.is_floating_point() for x in own]
    torch.library.opcheck(
        torch.ops.maskdsl.attention_backward.default, (*tensors_, own, kernel.handle, wanted), {}
    )


@pytest.mark.parametrize("backend", ["torch", "reference"])
@pytest.mark.parametrize("name", TEXTS)
def test_compiled(name: str, backend: str) -> None:
    kernel = kernel_of(name, backend)
    given = [x.requires_grad_() for x in tensors()]
    inputs = {n: x.requires_grad_(x.is_floating_point()) for n, x in inputs_of(name).items()}
    leaves = [x for x in (*given, *inputs.values()) if x.requires_grad]

    def layer(*given: torch.Tensor, **inputs: torch.Tensor) -> Any:
        return kernel(*(x * 2 for x in given), return_lse=True, **inputs)

    found, want = (
        run(*given, **inputs)
        for run in (torch.compile(layer, fullgraph=True, backend="aot_eager"), layer)
    )
    torch.testing.assert_close(found, want)
    of_found, of_want = (
        torch.autograd.grad(out.square().sum() + lse.sum(), leaves) for out, lse in (found, want)
    )
    torch.testing.assert_close(of_found, of_want)


def test_a_logit_that_counts_for_nothing_has_a_gradient_of_zero() -> None:
    mask = maskdsl.parse("pattern p over (n) keep causal(n) score 1.0").bind(n=TOKENS)
    for backend in ("torch", "reference"):
        kernel = maskdsl.compile(mask, 16, backend=backend)
        given = [x[:, :1].clone().requires_grad_() for x in tensors()]
        run = torch.compile(kernel.__call__, fullgraph=True, backend="aot_eager")
        dq, dk, dv = torch.autograd.grad(run(*given).sum(), given)
        assert not dq.any() and not dk.any() and dv.any()


def test_one_graph_for_every_position() -> None:
    kernel = kernel_of("plain")
    q, k, v = tensors()
    whole = kernel(q, k, v)
    counter = CompileCounter()
    step = torch.compile(
        lambda q, i: kernel(q, k, v, q_offset=i), fullgraph=True, dynamic=True, backend=counter
    )
    for i in (3, 9, 17, TOKENS - 1):
        torch.testing.assert_close(step(q[:, :, i : i + 1], i), whole[:, :, i : i + 1])
    assert counter.frame_count == 1


def test_compiled_gradients_of_queries_at_an_offset() -> None:
    kernel = kernel_of("plain", "reference")
    q, k, v = (x.requires_grad_() for x in tensors())
    given = (q[:, :, :4].detach().requires_grad_(), k, v)

    def chunk(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> Any:
        return kernel(q, k, v, q_offset=6)

    found, want = (
        torch.autograd.grad(run(*given).square().sum(), given)
        for run in (torch.compile(chunk, fullgraph=True, backend="aot_eager"), chunk)
    )
    torch.testing.assert_close(found, want)
    assert not want[1][:, :, 14:].any() and want[1][:, :, 2:14].all()


@pytest.mark.parametrize("name", TEXTS)
def test_vmap_over_samples(name: str) -> None:
    """Of batches, inputs with and without a batch dimension, some shared by all samples."""
    kernel = kernel_of(name)
    inputs = inputs_of(name)
    q, k, v = (torch.stack([tensors(seed=s)[i] for s in range(3)], 1) for i in range(3))
    for own in ((1, 1, 1), (1, None, 1), (None, 1, None)):
        args = [x if d is not None else x[:, 0] for x, d in zip((q, k, v), own, strict=True)]
        found = vmap(lambda q, k, v: kernel(q, k, v, **inputs), in_dims=own, out_dims=1)(*args)
        for i in range(3):
            one = [x[:, i] if d is not None else x for x, d in zip(args, own, strict=True)]
            torch.testing.assert_close(found[:, i], kernel(*one, **inputs))
    if inputs:
        several = {n: torch.stack([x, x.flip(0), x]) for n, x in inputs.items()}
        found = vmap(lambda named: kernel(q[:, 0], k[:, 0], v[:, 0], **named))(several)
        for i in range(3):
            one = kernel(q[:, 0], k[:, 0], v[:, 0], **{n: x[i] for n, x in several.items()})
            torch.testing.assert_close(found[i], one)


@pytest.mark.parametrize("name", TEXTS)
def test_gradients_of_samples(name: str) -> None:
    kernel = kernel_of(name)
    inputs = inputs_of(name)
    floats = {n: x for n, x in inputs.items() if x.is_floating_point()}
    q, k, v = (torch.stack([tensors(seed=s)[i] for s in range(3)]) for i in range(3))

    def loss(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, floats: Any) -> torch.Tensor:
        out = kernel(q, k, v, **(inputs | floats))
        assert isinstance(out, torch.Tensor)
        return out.square().sum()

    found = vmap(grad(loss, argnums=(0, 1, 2, 3)), in_dims=(0, 0, 0, None))(q, k, v, floats)
    for i in range(3):
        leaves = [x[i].clone().requires_grad_() for x in (q, k, v)]
        own = {n: x.clone().requires_grad_() for n, x in floats.items()}
        want = torch.autograd.grad(loss(*leaves, own), [*leaves, *own.values()])
        flat = [*found[:3], *(found[3][n] for n in own)]
        for x, y in zip(flat, want, strict=True):
            torch.testing.assert_close(x[i], y)


def test_slopes_forwards_are_refused_or_right() -> None:
    """Never silently zero."""
    q, k, v = tensors()
    for kernel in (kernel_of("plain"), kernel_of("plain", "triton")):
        with pytest.raises(RuntimeError, match="jvp"):
            torch.func.jvp(lambda x, run=kernel: run(x, k, v), (q,), (q,))
    dense = kernel_of("plain", "reference")
    _, slope = torch.func.jvp(lambda x: dense(x, k, v), (q,), (q,))
    near = (dense(q * 1.001, k, v) - dense(q * 0.999, k, v)) / 0.002
    torch.testing.assert_close(slope, near, rtol=1e-2, atol=1e-2)


def test_second_derivatives_where_scores_read_inputs() -> None:
    mask = maskdsl.parse(
        "pattern p over (n) input slope[heads]: float keep causal(n) "
        "score logit - slope[head] * (q.n - k.n)"
    ).bind(n=3)
    kernel = maskdsl.compile(mask, 2, torch.float64, backend="reference")
    q, k, v = torch.randn(3, 1, 1, 3, 2, dtype=torch.float64)
    slope = torch.rand(1, dtype=torch.float64)
    away = torch.arange(3)[:, None] - torch.arange(3)
    bias = torch.where(away < 0, -torch.inf, -slope * away)

    def found(q: torch.Tensor) -> Any:
        return kernel(q, k, v, slope=slope).square().sum()  # type: ignore[union-attr]

    def want(q: torch.Tensor) -> Any:
        return ((q @ k.mT * 2**-0.5 + bias).softmax(-1) @ v).square().sum()

    torch.testing.assert_close(torch.func.hessian(found)(q), torch.func.hessian(want)(q))


def test_exported() -> None:
    module = maskdsl.MaskAttention(kernel_of("plain").mask, 16)
    given = tensors()
    batch = torch.export.Dim("batch", min=2, max=64)
    program = torch.export.export(module, tuple(given), dynamic_shapes=({0: batch},) * 3)
    names = [str(n.target) for n in program.graph.nodes if n.op == "call_function"]
    assert names[0] == "maskdsl.attention.default"
    other = tensors(batch=5, seed=3)
    torch.testing.assert_close(program.module()(*other), module(*other))
    stored = io.BytesIO()
    torch.export.save(program, stored)
    stored.seek(0)
    torch.testing.assert_close(torch.export.load(stored).module()(*other), module(*other))


def test_autocast_runs_in_the_kernels_dtype() -> None:
    kernel = kernel_of("plain", dtype=torch.bfloat16)
    q, k, v = (x.requires_grad_() for x in tensors())
    with pytest.raises(BindError, match="bfloat16, as compiled"):
        kernel(q, k, v)
    with torch.autocast("cpu", torch.bfloat16):
        out = kernel(q, k, v)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out, kernel(*(x.bfloat16() for x in (q, k, v))))
    out.sum().backward()
    assert q.grad is not None and q.grad.dtype == torch.float32


def test_checkpoints_hold_nothing() -> None:
    kernel = kernel_of("plain")
    given = [x.requires_grad_() for x in tensors()]
    want = torch.autograd.grad(kernel(*given).square().sum(), given)
    out = checkpoint(kernel, *given, use_reentrant=False)
    torch.testing.assert_close(torch.autograd.grad(out.square().sum(), given), want)


def test_a_graph_keeps_its_kernel() -> None:
    given = [x.requires_grad_() for x in tensors()]
    out = kernel_of("plain")(*given)
    gc.collect()
    out.sum().backward()
    compiled = torch.compile(kernel_of("sink").__call__, fullgraph=True, backend="aot_eager")
    want = kernel_of("sink")(*given, **inputs_of("sink"))
    torch.testing.assert_close(compiled(*given, **inputs_of("sink")), want)


@pytest.mark.parametrize("gone", [0, 1])
def test_kernels_compiled_alike_live_by_themselves(gone: int) -> None:
    kernels = [kernel_of("plain"), kernel_of("plain")]
    assert kernels[0].handle == kernels[1].handle
    want = kernels[gone](*tensors())
    del kernels[gone]
    gc.collect()
    torch.testing.assert_close(kernels[0](*tensors()), want)


def test_a_kernel_alike_collected_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last kernel of a name goes just when another one takes it."""
    kept = [kernel_of("plain")]
    real = op.ref

    def collecting(*arguments: Any) -> Any:
        kept.clear()
        return real(*arguments)

    monkeypatch.setattr(op, "ref", collecting)
    kernel = kernel_of("plain")
    assert not kept and kernel(*tensors()) is not None
    del kernel
    assert not any(name.startswith("p-") and not held for name, held in op._alive.items())


def test_an_unknown_kernel() -> None:
    with pytest.raises(CompileError, match="no kernel 'nobody-1': compile it again"):
        torch.ops.maskdsl.attention(*tensors(), [], "nobody-1")


def test_copies_and_pickles() -> None:
    kernel = kernel_of("plain")
    assert copy.deepcopy(kernel) is kernel
    again = pickle.loads(pickle.dumps(kernel))
    assert again.handle == kernel.handle
    torch.testing.assert_close(again(*tensors()), kernel(*tensors()))


def test_kernels_of_different_masks_have_different_handles() -> None:
    pattern = maskdsl.parse("pattern p(t: bool[n]) over (n) keep t[k.n]")
    first, second = (
        maskdsl.compile(pattern.bind(n=4, t=t), 16) for t in ([True] * 4, [True] * 3 + [False])
    )
    again = maskdsl.compile(pattern.bind(n=4, t=[True] * 4), 16)
    assert first.handle == again.handle != second.handle
    assert first.handle != maskdsl.compile(pattern.bind(n=4, t=[True] * 4), 16, scale=1.0).handle


class TestModule:
    def test_trains_its_inputs(self) -> None:
        mask = kernel_of("sink").mask
        module = maskdsl.MaskAttention(mask, 16, {"x": torch.nn.Parameter(torch.zeros(4))})
        module(*tensors()).sum().backward()
        (own,) = module.parameters()
        assert own.grad is not None and bool((own.grad != 0).all())
        torch.testing.assert_close(
            module(*tensors()), kernel_of("sink")(*tensors(), x=torch.zeros(4))
        )

    def test_dtypes_and_autocast(self) -> None:
        module = maskdsl.MaskAttention(kernel_of("plain").mask, 16)
        assert module(*(x.bfloat16() for x in tensors())).dtype == torch.bfloat16
        with torch.autocast("cpu", torch.bfloat16):
            assert module(*tensors()).dtype == torch.bfloat16

    def test_compiled_as_one_graph(self) -> None:
        module = maskdsl.MaskAttention(
            kernel_of("scored").mask, 16, {"doc": inputs_of("scored")["doc"]}
        )
        given = {n: x for n, x in inputs_of("scored").items() if n != "doc"}
        run = torch.compile(module, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(run(*tensors(), **given), module(*tensors(), **given))

    def test_copies(self) -> None:
        module = maskdsl.MaskAttention(kernel_of("plain").mask, 16, layout="bnhd")
        given = tensors(layout="bnhd")
        for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
            torch.testing.assert_close(other(*given), module(*given))

    def test_an_input_it_does_not_have(self) -> None:
        with pytest.raises(BindError, match="has no input 'y' to hold"):
            maskdsl.MaskAttention(kernel_of("plain").mask, 16, {"y": torch.zeros(1)})


def test_a_module_of_what_is_not_for_float32() -> None:
    mask = maskdsl.parse(TEXTS["plain"]).bind(n=256)
    overlap = maskdsl.MaskAttention(mask, 64, backend="triton", template="overlap", target="sm_90")
    assert overlap.kernel(torch.bfloat16).dtype == torch.bfloat16


def test_a_module_holds_what_numpy_holds() -> None:
    mask = maskdsl.parse("pattern p over (n) input d[n]: int keep d[q.n] <= d[k.n]").bind(n=TOKENS)
    q, k, v = (x[:, :1] for x in tensors())
    backwards = np.arange(TOKENS, dtype=">i4")[::-1]
    held = maskdsl.MaskAttention(mask, 16, {"d": backwards})
    want = maskdsl.compile(mask, 16)(q, k, v, d=torch.arange(TOKENS).flip(0))
    torch.testing.assert_close(held(q, k, v), want)


def seconds(call: Callable[[], object]) -> float:
    """The least of several rounds, a call."""
    found = []
    for _ in range(15):
        start = time.perf_counter()
        for _ in range(100):
            call()
        found.append((time.perf_counter() - start) / 100)
    return min(found)


@pytest.mark.parametrize("name", ["plain", "sink"])
@pytest.mark.parametrize("differentiated", [False, True])
def test_a_call_costs_little_besides_its_kernel(name: str, differentiated: bool) -> None:
    """Against a launch by hand, with a kernel that does nothing: 16 to 24 us on a quiet machine, of
    25 allowed; other tests at the same time take up to twice as long.
    """
    kernel = kernel_of(name, "triton")
    q, k, v = tensors()
    out, lse = torch.empty_like(q), torch.empty(q.shape[:3])
    nothing = types.SimpleNamespace(forward=lambda *_: (out, lse))
    rule = kernel._run.rule  # type: ignore[attr-defined]
    rule._module = nothing
    inputs = inputs_of(name)
    q.requires_grad_(differentiated)
    by_hand = seconds(lambda: nothing.forward(q, k, v, 0.25, {}, inputs))
    assert seconds(lambda: kernel(q, k, v, **inputs)) - by_hand < 50e-6


@pytest.mark.parametrize("layout", ["bhnd", "bnhd"])
def test_tensors_on_no_gpu_where_there_is_one(layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine with a GPU, whose `auto` kernel is given tensors of the CPU."""
    mask = kernel_of("plain").mask
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    kernel = maskdsl.compile(mask, 16, target="sm_90", layout=layout)
    monkeypatch.undo()
    assert kernel.backend == "triton"
    given = [x.requires_grad_() for x in tensors(layout=layout)]
    want = kernel_of("plain", layout=layout)(*given)
    for run in (kernel, torch.compile(kernel.__call__, fullgraph=True, backend="aot_eager")):
        found = run(*given)
        torch.testing.assert_close(found, want)
        of_found, of_want = (
            torch.autograd.grad(x.square().sum(), given, retain_graph=True) for x in (found, want)
        )
        torch.testing.assert_close(of_found, of_want)


def test_another_default_device() -> None:
    """As where a model is made on the meta device, to be loaded later."""
    given = [x.requires_grad_() for x in tensors()]
    want = kernel_of("plain")(*given)
    with torch.device("meta"):
        module = maskdsl.MaskAttention(kernel_of("plain").mask, 16)
        found = module(*given)
        of_found = torch.autograd.grad(found.sum(), given)
    torch.testing.assert_close(found, want)
    torch.testing.assert_close(of_found, torch.autograd.grad(want.sum(), given))


LATE = """
import builtins, gc, sys, types
early = sys.modules["early"] = builtins.early = types.ModuleType("early")  # torn down after us
import maskdsl

class Last:
    def __init__(self, collect=gc.collect):
        self.collect = collect

    def __del__(self):
        self.collect()

mask = maskdsl.parse("pattern f over (n) keep causal(n)").bind(n=64, heads=1)
early.kept, early.last = maskdsl.compile(mask, head_dim=16, backend="torch"), Last()
builtins.late = sys.modules["maskdsl.runtime.op"]
"""


def test_kernels_that_outlive_the_modules_go_quietly() -> None:
    done = subprocess.run([sys.executable, "-c", LATE], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
