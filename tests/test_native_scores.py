"""Scores that do more than add, as the compiled part of the torch backend applies them: values and
gradients against dense attention, and the functions they are built of.
"""

from __future__ import annotations

import ctypes
import subprocess
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_derivatives import smooth
from test_torch_backend import check as check_values
from test_torch_gradients import check as check_gradients
from test_torch_gradients import inputs_of

import maskdsl
from maskdsl.runtime import native_scores
from maskdsl.runtime.native_library import compiler, included, library
from maskdsl.runtime.native_scores import Shapes
from maskdsl.runtime.torch_scores import Scores

Values = dict[str, Any]

# Text, tiles, what to bind, float inputs by name.
CASES: dict[str, tuple[str, Any, Values, Values]] = {
    "softcap": (
        "over (n) keep 0 <= q.n - k.n < 40 score 3.0 * tanh(logit / 3.0)",
        16, {"n": 130, "heads": 4, "kv_heads": 2}, {},
    ),
    "non-local means": (
        "over (y, x) input norm[y, x]: float keep neighborhood(y, 5) and neighborhood(x, 7)"
        " score -max(norm[q.y, q.x] - 2 * logit + norm[k.y, k.x] - 0.3, 0) / 2.5",
        (4, 4), {"y": 13, "x": 19}, {"norm": (13, 19)},
    ),
    "inputs of heads and batches": (
        "over (n) -> (m) input w[heads, m]: float input u[batch, n]: float input s[2]: float"
        " keep (q.n * 3 + k.m) % 5 != 0"
        " score max(logit * w[head, k.m] + s[1], u[batch, q.n]) - sigmoid(logit)",
        8, {"n": 37, "m": 61, "heads": 4, "kv_heads": 2},
        {"w": (4, 61), "u": (2, 37), "s": (2,)},
    ),
    "tables, distances and parity": (
        "over (n) input t[9]: float keep causal(n)"
        " score if (q.n - k.n) % 3 == 0 then logit * 0.5 + t[min(q.n - k.n, 8)]"
        " else exp(-abs(logit) / (1 + abs(q.n - k.n)))",
        16, {"n": 70, "heads": 2}, {"t": (9,)},
    ),
    "tests of the logit": (
        "over (n) keep near(n, 20)"
        " score if logit > q.n % 3 - 1 and not (logit ** 3 < -4 or k.n % 2 == 0)"
        " then log(logit ** 2 + 1)"
        " else min(sqrt(abs(logit) + 0.1), 2.0) + (logit ** 2 + 0.1) ** 0.7 / 3",
        16, {"n": 90, "heads": 2}, {},
    ),
    "no logit": (
        "over (n) input w[n]: float keep near(n, 9) score w[k.n] * w[q.n]",
        16, {"n": 50}, {"w": (50,)},
    ),
    "heads that differ, decided by a call": (
        "over (n) input on[batch, n]: bool input s[heads]: float keep on[batch, k.n]"
        " keep head == 1 and k.n < 30 or near(n, 12)"
        " score if head == 0 then logit else logit * s[head] score tanh(logit)",
        16, {"n": 75, "heads": 3}, {"s": (3,)},
    ),
    "segments": (
        "over a(x) then b(y, z) input u[heads]: float keep a -> a: near(x, 2) keep any -> b: true"
        " keep b -> a: k.x % 2 == 0 score a -> a: logit * u[head]"
        " score any -> b: logit + u[0] * q.index score b -> a: 2 * sigmoid(logit)",
        None, {"x": 43, "y": 3, "z": 17, "heads": 2}, {"u": (2,)},
    ),
}  # fmt: skip


@pytest.fixture(autouse=True)
def _small_calls_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native_scores, "LEAST_PAIRS", 0)


def shapes_of(mask: maskdsl.Mask) -> Shapes:
    """Of scores that this machine compiles."""
    found = Scores(mask.program).shapes
    assert found is not None and library(torch.float32, found.text) is not None
    return found


def inputs_for(mask: maskdsl.Mask, shapes: Values) -> dict[str, torch.Tensor]:
    """Float inputs without gradients; true now and then."""
    found = {n: x.detach() for n, x in inputs_of(shapes, torch.float32).items()}
    for array in mask.program.inputs:
        if array.type == "bool":
            g = torch.Generator().manual_seed(3)
            found[array.name] = torch.rand(2, mask.shape[2], generator=g) < 0.8
    return found


@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients_are_those_of_dense_attention(name: str) -> None:
    text, tile, values, inputs = CASES[name]
    mask = maskdsl.parse("pattern f " + text).bind(**values)
    assert "case 0" in shapes_of(mask).text
    given = inputs_for(mask, inputs)
    check_values("pattern f " + text, tile, tile, inputs=given, **values)
    check_gradients(mask, tile, tile, given, dtype=torch.float32, tolerance=2e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype) -> None:
    text, tile, values, _ = CASES["softcap"]
    check_values("pattern f " + text, tile, tile, dtype=dtype, **values)


@pytest.mark.parametrize("command", ["c++ -mno-avx512f", "c++ -mno-avx -ffp-contract=off"])
def test_other_compilers(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASKDSL_CXX", command)
    test_values_and_gradients_are_those_of_dense_attention("tables, distances and parity")


def test_huge_numbers_that_nobody_sees_change_no_gradient() -> None:
    text = "pattern f over (n) keep near(n, 20) and k.n % 2 == 0 score 3.0 * tanh(logit / 3.0)"
    mask = maskdsl.parse(text).bind(n=90)
    shapes_of(mask)
    kernel = maskdsl.compile(mask, 8, backend="torch")
    g = torch.Generator().manual_seed(0)
    q, k, v, d_out = (torch.randn(1, 1, 90, 8, generator=g) for _ in range(4))
    found = []
    for hidden in (0.5, 3e38):
        k[:, :, 1::2], v[:, :, 1::2] = hidden, -hidden
        leaves = [x.clone().requires_grad_() for x in (q, k, v)]
        out = kernel(*leaves)
        found.append((out, *torch.autograd.grad(out, leaves, d_out)))
    for x, y in zip(*found, strict=True):
        assert torch.equal(x, y)
    assert not found[1][2][:, :, 1::2].any() and not found[1][3][:, :, 1::2].any()


@pytest.mark.parametrize("seed", range(3))
def test_random_scores(seed: int) -> None:
    """Nine of them in one library, each of a pair of segments."""
    rng = np.random.default_rng(seed)
    clauses = []
    for q, k in ((q, k) for q in "abc" for k in "abc"):
        score = smooth(rng, 3).replace("q.n", f"q.{q}{q}").replace("k.n", f"k.{k}{k}")
        clauses.append(f"score {q} -> {k}: 2.0 * tanh(logit / 3.0 + ({score}) / 4.0)")
    text = (
        "pattern f(c: float = 1.3) over a(aa) then b(bb) then c(cc)"
        " input a[heads]: float input b[23]: float keep q.index * 7 % 11 >= k.index % 5 "
        + " ".join(clauses)
    )
    mask = maskdsl.parse(text).bind(aa=9, bb=23, cc=17, heads=2)
    assert len(shapes_of(mask).of) >= 9
    given = inputs_for(mask, {"a": (2,), "b": (23,)})
    x = [torch.randn(2, 2, 49, 6, generator=torch.Generator().manual_seed(i)) for i in range(4)]
    found = []
    for backend, dtype in (("torch", torch.float32), ("reference", torch.float64)):
        leaves = [y.to(dtype).requires_grad_() for y in x[:3]]
        own = {n: y.to(dtype) for n, y in given.items()}
        out = maskdsl.compile(mask, 6, dtype, backend=backend)(*leaves, **own)
        gradients = torch.autograd.grad(out, leaves, x[3].to(dtype))
        found.append([y.detach().double() for y in (out, *gradients)])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_planes_are_small() -> None:
    """What depends on one token is worked out for tokens, and joined where it is read."""

    def planes(score: str) -> list[bool]:
        text = f"pattern f over (n) input w[n]: float score {score}"
        shapes = Scores(maskdsl.parse(text).bind(n=8).program).shapes
        assert shapes is not None
        (shape,) = shapes.of.values()
        return [p.over_pairs for p in shape.planes]

    assert planes("tanh(logit)") == []
    assert planes("tanh(logit) * 2.5 + w[k.n]") == [False]
    assert planes("tanh(logit + (w[q.n] - 3 * w[k.n]))") == [False, False]
    assert planes("tanh(logit) + w[q.n] * (q.n - k.n)") == [True]
    assert planes("logit + w[k.n]") == [False]
    assert planes("logit + w[k.n] * w[q.n]") == [True]  # `score.h` reads one


def test_what_is_not_compiled_runs_plainly(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "pattern f over (n) keep near(n, 5) score floor(logit) * 0.25"
    assert Scores(maskdsl.parse(text).bind(n=40).program).shapes is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_values(text, 16, 16, n=40)
    monkeypatch.setattr(native_scores, "LEAST_PAIRS", 1601)
    text = "pattern f over (n) keep near(n, 5) score logit * 0.3"
    assert Scores(maskdsl.parse(text).bind(n=40).program).shapes is None
    assert Scores(maskdsl.parse(text).bind(n=41).program).shapes is not None


def test_a_compiler_that_fails_costs_one_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASKDSL_CXX", "c++ -DSLOPED=")
    text = "pattern f over (n) keep near(n, 5) score logit * 0.3"
    with pytest.warns(UserWarning, match="without its compiled part"):
        check_values(text, 16, 16, n=40)


# What each function must give, and the most units in the last place that it may be off by.
FUNCTIONS: dict[str, tuple[Any, float]] = {
    "exponential": (np.exp, 2),
    "tanh": (np.tanh, 3),
    "sigmoid": (lambda x: 1 / (1 + np.exp(-x)), 3),
    "absolute": (np.abs, 0),
    "root": (np.sqrt, 0.5),
}


@pytest.fixture(scope="module")
def functions(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    headers = '#include <stdint.h>\n#include "numbers.h"\n#include "functions.h"\n'
    calls = "".join(
        f'extern "C" void every_{name}(float* x, int64_t count) {{\n'
        f"    for (int64_t i = 0; i < count; i += LANES) store(x + i, {name}(load(x + i)));\n}}\n"
        for name in FUNCTIONS
    )
    file = tmp_path_factory.mktemp("functions") / "functions.so"
    command = [*(compiler() or []), "-std=c++17", "-O2", "-shared", "-fPIC", "-march=native"]
    subprocess.run(
        [*command, "-x", "c++", "-", "-o", str(file)], input=included(headers + calls, {}),
        text=True, check=True, cwd=Path(file).parent,
    )  # fmt: skip
    return ctypes.CDLL(str(file))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions(name: str, functions: ctypes.CDLL) -> None:
    """Over all floats, and close to where they change."""
    exact, most = FUNCTIONS[name]
    every = np.arange(0, 2**32, 4999, dtype=np.uint64).astype(np.uint32).view(np.float32)
    special = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 88.7, 88.8, -103.0], np.float32)
    parts = (np.linspace(-a, a, 2**17, dtype=np.float32) for a in (1, 10, 110))
    x = np.concatenate([every, special, *parts])
    x = np.resize(x, len(x) // 16 * 16 + 16)
    found = x.copy()
    function = getattr(functions, f"every_{name}")
    function(found.ctypes.data_as(ctypes.c_void_p), ctypes.c_int64(len(x)))
    with np.errstate(all="ignore"):
        want = exact(x.astype(np.float64))
        rounded = want.astype(np.float32)
        normal = np.isfinite(rounded) & (np.abs(rounded) >= 2.0**-126)
        off = np.abs(found - want)[normal] / np.spacing(np.abs(rounded[normal]))
        assert off.max() <= most
        assert np.array_equal(found[~np.isfinite(rounded)], rounded[~np.isfinite(rounded)], True)
        assert np.abs(found - want)[np.abs(rounded) < 2.0**-126].max() < 2.0**-126
