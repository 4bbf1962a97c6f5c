"""Kernels of patterns whose extents a call tells."""

from __future__ import annotations

import threading

import pytest
import torch
from torch._dynamo.testing import CompileCounter

import maskdsl
from maskdsl.errors import BindError
from maskdsl.runtime import open_kernel

WINDOW = maskdsl.load("std/sliding_window").bind(window=7, heads=2)
LENGTHS = range(31, 31 + 20 * 13, 13)


def tensors(tokens: int, heads: int = 2, grad: bool = False) -> list[torch.Tensor]:
    rng = torch.Generator().manual_seed(tokens)
    given = (torch.randn(1, heads, tokens, 16, generator=rng) for _ in range(3))
    return [x.requires_grad_(grad) for x in given]


def dense(mask: maskdsl.Mask, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    kept = torch.from_numpy(mask.dense())
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, kept)


def test_every_length() -> None:
    kernel = maskdsl.compile(WINDOW, 16)
    for n in (1, 2, 64, 100, 257):
        q, k, v = tensors(n)
        torch.testing.assert_close(kernel(q, k, v), dense(WINDOW.bind(n=n), q, k, v))


def test_one_graph_for_all_lengths() -> None:
    """Values and gradients over 20 lengths, and the number of times torch compiled."""
    kernel = maskdsl.compile(WINDOW, 16)
    counter = CompileCounter()

    @torch.compile(fullgraph=True, dynamic=True, backend=counter)
    def layer(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return kernel(q.sin(), k, v) * 2

    for n in LENGTHS:
        q, k, v = tensors(n, grad=True)
        found = layer(q, k, v)
        want = dense(WINDOW.bind(n=n), q.sin(), k, v) * 2
        torch.testing.assert_close(found, want)
        of_found, of_want = (
            torch.autograd.grad(x.square().sum(), (q, k, v)) for x in (found, want)
        )
        # both are float32, and either is 1e-5 from float64
        torch.testing.assert_close(of_found, of_want, rtol=1e-4, atol=4e-5)
    assert counter.frame_count == 1


def test_inductor_compiles_once_for_all_lengths() -> None:
    kernel = maskdsl.compile(WINDOW, 16)
    torch._dynamo.reset()
    with torch._dynamo.config.patch(error_on_recompile=True):
        layer = torch.compile(lambda q, k, v: kernel(q, k, v) + 1, fullgraph=True, dynamic=True)
        for n in LENGTHS:
            q, k, v = tensors(n, grad=True)
            found = layer(q, k, v)
            torch.testing.assert_close(found, dense(WINDOW.bind(n=n), q, k, v) + 1)
            found.sum().backward()
            assert q.grad is not None and q.grad.isfinite().all()


def test_the_plans_used_last_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(open_kernel, "KEPT", 3)
    kernel = maskdsl.compile(WINDOW, 16)
    first = kernel.bind(n=10)
    for n in (11, 12, 10, 13):
        kernel(*tensors(n))
    assert kernel.bind(n=10) is first
    assert list(kernel._kernels) == [(12,), (13,), (10,)]


def test_an_open_axis_of_several() -> None:
    pattern = maskdsl.parse(
        "pattern p over video(t, s) then text(m) "
        "keep video -> video: near(t, 1) keep any -> text, text -> any: true"
    )
    kernel = maskdsl.compile(pattern.bind(s=5, m=3, heads=2), 16)
    q, k, v = tensors(4 * 5 + 3)
    torch.testing.assert_close(
        kernel(q, k, v), dense(pattern.bind(t=4, s=5, m=3, heads=2), q, k, v)
    )
    with pytest.raises(BindError, match="no whole number of t, 5 each besides 3"):
        kernel(*tensors(22))


def test_axes_that_tokens_do_not_tell() -> None:
    pattern = maskdsl.parse("pattern p over (y, x) keep near(y, 1) and near(x, 2)")
    kernel = maskdsl.compile(pattern.bind(heads=2), 16)
    q, k, v = tensors(24)
    with pytest.raises(BindError, match=r"do not tell the extents of x, y: name them, kernel.bind"):
        kernel(q, k, v)
    mask = pattern.bind(y=4, x=6, heads=2)
    torch.testing.assert_close(kernel.bind(y=4, x=6)(q, k, v), dense(mask, q, k, v))
    torch.testing.assert_close(kernel.bind(y=4)(q, k, v), dense(mask, q, k, v))
    with pytest.raises(BindError, match="t: not open"):
        kernel.bind(t=3)
    with pytest.raises(BindError, match="stay open, and so does the plan"):
        _ = kernel.plan
    with pytest.raises(BindError, match="stay open, and so do the shapes: see kernel.bind"):
        maskdsl.simulate(kernel, device="h200")
    with pytest.raises(BindError, match="y must be an int"):
        kernel.bind(y=[4], x=6)


def test_an_input_tells_an_extent() -> None:
    pattern = maskdsl.parse(
        "pattern p over (y, x) input row[y]: int keep row[q.y] == row[k.y] and near(x, 1)"
    )
    kernel = maskdsl.compile(pattern.bind(heads=2), 16)
    q, k, v = tensors(24)
    rows = torch.tensor([0, 1, 1, 0])
    kept = pattern.bind(y=4, x=6, heads=2).dense(row=rows)
    want = torch.nn.functional.scaled_dot_product_attention(q, k, v, torch.from_numpy(kept))
    torch.testing.assert_close(kernel(q, k, v, row=rows), want)


def test_spaces_of_their_own() -> None:
    pattern = maskdsl.parse("pattern p over (n) -> (m) keep k.m <= 2 * q.n")
    kernel = maskdsl.compile(pattern.bind(heads=2), 16)
    q, (k, v) = tensors(9)[0], tensors(20)[:2]
    torch.testing.assert_close(kernel(q, k, v), dense(pattern.bind(n=9, m=20, heads=2), q, k, v))


def test_queries_tell_an_extent_of_the_keys() -> None:
    pattern = maskdsl.parse("pattern p over (n) -> (n, m) keep k.n <= q.n")
    q, (k, v) = tensors(4)[0], tensors(12)[:2]
    found = maskdsl.compile(pattern.bind(heads=2), 16)(q, k, v)
    torch.testing.assert_close(found, dense(pattern.bind(n=4, m=3, heads=2), q, k, v))


def test_decoding_by_a_growing_cache() -> None:
    kernel = maskdsl.compile(WINDOW, 16)
    q, k, v = tensors(40)
    whole = kernel(q, k, v)
    for n in range(30, 41):
        step = kernel(q[:, :, n - 1 : n], k[:, :, :n], v[:, :, :n])
        torch.testing.assert_close(step, whole[:, :, n - 1 : n])


def test_threads_make_one_plan() -> None:
    kernel = maskdsl.compile(WINDOW, 16)
    q, k, v = tensors(77)
    found: list[torch.Tensor] = []
    threads = [threading.Thread(target=lambda: found.append(kernel(q, k, v))) for _ in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(found) == 8 and all(torch.equal(x, found[0]) for x in found)
    assert list(kernel._kernels) == [(77,)]
