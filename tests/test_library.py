"""The standard library against oracles that are not derived from it, and its speed."""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import oracles
import pytest
import torch
from grid_cases import CASES  # those of library_cases too
from library_sizes import bindings

import maskdsl
from maskdsl import tables
from maskdsl.language.parse import parse_text

STD = Path(maskdsl.__file__).parent / "language" / "std"
FILES = sorted(p.stem for p in STD.glob("*.mask") if p.stem != "functions")
ROUNDS = 120


@cache
def load(name: str) -> maskdsl.Pattern:
    file, _, pattern = name.partition(":")
    return maskdsl.load(f"std/{file}", name=pattern or None)


@pytest.mark.parametrize("name", CASES)
def test_entry_equals_its_oracle(name: str) -> None:
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    for _ in range(ROUNDS):
        case = CASES[name](rng)
        mask = load(name).bind(**case.bound)
        for head in range(mask.heads):
            batch = int(rng.integers(0, 2)) if case.inputs else 0
            got = mask.dense(head=head, batch=batch, **case.inputs)
            assert np.array_equal(got, case.truth(head, batch)), (case.bound, head, case.inputs)


# name: (axes, inputs by head count and extents, parameters, logit of head h at positions q, k)
SCORES: dict[str, tuple[str, Callable[..., dict[str, Any]], dict[str, Any], Any]] = {
    "alibi": (
        "n", lambda rng, h, n: {"slope": tables.alibi_slopes(h)}, {},
        lambda v, h, q, k, i: v + i["slope"][h] * (k[0] - q[0]),
    ),
    "alibi:alibi_symmetric": (
        "n", lambda rng, h, n: {"slope": rng.random(h)}, {},
        lambda v, h, q, k, i: v - i["slope"][h] * max(q[0] - k[0], k[0] - q[0]),
    ),
    "relative_bias": (
        "n", lambda rng, h, n: {"bias": rng.normal(size=(h, 2 * n - 1))}, {},
        lambda v, h, q, k, i: v + np.roll(i["bias"][h], -(i["bias"].shape[1] // 2))[q[0] - k[0]],
    ),
    "relative_bias:relative_bias_2d": (
        "yx", lambda rng, h, y, x: {"bias": rng.normal(size=(h, 2 * y - 1, 2 * x - 1))}, {},
        lambda v, h, q, k, i: v + np.roll(
            i["bias"][h], [-(n // 2) for n in i["bias"].shape[1:]], axis=(0, 1)
        )[q[0] - k[0], q[1] - k[1]],
    ),
    "softcap": ("n", lambda rng, h, n: {}, {"cap": 3.0}, lambda v, h, q, k, i: 3 * np.tanh(v / 3)),
    "distance_decay": (
        "n", lambda rng, h, n: {"scale_out": rng.random(h), "scale_in": rng.random(h)}, {},
        lambda v, h, q, k, i: v - i["scale_out"][h] * np.log1p(i["scale_in"][h] * (q[0] - k[0])),
    ),
    "distance_decay:distance_decay_2d": (
        "yx", lambda rng, h, y, x: {"slope": rng.random(h)}, {},
        lambda v, h, q, k, i: v - i["slope"][h] * np.hypot(q[0] - k[0], q[1] - k[1]),
    ),
}  # fmt: skip
UNMASKED = {"alibi:alibi_symmetric", "relative_bias"}  # over n; the others there are causal


@pytest.mark.parametrize("name", SCORES)
def test_scores_equal_their_formulas(name: str) -> None:
    axes, inputs_of, params, formula = SCORES[name]
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    for _ in range(12):
        extents = [int(n) for n in rng.integers(1, 14 if len(axes) == 1 else 5, len(axes))]
        heads = int(rng.integers(1, 7))
        inputs = inputs_of(rng, heads, *extents)
        mask = load(name).bind(**dict(zip(axes, extents, strict=True)), **params, heads=heads)
        head = int(rng.integers(heads))
        places = list(np.ndindex(*extents))
        logits = rng.normal(size=(len(places), len(places))) * 5
        got = mask.scores(logits, head=head, **inputs)
        kept = mask.dense(head=head, **inputs)
        whole = len(axes) == 2 or name in UNMASKED
        assert (kept == (np.ones_like(kept) if whole else np.tril(np.ones_like(kept)))).all()
        for i, j in zip(*np.nonzero(kept), strict=True):
            want = formula(logits[i, j], head, places[i], places[j], inputs)
            assert got[i, j] == pytest.approx(want, rel=1e-9, abs=1e-9), (extents, head, i, j)


@pytest.mark.parametrize("seed", range(20))
def test_sink_logits_take_their_share(seed: int) -> None:
    """gpt-oss's sdpa: one more column of logits per head, dropped after the softmax."""
    rng = np.random.default_rng(seed)
    n, heads, window = (int(x) for x in rng.integers(1, (20, 4, 9)))
    mask = load("sink_logits").bind(n=n, heads=heads, window=window)
    sinks = rng.normal(size=heads) * 3
    q, k, v = rng.normal(size=(3, heads, n, 16))
    band = oracles.band(n, window - 1, 0)
    logits = np.where(band, q @ k.transpose(0, 2, 1) / 4, -np.inf)
    wide = np.concatenate([logits, np.broadcast_to(sinks[:, None, None], (heads, n, 1))], axis=2)
    weights = np.exp(wide - wide.max(axis=2, keepdims=True))
    want = (weights / weights.sum(axis=2, keepdims=True))[..., :-1] @ v
    kernel = maskdsl.compile(mask, head_dim=16, dtype=torch.float32, backend="reference")
    given = (torch.from_numpy(x[None]).float() for x in (q, k, v))
    got = kernel(*given, sinks=torch.from_numpy(sinks).float())
    np.testing.assert_allclose(got[0].numpy(), want, rtol=1e-4, atol=1e-5)
    for head in range(heads):
        inputs = {"sinks": sinks}
        assert (mask.dense(head=head, **inputs) == band).all()


def test_every_pattern_has_an_oracle_and_a_source() -> None:
    lacking = []
    for file in FILES:
        text = (STD / f"{file}.mask").read_text()
        names = [p.name for p in parse_text(text, file).patterns]
        assert names[-1] == file
        assert "arXiv" in text or "github.com" in text, file
        keys = [n if n == file else f"{file}:{n}" for n in names]
        lacking += [k for k in keys if k not in {*CASES, *SCORES, "sink_logits"}]
    assert not lacking


N = 16_384
SIZES = bindings(N)
TIMED = sorted({*FILES, *SIZES})


@pytest.mark.parametrize("name", TIMED)
def test_entry_is_ready_within_50_milliseconds_at_16k_tokens(name: str) -> None:
    """15 to 45 ms on a quiet machine; twice 50 ms is what a machine that others use is allowed."""
    file, _, pattern = name.partition(":")
    bound, tile = SIZES.get(name, ({"n": N}, 64))
    seconds: list[float] = []
    for _ in range(3):
        start = time.process_time()  # of this process: the machine may be shared
        maskdsl.load(f"std/{file}", name=pattern or None).bind(**bound).plan(tile, tile)
        seconds.append(time.process_time() - start)
        if not 0.05 <= seconds[-1] < 0.5:  # ready, or hopeless
            break
    assert min(seconds) < 0.1


def test_tree_intervals() -> None:
    walk = tables.tree([-1, 0, 0, 1, 2, -1])
    assert walk.enter.tolist() == [0, 1, 3, 2, 4, 5]
    assert walk.leave.tolist() == [5, 3, 5, 3, 5, 6]
    assert tables.tree([], context=2).leave.tolist() == [2, 2]
    assert tables.tree(np.arange(-1, 99_999)).leave.tolist() == [100_000] * 100_000


def test_slopes_of_a_count_that_is_no_power_of_two() -> None:
    assert tables.alibi_slopes(8).tolist() == [2.0**-i for i in range(1, 9)]
    want = [2.0**-2, 2.0**-4, 2.0**-6, 2.0**-8, 2.0**-1, 2.0**-3]
    assert tables.alibi_slopes(6).tolist() == want


@pytest.mark.parametrize(
    ("call", "cause"),
    [
        (lambda: tables.tree([0]), "go round in a circle"),
        (lambda: tables.tree([1, 2, 0, -1]), "parents of token 0 go round in a circle"),
        (lambda: tables.tree([-1, 2]), "parent of token 1 must be -1 or a token, not 2"),
        (lambda: tables.tree([-2]), "must be -1 or a token"),
        (lambda: tables.tree([0.5]), "ints"),
        (lambda: tables.tree([[0]]), "1 dimension"),
        (lambda: tables.tree([[0], [1, 2]]), "different lengths"),
        (lambda: tables.tree([0], context=-1), "context must lie between"),
        (lambda: tables.tree([0], context=True), "context must be an int"),
        (lambda: tables.documents([3, -1]), "not be negative"),
        (lambda: tables.documents([2**40, 2**40]), "tokens"),
        (lambda: tables.vertical_slash([[1]], [], 3), "1 heads"),
        (lambda: tables.vertical_slash([[3]], [[0]], 3), "vertical of head 0"),
        (lambda: tables.alibi_slopes(0), "heads must lie between"),
        (lambda: tables.alibi_slopes("2"), "heads must be an int"),
    ],
)
def test_wrong_tables(call: Callable[[], Any], cause: str) -> None:
    with pytest.raises(maskdsl.BindError, match=cause) as caught:
        call()
    assert "\n" not in str(caught.value)
