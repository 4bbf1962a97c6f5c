"""The compiled part of the torch backend: built once, under any compiler, for any machine, and what
runs where there is none.
"""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import warnings
import weakref
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from random_patterns import random_case
from test_torch_backend import CASES, check
from test_torch_gradients import check as check_gradients

import maskdsl
from maskdsl.runtime import native_attention, native_library
from maskdsl.runtime.native_attention import Held
from maskdsl.runtime.native_library import compiler, library
from maskdsl.runtime.torch_workers import Task

COMPILERS = {
    "none": "",
    "without AVX-512": "c++ -mno-avx512f",
    "without AVX": "c++ -mno-avx",
}
X86 = os.uname().machine == "x86_64"


@pytest.fixture(params=COMPILERS)
def other(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Another compiler than that of this machine."""
    if request.param.startswith("without") and not X86:
        pytest.skip("instructions of x86")
    monkeypatch.setenv("MASKDSL_CXX", COMPILERS[request.param])
    return str(request.param)


def test_this_machine_has_a_compiler() -> None:
    """Else all tests of values would try the plain operations alone."""
    assert compiler() is not None
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        assert library(dtype) is not None
    assert library(torch.float64) is None


@pytest.mark.parametrize("name", CASES)
def test_values_under_other_compilers(name: str, other: str) -> None:
    assert (library(torch.float32) is None) == (other == "none")
    text, q_tile, kv_tile, values = CASES[name]
    check("pattern f " + text, q_tile, kv_tile, **values)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_under_other_compilers(dtype: torch.dtype, other: str) -> None:
    check("pattern f over (n) keep near(n, 20)", 16, 16, n=90, heads=2, dtype=dtype, head_dim=24)


@pytest.mark.parametrize("seed", range(3))
def test_gradients_under_other_compilers(seed: int, other: str) -> None:
    case = random_case(2000 + seed)
    check_gradients(
        case.mask(), case.q_tile, case.kv_tile, batch=1, dtype=torch.float32, tolerance=1e-4
    )


@pytest.mark.parametrize("head_dim, value_dim", [(1, 1), (3, 130), (17, 5), (64, 64), (80, 48)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dimensions(head_dim: int, value_dim: int, dtype: torch.dtype) -> None:
    check(
        "pattern f over (n) keep near(n, 40)", 128, 16, n=150, heads=6, kv_heads=2, dtype=dtype,
        head_dim=head_dim, value_dim=value_dim,
    )  # fmt: skip


@pytest.mark.parametrize("layout", ["bhnd", "bnhd"])
def test_strides(layout: str) -> None:
    """Tensors that are parts of others, overlap in memory, or lie the other way round."""
    mask = maskdsl.parse("pattern f over (n) keep near(n, 9)").bind(n=70, heads=2)
    kernels = [maskdsl.compile(mask, 16, backend=b, layout=layout) for b in ("torch", "reference")]
    shape = (1, 2, 70, 16) if layout == "bhnd" else (1, 70, 2, 16)
    wide = torch.randn(*shape[:-1], 40)
    turned = torch.randn(*shape[:-2], 16, shape[-2]).mT
    one = torch.randn(1, 1, 1, 16).expand(shape)
    for x in (wide[..., 3:19], wide[..., ::2][..., :16], turned, one):
        got, want = (kernel(x, x * 1, x) for kernel in kernels)
        torch.testing.assert_close(got, want)
        leaves = [x.detach().requires_grad_() for _ in range(3)]
        d_out = one if x is not one else turned
        found = [torch.autograd.grad(kernel(*leaves), leaves, d_out) for kernel in kernels]
        torch.testing.assert_close(*found)


FAR = "logit - 0.5 ** (head + 1.0) * abs(q.n - k.n)"
ADDED: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "slopes, GQA": (f"over (n) keep near(n, 30) score {FAR}", {"heads": 4, "kv_heads": 2}, {}),
    "dilated": (f"over (n) keep dilated(n, 9, 4) score {FAR}", {"heads": 2}, {}),
    "a table by head": (
        "over (n) input b[heads, 61]: float keep near(n, 30) score logit + b[head, q.n - k.n + 30]",
        {"heads": 2}, {"b": (2, 61)},
    ),
    "by distance and batch": (
        "over (n) input b[batch, 61]: float keep near(n, 30)"
        " score logit + b[batch, q.n - k.n + 30] * abs(q.n - k.n)",
        {"heads": 2}, {"b": (2, 61)},
    ),
    "a number": ("over (n) keep near(n, 30) score logit + 1.5", {"heads": 2}, {}),
    "by place": (
        "over (n) input b[n]: float keep near(n, 30) score logit + b[k.n] * q.n",
        {"heads": 2}, {"b": (150,)},
    ),
    "chosen": (
        "over (n) keep causal(n) score if q.n - k.n < 9 then logit + 2.0 else logit - 1.0", {}, {},
    ),
    "cross": ("over (n) -> (m) keep q.n >= k.m score logit - 0.1 * (q.n - k.m)", {"m": 90}, {}),
    "inputs decide": (
        f"over (n) input d[batch, n]: int keep d[batch, q.n] == d[batch, k.n] score {FAR}",
        {"heads": 2}, {"d": torch.arange(150).div(23, rounding_mode="floor").repeat(2, 1)},
    ),
}  # fmt: skip


@pytest.mark.parametrize("tile", [None, 16, 64])
@pytest.mark.parametrize("name", ADDED)
def test_what_scores_add(name: str, tile: int | None) -> None:
    text, values, inputs = ADDED[name]
    mask = maskdsl.parse(f"pattern f {text}").bind(n=150, **values)
    g = torch.Generator().manual_seed(0)
    given = {
        n: x if isinstance(x, torch.Tensor) else torch.randn(x, generator=g)
        for n, x in inputs.items()
    }
    check_gradients(
        mask, tile, None if tile is None else 16, given, dtype=torch.float32, tolerance=1e-3
    )


@pytest.mark.parametrize("deviation", [1.0, 8.0])
def test_sums_are_as_exact_as_those_of_torchs_own_attention(deviation: float) -> None:
    """Root mean square errors against float64; torch's is FlexAttention's, block by block."""
    n, dim = 2048, 64
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 4, n, dim, generator=g) for _ in range(3))
    q *= deviation
    mask = maskdsl.parse("pattern f over (n) keep causal(n)").bind(n=n, heads=4)
    attention = torch.nn.functional.scaled_dot_product_attention
    want = attention(q.double(), k.double(), v.double(), is_causal=True)
    own, theirs = (
        float((x - want).square().mean().sqrt())
        for x in (
            maskdsl.compile(mask, dim, backend="torch")(q, k, v),
            attention(q, k, v, is_causal=True),
        )
    )
    assert own <= 1.25 * theirs


@pytest.mark.parametrize("compiled", [True, False])
def test_rows_do_not_change_bits_of_others(compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of one tile whose logits or values are huge, or whose results are infinite."""
    if not compiled:
        monkeypatch.setenv("MASKDSL_CXX", "")
    mask = maskdsl.parse("pattern f over (n) keep 0 <= q.n - k.n < 20").bind(n=128)
    kernel = maskdsl.compile(mask, 16, backend="torch", q_tile=64, kv_tile=16)
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 1, 128, 16, generator=g) for _ in range(3))
    out = kernel(q, k, v)
    for key, value in ((1e15, 1e30), (1.0, float("inf")), (float("nan"), 1.0)):
        k2, v2 = k.clone(), v.clone()
        k2[:, :, 70], v2[:, :, 70] = key, value
        again = kernel(q, k2, v2)
        others = torch.tensor([not 70 <= i < 90 for i in range(128)])
        assert torch.equal(again[:, :, others], out[:, :, others])
        if key == 1e15:
            assert again.isfinite().all()


@pytest.mark.parametrize("logit", [1e10, -1e10, -1e30, torch.finfo(torch.float32).min])
def test_logits_far_from_zero(logit: float) -> None:
    """Rows whose keys are all as near to being left out, or as far from it, see them alike."""
    text = "pattern f over (n) input b[n]: float keep near(n, 5) score logit + b[k.n]"
    mask = maskdsl.parse(text).bind(n=40)
    kernel = maskdsl.compile(mask, 8, backend="torch")
    v = torch.randint(-3, 4, (1, 1, 40, 8)).float()
    out, lse = kernel(0 * v, v, v, b=torch.full((40,), logit), return_lse=True)
    kept = torch.from_numpy(mask.dense(b=torch.zeros(40))).float()
    torch.testing.assert_close(out[0, 0], kept @ v[0, 0] / kept.sum(1, keepdim=True))
    torch.testing.assert_close(lse, torch.full((1, 1, 40), logit))
    far = torch.full((1, 1, 40, 8), logit / 4e9 if abs(logit) < 1e11 else 1.0)
    torch.testing.assert_close(kernel(1e9 * far.abs(), far, v, b=torch.zeros(40)), out)


BUILD = """
import sys, warnings, torch, maskdsl
warnings.simplefilter("error")
mask = maskdsl.parse("pattern f over (n) keep causal(n)").bind(n=40)
q, k, v = (torch.randn(1, 1, 40, 8) for _ in range(3))
got, want = (maskdsl.compile(mask, 8, backend=b)(q, k, v) for b in ("torch", "reference"))
torch.testing.assert_close(got, want)
"""


def run(cache: Path, compiler: str) -> subprocess.Popen[str]:
    environment = os.environ | {"MASKDSL_CACHE_DIR": str(cache), "MASKDSL_CXX": compiler}
    return subprocess.Popen(
        [sys.executable, "-c", BUILD], env=environment, stderr=subprocess.PIPE, text=True
    )


def test_processes_build_once_and_rebuild_what_is_damaged(tmp_path: Path) -> None:
    log, script = tmp_path / "log", tmp_path / "c++ here"
    script.write_text(f'#!/bin/sh\necho built >> "{log}"\nexec c++ "$@"\n')
    script.chmod(0o700)
    command = f"'{script}'"
    done = [run(tmp_path / "cache", command) for _ in range(4)]
    assert [x.communicate()[1] for x in done] == [""] * 4
    assert log.read_text() == "built\n"
    (entry,) = (tmp_path / "cache").rglob("native-float32-*.py")
    text = entry.read_text()
    assert "strips.cpp" in text
    entry.write_text(text.replace("A", "B"))
    process = run(tmp_path / "cache", command)
    assert "does not count" in process.communicate()[1]  # a warning, here an error
    again = run(tmp_path / "cache", command)
    assert again.communicate()[1] == "" and log.read_text() == "built\n" * 2


@pytest.mark.parametrize(
    "command, cause",
    [
        ("false", "1"),
        ("/no/such/compiler", "No such file"),
        ("c++ -DROWS=", "error"),
        ("c++ --no-such-option", "no-such-option"),
        ("true", "0"),
        ("c++ '-O1", "No such file"),
        ("c++ -D\udcff", "error"),
        ("c++ -Dmaskdsl_end=other", "no maskdsl_end"),
        (r"printf '\377error\n'", ""),
        (r"sh -c 'printf \\377error >&2; exit 1'", "error"),
    ],
)
def test_a_compiler_that_fails_costs_one_warning(
    command: str, cause: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MASKDSL_CXX", command)
    with pytest.warns(UserWarning, match="without its compiled part") as caught:
        assert library(torch.float32) is None
    assert cause in str(caught[0].message) and "\n" not in str(caught[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check("pattern f over (n) keep near(n, 5)", 16, 16, n=40)


def test_another_c_library_builds_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is older could not load what is kept, and would warn in each process."""
    machine = native_library._machine.__wrapped__
    own = machine()
    monkeypatch.setattr(native_library.platform, "libc_ver", lambda: ("glibc", "2.1"))
    assert machine() != own


def test_a_compiler_that_hangs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = tmp_path / ("long" * 50)
    folder.mkdir()
    script = folder / "cxx"
    script.write_text("#!/bin/sh\nexec sleep 60\n")
    script.chmod(0o700)
    monkeypatch.setenv("MASKDSL_CXX", str(script))
    monkeypatch.setattr(native_library, "SECONDS", 0.1)
    with pytest.warns(UserWarning, match=r"not done after 0\.1 s"):
        assert library(torch.float32) is None


def test_an_interrupted_call_leaves_running_tasks_what_they_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    text = "pattern f over (n) input s[heads]: float keep causal(n) score logit - s[0] * k.n"
    kernel = maskdsl.compile(maskdsl.parse(text).bind(n=40), 8, backend="torch")
    tasks: list[Task] = []
    held: list[weakref.ref[Held]] = []

    class Watched(Held):
        def __init__(self) -> None:
            super().__init__()
            held.append(weakref.ref(self))

    def interrupted(given: Iterable[Task], at_once: int) -> None:
        tasks.extend(given)
        raise KeyboardInterrupt

    monkeypatch.setattr(native_attention, "Held", Watched)
    monkeypatch.setattr(native_attention, "run_all", interrupted)
    q = torch.randn(1, 1, 40, 8)
    try:
        kernel(q, q, q, s=torch.ones(1))
    except KeyboardInterrupt:
        pass
    gc.collect()
    assert tasks and held and held[0]() is not None
    tasks.clear()
    gc.collect()
    assert held[0]() is None


def test_a_system_without_files_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_such_call(*_: object) -> int:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(os, "memfd_create", no_such_call, raising=False)
    monkeypatch.setenv("MASKDSL_CXX", "c++ -DNO_MEMFD")
    assert library(torch.float32) is not None


def test_no_memory_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASKDSL_CXX", "c++ '-D__builtin_malloc(x)=nullptr'")
    mask = maskdsl.parse("pattern f over (n) keep causal(n)").bind(n=40)
    q = torch.randn(1, 1, 40, 8)
    with pytest.raises(MemoryError, match="no memory"):
        maskdsl.compile(mask, 8, backend="torch")(q, q, q)


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("where", ["q", "k", "v", "d_out"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_nobody_sees_may_be_anything(
    bad: float, where: str, compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Token 30 of one tensor is bad: that reaches its queries, or those who see it, and the
    gradients of the keys that they see, nothing else in the tiles.
    """
    if not compiled:
        monkeypatch.setenv("MASKDSL_CXX", "")
    mask = maskdsl.parse("pattern f over (n) keep near(n, 7)").bind(n=64, heads=2)
    kernel = maskdsl.compile(mask, 8, backend="torch")
    sees = torch.from_numpy(mask.dense())
    rows = sees[:, 30] if where in "kv" else torch.arange(64) == 30
    keys, none = sees[rows].any(0), torch.zeros(64, dtype=torch.bool)
    reached = (
        none if where == "d_out" else rows, rows, keys, none if where == "v" else keys,
    )  # fmt: skip
    found = []
    for value in (1.0, bad):
        g = torch.Generator().manual_seed(0)
        given = {n: torch.randn(1, 2, 64, 8, generator=g) for n in ("q", "k", "v", "d_out")}
        given[where][:, :, 30] = value
        d_out = given.pop("d_out")
        leaves = [x.requires_grad_() for x in given.values()]
        out = kernel(*leaves)
        found.append((out, *torch.autograd.grad(out, leaves, d_out)))
    for clean, x, bad_tokens in zip(*found, reached, strict=True):
        torch.testing.assert_close(x[:, :, ~bad_tokens], clean[:, :, ~bad_tokens])
        if bad != bad:
            assert x[:, :, bad_tokens].isnan().all()
