"""The forward module in Gluon: its values on a model of Gluon, and its machine code for sm_90."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gluon_model import run
from kernels import RADIAL, Case, dense_attention
from loop_order import compiled
from test_codegen import check_golden, visited

import maskdsl
from maskdsl import BindError, CompileError
from maskdsl.codegen import OverlapEmission, Spec
from maskdsl.codegen.walk import make_walk

HALF = torch.float16
CAUSAL = "pattern causal over (n) keep causal(n)"
NEAR = " keep neighborhood(t, {}) and neighborhood(h, {}) and neighborhood(w, {})"
# small, with rows, tiles and edges of every sort
SMALL = {
    "causal": Case(CAUSAL, {"n": 421, "heads": 4, "kv_heads": 2}, (64,), (64,), 40, 40, HALF,
                   batch=2),
    "dense": Case("pattern dense over (n) -> (m)", {"n": 130, "m": 512, "heads": 2}, (64,), (128,),
                  64, 64, HALF, layout="bnhd"),
    "ragged": Case("pattern dense over (n) -> (m)", {"n": 70, "m": 300}, (128,), (64,), 128, 128,
                   HALF),
    "window": Case("pattern w over (n) keep causal(n) and near(n, 150)", {"n": 500}, (64,), (64,),
                   48, 64, HALF),
    "both_sides": Case("pattern w over (n) keep near(n, 170)", {"n": 777}, (64,), (64,), 64, 64,
                       HALF),
    "wide_band": Case("pattern w over (n) keep near(n, 450)", {"n": 1000}, (128,), (64,), 64, 64,
                      HALF),
    "before": Case("pattern w over (n) keep q.n + 100 <= k.n < q.n + 400", {"n": 700}, (64,), (64,),
                   64, 64, HALF),
    "video": Case("pattern v over (t, h, w)" + NEAR.format(3, 9, 6), {"t": 5, "h": 13, "w": 17,
                  "heads": 2}, (1, 8, 8), (2, 4, 8), 64, 64, HALF),
    "blocks_of_video": Case("pattern v over (t, h, w) keep block(t, 2) and block(h, 8)",
                            {"t": 4, "h": 16, "w": 16}, (1, 8, 8), (2, 4, 8), 64, 64, HALF),
    "radial": Case(RADIAL, {"t": 7, "s": 100, "decay": 0.95, "least": 10}, (1, 64), (1, 64), 64, 64,
                   HALF),
    "strided": Case("pattern s over (n) keep causal(n) and (if head % 2 == 0 then q.n - k.n < 70"
                    " else (q.n - k.n) % 96 == 0)", {"n": 450, "heads": 4, "kv_heads": 2}, (64,),
                    (64,), 64, 64, HALF, batch=2),
    "some_see_nothing": Case("pattern s over (n) keep q.n > 250 and k.n < 100", {"n": 401}, (64,),
                             (64,), 64, 64, HALF),
    "early_see_nothing": Case("pattern s over (n) keep k.n + 200 <= q.n", {"n": 700}, (64,), (64,),
                              64, 64, HALF),
    "keys_alone": Case("pattern s over (n) -> (m) keep k.m % 3 == 0", {"n": 100, "m": 300}, (64,),
                       (64,), 64, 64, HALF),
    "long_runs": Case("pattern lines over (m) -> (a, n) keep k.a != 1",
                      {"m": 100, "a": 3, "n": 4480}, (64,), (1, 64), 64, 64, HALF),
    "dilated": Case("pattern d over (n) keep dilated(n, 100, 4)", {"n": 512, "heads": 2}, (64,),
                    (64,), 64, 64, HALF),
    "documents": Case("pattern p over (n) input doc[batch, n]: int"
                      " keep causal(n) and doc[batch, q.n] == doc[batch, k.n]", {"n": 300}, (64,),
                      (64,), 64, 64, HALF, batch=2, inputs={"doc": ((2, 300), "int")}),
    "sink": Case("pattern s over (n) input x[heads]: float keep causal(n) and near(n, 90)"
                 " sink x[head]", {"n": 301, "heads": 2}, (64,), (64,), 64, 64, HALF,
                 inputs={"x": ((2,), "float")}),
}  # fmt: skip
STRIDED = SMALL["strided"].text.replace("70", "128").replace("96", "128")
# of real sizes
LARGE = {
    "dense": Case("pattern dense over (n)", {"n": 16384, "heads": 16}, (128,), (128,), 128, 128),
    "causal": Case(CAUSAL, {"n": 16384, "heads": 16}, (128,), (128,), 128, 128),
    "narrow": Case(CAUSAL, {"n": 16384, "heads": 16}, (128,), (128,), 64, 64),
    "grouped": Case(CAUSAL, {"n": 16384, "heads": 32, "kv_heads": 8}, (64,), (128,), 128, 128),
    "window": Case("pattern w over (n) keep causal(n) and near(n, 4095)", {"n": 32768}, (128,),
                   (64,), 128, 128),
    "hunyuan": Case("pattern v over (t, h, w)" + NEAR.format(18, 24, 24),
                    {"t": 30, "h": 48, "w": 80, "heads": 24}, (2, 8, 8), (2, 8, 8), 128, 128),
    "hunyuan_stride": Case("pattern v over (t, h, w)" + NEAR.format("18, 16", "24, 8", "24, 8"),
                           {"t": 30, "h": 48, "w": 80, "heads": 24}, (2, 8, 8), (2, 8, 8), 128,
                           128),
    "strided": Case(STRIDED, {"n": 16384, "heads": 16}, (128,), (64,), 128, 128),
}  # fmt: skip
BOTH_KINDS = ("causal", "narrow", "grouped", "window", "hunyuan")


def emission(case: Case, **changes: Any) -> OverlapEmission:
    return OverlapEmission(case.plan(), replace(case.spec(), **changes))


def on_model(case: Case, emitted: OverlapEmission, source: str = "") -> list[torch.Tensor]:
    """[out, lse, and both by the definition in float64]. Keys that no query of a tile keeps hold
    NaN, others that a query does not keep huge numbers.
    """
    q, k, v, inputs = case.tensors()
    mask = case.mask()
    group = q.shape[1] // k.shape[1]
    want, log = dense_attention(mask, q, k, v, 0.3, **inputs)
    if "sink" in case.text:  # a logit more in the denominator
        kept = log
        log = torch.logaddexp(kept, inputs["x"].double()[None, :, None])
        want = want * (kept - log).exp()[..., None]
    for b in range(q.shape[0]):
        for kv in range(k.shape[1]):
            heads = range(kv * group, (kv + 1) * group)
            kept = np.any([mask.dense(head=h, batch=b, **inputs).any(0) for h in heads], axis=0)
            k[b, kv, ~kept], v[b, kv, ~kept] = 6e4, -6e4
    for kv in range(k.shape[1]):
        tokens = emitted.plan.kv_grid_.tokens(np.arange(emitted.plan.kv_tiles))
        seen = {
            i
            for h in range(kv * group, (kv + 1) * group)
            for row in emitted.plan.rows(h)
            for i, _ in row
        }
        for tile in set(range(len(tokens))) - seen:
            here = tokens[tile][tokens[tile] >= 0]
            k[:, kv, here], v[:, kv, here] = float("nan"), float("nan")
    tables = {name: torch.from_numpy(x.copy()) for name, x in emitted.tables.items()}
    module = run(source or emitted.render())
    return [*module["forward"](q, k, v, 0.3, tables, inputs), want, log]


def right(out: torch.Tensor, lse: torch.Tensor, want: torch.Tensor, log: torch.Tensor) -> bool:
    """Weights are rounded to 11 bits before they weigh values, and sums are not."""
    some = torch.isfinite(log)
    near = (out.double() - want).abs().max() <= 2e-3 * want.abs().max()
    same = torch.equal(some, torch.isfinite(lse)) and bool((lse[~some] == -torch.inf).all())
    return bool(near) and same and torch.allclose(lse[some].double(), log[some], atol=1e-4)


@pytest.mark.parametrize("name", SMALL)
def test_values_on_a_model_of_gluon(name: str) -> None:
    case = SMALL[name]
    assert right(*on_model(case, emission(case)))


def test_equal_weights_give_exact_sums() -> None:
    """Queries of zeros: each output is a sum of small integers over a count."""
    case = SMALL["window"]
    emitted = emission(case)
    q, k, v, _ = case.tensors()
    out, lse = run(emitted.render())["forward"](q * 0, k, v, 0.3, {}, {})
    keep = torch.from_numpy(case.mask().dense()).float()
    want = (keep @ v[0, 0].float()) / keep.sum(1)[:, None]
    assert torch.equal(out[0, 0], want.to(HALF))
    assert torch.allclose(lse[0, 0], keep.sum(1).log(), atol=1e-6)


WRONG = {
    "keys a tile too early": (" keys_copied, i - 1 +", " keys_copied, i +"),
    "values a tile too early": ("values_copied, i - 2 +", "values_copied, i - 1 +"),
    "no wait for keys": ("wait(keys_copied, i + 1, visits)", "pass"),
    "no wait for values": ("wait(values_copied, i - 1, visits)", "pass"),
    "the other phase": ("number // STAGES & 1", "1 - (number // STAGES & 1)"),
    "the values of another tile": ("(weights, values, i - 1,", "(weights, values, i,"),
    "sums not shrunk": ("acc = acc * shrink[:, None]", "acc = acc"),
    "the sum not waited for": ("wait(0, deps=[output,", "wait(1, deps=[output,"),
    "masks in full tiles alone": ("if MASKED:", "if not MASKED:"),
    "no last values": ("wait(values_copied, tiles - 1, visits)", "return"),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_the_model_finds_what_is_wrong(what: str) -> None:
    case = SMALL["causal"]
    emitted = emission(case)
    source = emitted.render()
    found, instead = WRONG[what]
    assert found in source
    try:
        ok = right(*on_model(case, emitted, source.replace(found, instead)))
    except AssertionError:
        ok = False
    assert not ok


@pytest.mark.parametrize("name", SMALL)
def test_listed_walks_visit_what_the_plan_visits(name: str) -> None:
    case = SMALL[name]
    emitted = emission(case)
    plan, (frame,) = emitted.plan, emitted.frames
    if frame.closed is not None:
        assert emitted.tables.keys() <= {"rows"}
        return
    before = make_walk(plan)
    for kind, part in frame.walk.visits[0].items():
        assert part.mode in ("list", "none")
        for row in range(len(before.rows)):
            want = visited(before.visits[0][kind], plan.kv_grid_, row)
            assert visited(part, plan.kv_grid_, row) == want


def test_long_runs_are_runs_before_they_are_listed() -> None:
    walk = make_walk(SMALL["long_runs"].plan())
    assert walk.visits[0]["full"].mode == "runs"


QUICK = ("causal", "hunyuan", "strided")  # compiled in every run


def by_speed(names: Iterable[str]) -> list[Any]:
    return [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in names]


@pytest.fixture(scope="module")
def quick_code() -> dict[str, dict[str, Any]]:
    cases = {name: replace(LARGE[name], dtype=torch.bfloat16) for name in QUICK}
    cases |= {name: SMALL[name] for name in ("some_see_nothing", "documents", "sink")}
    return compiled({name: emission(case).render() for name, case in cases.items()})


@pytest.fixture(scope="module")
def other_code() -> dict[str, dict[str, Any]]:
    cases = {n: replace(x, dtype=torch.bfloat16) for n, x in LARGE.items() if n not in QUICK}
    cases["ragged"] = SMALL["ragged"]
    return compiled({name: emission(case).render() for name, case in cases.items()})


@pytest.fixture
def code_of(request: pytest.FixtureRequest) -> Callable[[str], dict[str, Any]]:
    """What was found of a case of `LARGE`."""

    def find(name: str) -> dict[str, Any]:
        fixture = "quick_code" if name in QUICK else "other_code"
        return request.getfixturevalue(fixture)[name]  # type: ignore[no-any-return]

    return find


@pytest.mark.parametrize("part", ["quick", pytest.param("other", marks=pytest.mark.slow)])
def test_every_module_compiles(part: str, request: pytest.FixtureRequest) -> None:
    machine_code = request.getfixturevalue(f"{part}_code")
    for name, found in machine_code.items():
        assert 0 < found["registers"] <= 255, name
        assert found["shared"] <= 227 << 10, name
        assert found["loops"], name


@pytest.mark.parametrize("name", by_speed(LARGE))
def test_nothing_spills(name: str, code_of: Callable[[str], dict[str, Any]]) -> None:
    assert code_of(name)["spills"] == 0


@pytest.mark.parametrize("name", by_speed(LARGE))
def test_exponentials_overlap_products(name: str, code_of: Callable[[str], dict[str, Any]]) -> None:
    """Both products start; the first alone is waited for; then all exponentials, the wait for the
    next keys, and the wait for the sum. Copies start after all warps have met.
    """
    copies = "BAR (SYNCS |BAR )*UTMALDG (SYNCS |BAR |MUFU )*UTMALDG"
    order = f"(HGMMA |SYNCS |BAR )+{copies} DEPBAR 1 (MUFU )+SYNCS DEPBAR 0"
    for body in code_of(name)["loops"]:
        marks = [x for x in body if re.match("HGMMA|SYNCS|BAR|UTMALDG|MUFU|DEPBAR", x)]
        between = body[body.index("DEPBAR 1") : body.index("DEPBAR 0")]
        assert between.count("MUFU") >= scores_of_thread(name)
        assert re.search(order, " ".join(marks)), marks


def scores_of_thread(name: str) -> int:
    """Of a tile: a warp's 32 threads share 16 rows."""
    return math.prod(LARGE[name].kv_tile) // 2


@pytest.mark.parametrize("name", by_speed(BOTH_KINDS))
def test_full_loops_mask_nothing(name: str, code_of: Callable[[str], dict[str, Any]]) -> None:
    full, partial = code_of(name)["loops"]
    assert full.count("FSEL") == 0
    assert partial.count("FSEL") >= scores_of_thread(name)
    assert len(full) < len(partial)


def test_resources_are_those_of_the_template(code_of: Callable[[str], dict[str, Any]]) -> None:
    kernel = maskdsl.compile(
        LARGE["causal"].mask(), 128, torch.bfloat16, backend="triton", target="sm_90",
        q_tile=128, kv_tile=128, template="overlap",
    )  # fmt: skip
    found = kernel.resources()
    assert found.registers == code_of("causal")["registers"]
    assert found.spills == 0 and found.instructions["UTMALDG"] > 0


@pytest.mark.parametrize("name", ["causal", "hunyuan"])
def test_golden(name: str, request: pytest.FixtureRequest) -> None:
    case = replace(LARGE[name], dtype=torch.bfloat16)
    check_golden(f"{name}_overlap", emission(case).render(), request)


def test_emission_is_deterministic_and_its_keys_are_its_own() -> None:
    case = SMALL["strided"]
    first, second = emission(case), emission(case)
    assert first.render() == second.render()
    assert first.key == second.key
    kernel = maskdsl.compile(case.mask(), 64, HALF, backend="triton", target="sm_90")
    assert kernel.key != first.key
    assert len({emission(c).key for c in SMALL.values()}) == len(SMALL)


def test_sources_are_formatted(tmp_path: Path) -> None:
    for name, case in SMALL.items():
        (tmp_path / f"{name}.py").write_text(emission(case).render())
    for name, case in LARGE.items():
        (tmp_path / f"large_{name}.py").write_text(emission(case, dtype="bfloat16").render())
    command = ["format", "--isolated", "--line-length", "100", "--diff", str(tmp_path)]
    done = subprocess.run([sys.executable, "-m", "ruff", *command], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


REFUSED = {
    "target": ({"target": "sm_100"}, "is for sm_90, not sm_100"),
    "dtype": ({"dtype": "float32"}, "takes float16 and bfloat16, not float32"),
    "dims": ({"head_dim": 128}, "takes head and value dimensions of 33 to 128"),
    "scale": ({"rising": False}, "takes positive scales"),
    "pointers": ({"descriptors": False}, "takes tiles that are boxes"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_specs_are_refused_in_one_line(name: str) -> None:
    changes, why = REFUSED[name]
    with pytest.raises(CompileError, match=f"the overlap template {why}.*: use the plain template"):
        emission(SMALL["dense"], **changes)


@pytest.mark.parametrize(
    ("text", "tiles", "why"),
    [
        ("over (n) score logit * 2", (64,), "without score clauses"),
        ("over (n) keep causal(n)", (32,), "takes tiles of 64 or 128 lanes"),
        ("over a(n) then b(m) keep a -> a: true", (64,), "takes spaces of one segment"),
        ("over (n) keep q.n < 0", (64,), "takes patterns that keep something"),
    ],
)
def test_patterns_are_refused_in_one_line(text: str, tiles: tuple[int, ...], why: str) -> None:
    pattern = maskdsl.parse(f"pattern p {text}")
    mask = pattern.bind(**dict.fromkeys(pattern.axes, 128))
    plan = mask.plan([tiles] * 2, [tiles] * 2) if "then" in text else mask.plan(tiles, tiles)
    with pytest.raises(CompileError, match=f"the overlap template .*{why}.*: use the plain"):
        OverlapEmission(plan, Spec(64, 64, "float16"))


def test_compile_takes_a_template() -> None:
    mask = SMALL["window"].mask()
    tiles = {"q_tile": (64,), "kv_tile": (64,)}
    kernel = maskdsl.compile(
        mask, 64, HALF, backend="triton", target="sm_90", template="overlap", **tiles
    )
    assert "warpgroup_mma" in kernel.source
    assert kernel.sources.keys() == {"forward", "dq", "dkv"}
    x = torch.zeros((1, 1, 500, 64), dtype=HALF)
    with pytest.raises(CompileError, match="the overlap template runs on a GPU alone"):
        kernel(x, x, x)
    with pytest.raises(CompileError, match="the overlap template is for the triton backend"):
        maskdsl.compile(mask, 64, HALF, backend="torch", template="overlap")
    with pytest.raises(BindError, match="template is one of plain, overlap, not 'fast'"):
        maskdsl.compile(mask, 64, HALF, template="fast")
