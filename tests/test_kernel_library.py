"""Kernels of every library pattern, forward and all gradients, under Triton's interpreter against
the definition in float64.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from grid_cases import CASES, Case  # those of library_cases too
from kernel_truth import Problem, check_hidden, check_hidden_from_inputs, check_values

import maskdsl
from maskdsl.language.parse import parse_text

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

STD = Path(maskdsl.__file__).parent / "language" / "std"
PATTERNS = [
    p.name if p.name == path.stem else f"{path.stem}:{p.name}"
    for path in sorted(STD.glob("*.mask"))
    for p in parse_text(path.read_text(), path.stem).patterns
]

Random = np.random.Generator
# Those that `CASES` lacks, and some whose queries may see nothing: extents and parameters, and
# arrays (inputs or parameters) by heads; 4 heads share 2 key heads.
OWN: dict[str, tuple[dict[str, Any], Callable[[Random, int], dict[str, np.ndarray]]]] = {
    "alibi": ({"n": 43}, lambda rng, h: {"slope": rng.random(h)}),
    "alibi:alibi_symmetric": ({"n": 37}, lambda rng, h: {"slope": rng.random(h) / 4}),
    "relative_bias": ({"n": 37}, lambda rng, h: {"bias": rng.normal(size=(h, 73))}),
    "relative_bias:relative_bias_2d": (
        {"y": 5, "x": 7}, lambda rng, h: {"bias": rng.normal(size=(h, 9, 13))},
    ),
    "softcap": ({"n": 43, "cap": 3.0}, lambda rng, h: {}),
    "distance_decay": (
        {"n": 43},
        lambda rng, h: {"scale_out": rng.random(h), "scale_in": rng.random(h) + 0.2},
    ),
    "distance_decay:distance_decay_2d": (
        {"y": 5, "x": 9}, lambda rng, h: {"slope": rng.random(h) / 4},
    ),
    "sink_logits": ({"n": 59, "window": 13}, lambda rng, h: {"sinks": rng.normal(size=h) * 2}),
    "tree": ({"n": 45}, lambda rng, h: nested(rng, (2, 45))),
    "tree:tree_static": ({"n": 45}, lambda rng, h: nested(rng, (45,))),
    "tree:tree_matrix": ({"n": 45}, lambda rng, h: {"sees": rng.random((2, 45, 45)) < 0.08}),
    "vertical_slash": (
        {"n": 45},
        lambda rng, h: {x: rng.random((h, 45)) < 0.1 for x in ("vertical", "slash")},
    ),
}  # fmt: skip


def nested(rng: Random, shape: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Intervals of which some are empty, so that not every token sees itself."""
    enter = np.broadcast_to(np.arange(shape[-1]), shape).copy()
    return {"enter": enter, "leave": enter + rng.integers(0, 9, shape)}


TILES = {1: ((32,), (16,)), 2: ((4, 8), (4, 4)), 3: ((2, 4, 4), (1, 4, 4))}  # by axes
DRAWS = 60


@cache
def drawn(name: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """(what to bind, inputs): the best of the library's random cases of a fit size."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    if name in OWN:
        bound, arrays = OWN[name]
        return {**bound, "heads": 4, "kv_heads": 2}, arrays(rng, 4)
    fit: list[tuple[int, Case]] = []
    for _ in range(DRAWS):
        case = CASES[name](rng)
        keep = case.truth(0, 0)
        if 33 <= keep.shape[0] <= 70 or (name.startswith("tree") and keep.shape[0] > 16):
            fit.append((worth(case, keep), case))
    _, best = max(fit, key=lambda x: x[0])
    return best.bound, best.inputs


def worth(case: Case, keep: np.ndarray) -> int:
    """More for a mask that is neither dense nor nothing, then for lonely queries and keys."""
    blind, unseen = (not keep.any(axis).all() for axis in (1, 0))
    some = 0.04 < keep.mean() < 0.6
    return 4 * (some and case.bound.get("heads", 1) <= 3) + 2 * blind + unseen


@cache
def problem(name: str, dtype: torch.dtype = torch.float32) -> Problem:
    number = PATTERNS.index(name)
    bound, arrays = drawn(name)
    file, _, title = name.partition(":")
    pattern = maskdsl.load(f"std/{file}", name=title or None)
    bound = {**bound, **{n: x for n, x in arrays.items() if n in pattern.params}}
    if "heads" not in bound:  # alone, two, two that share their keys
        bound |= ({}, {"heads": 2}, {"heads": 2, "kv_heads": 1})[number % 3]
    mask = pattern.bind(**bound)
    batched = any("batch" in array.dims for array in pattern.inputs.values())
    tiles = [
        tuple(TILES[len(segment.axes)][side] for segment in segments)
        for side, segments in enumerate((mask.program.queries, mask.program.keys))
    ]
    q_tile, kv_tile = (t if len(t) > 1 else t[0] for t in tiles)
    return Problem(
        mask,
        {"q_tile": q_tile, "kv_tile": kv_tile},
        {n: x for n, x in arrays.items() if n in pattern.inputs},
        head_dim=(16, 24, 32)[number % 3],
        value_dim=(16, 24, 16, 40)[number % 4],
        dtype=dtype,
        layout=("bhnd", "bnhd")[number % 2],
        batch=2 if batched or mask.kv_heads == 1 else 1,
        sink=(lambda given, head: given["sinks"][head]) if name == "sink_logits" else None,
    )


def test_no_pattern_is_left_out() -> None:
    assert len(PATTERNS) > 50
    assert {*CASES, *OWN} >= {*PATTERNS}


def test_the_cases_are_worth_checking() -> None:
    """Most have ragged extents, hidden keys and tiles that no one visits; some, queries that see
    nothing, keys that no one sees, grouped queries, both layouts.
    """
    cases = [problem(name) for name in PATTERNS]
    plans = [p.mask.plan(**p.tiles) for p in cases]
    assert sum(not plan.proofs["divisible"] for plan in plans) > 40
    assert sum(plan.tiles.empty > 0 for plan in plans) > 25
    assert sum(plan.tiles.full > 0 for plan in plans) > 15
    assert sum(not p.keep.all() for p in cases) > 45
    assert sum(not p.keep.any(3).all() for p in cases) >= 4
    assert sum(not p.keep.any(2).all() for p in cases) >= 4
    assert sum(p.group > 1 for p in cases) > 10
    assert {p.layout for p in cases} == {"bhnd", "bnhd"}
    assert sum(p.head_dim != p.value_dim for p in cases) > 20


@pytest.mark.parametrize("name", PATTERNS)
def test_values_and_gradients(name: str) -> None:
    check_values(problem(name))


THIRD = [
    pytest.param(name, marks=() if number % 3 == 0 else pytest.mark.slow)
    for number, name in enumerate(PATTERNS)
]


@pytest.mark.parametrize("name", THIRD)
def test_values_and_gradients_in_float16(name: str) -> None:
    check_values(problem(name, torch.float16))


@pytest.mark.parametrize("name", PATTERNS)
def test_what_may_not_be_seen_changes_nothing(name: str) -> None:
    check_hidden(problem(name))


@pytest.mark.parametrize("name", ["alibi", "distance_decay", "sink_logits"])
def test_what_may_not_be_seen_reaches_no_input(name: str) -> None:
    check_hidden_from_inputs(problem(name))


def test_kernels_of_other_parameters_are_other_kernels() -> None:
    text = "pattern p(c: int) over (n) keep q.n % 7 == k.n // c % 7"
    tiles = {"q_tile": 16, "kv_tile": 16}
    problems = [Problem(maskdsl.parse(text).bind(n=45, c=c), tiles) for c in (3, 5)]
    assert len({p.kernel.key for p in problems}) == len({p.kernel.source for p in problems})
    for p in problems:
        check_values(p)
