"""Fewer queries than keys, wherever they stand, against the definition in float64."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from kernels import CASES, Case
from test_codegen import check_golden

import maskdsl
from maskdsl import BindError, Tile
from maskdsl.codegen import Spec
from maskdsl.codegen.decode import DecodeEmission, heads_together, query_tiles
from maskdsl.codegen.spec import SHARED
from maskdsl.runtime import torch_decode
from maskdsl.runtime.boundary import Call
from maskdsl.runtime.resources import resources_many
from maskdsl.runtime.torch_decode import TorchDecode
from maskdsl.runtime.triton_backend import TritonForward
from maskdsl.runtime.triton_decode import TritonDecode, splits_for

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

HEADS = """pattern heads over (n) input slope[heads]: float input gate[heads, n]: int
keep causal(n) and (head % 3 != 1 or near(n, 20)) and gate[head, k.n] < 3
score logit - slope[head] * (q.n - k.n)
sink slope[head] * 2.0
"""
SEGMENTS = """pattern video_text over video(t, s) then text(n)
keep video -> video: near(t, 1) and near(s, 3)
keep any -> text, text -> any: true
score video -> text: logit * 0.5
"""
MORE = {
    "heads": Case(
        HEADS, {"n": 75, "heads": 12, "kv_heads": 2}, (16,), (16,), batch=2,
        inputs={"slope": ((12,), "float"), "gate": ((12, 75), "int")},
    ),
    "seven": Case(
        "pattern seven over (n) input slope[heads]: float keep causal(n)"
        " score logit - slope[head] * (q.n - k.n) sink slope[head]",
        {"n": 75, "heads": 14, "kv_heads": 2}, (16,), (16,), value_dim=40, layout="bnhd",
        inputs={"slope": ((14,), "float")},
    ),
    "one_key_head": Case(
        "pattern one over (a, b, c) keep near(a, 1) and causal(b) and near(c, 2)",
        {"a": 3, "b": 5, "c": 7, "heads": 8, "kv_heads": 1}, (1, 4, 8), (1, 4, 8), batch=2,
    ),
    "segments": Case(SEGMENTS, {"t": 4, "s": 9, "n": 21, "heads": 2}, ((2, 8), 16), ((2, 8), 16)),
}  # fmt: skip
ALL = {n: c for n, c in CASES.items() if c.mask().program.shared} | MORE


def decoder(case: Case, target: str = "sm_90") -> TritonDecode:
    mask = case.mask()
    plan = mask.plan(case.q_tile, case.kv_tile)
    return TritonDecode(mask, TritonForward(plan, case.spec(target), case.head_dim**-0.5))


def truth(case: Case, q: Any, k: Any, v: Any, first: int, inputs: Any) -> Any:
    """(out, lse) in float64 by `mask.dense` and `mask.scores`; sinks by a plain reading."""
    mask = case.mask()
    batch, heads, count, dim = q.shape
    out = torch.zeros((batch, heads, count, v.shape[3]), dtype=torch.float64)
    lse = torch.full((batch, heads, count), -math.inf, dtype=torch.float64)
    group = heads // k.shape[1]
    for b in range(batch):
        for h in range(heads):
            at = {"head": h, "batch": b, "q_offset": first, **inputs}
            keep = mask.dense(queries=count, **at)
            logits = (q[b, h].double() @ k[b, h // group].double().T * dim**-0.5).numpy()
            s = torch.from_numpy(np.where(keep, mask.scores(logits, **at), -np.inf))
            total = torch.logsumexp(s, 1)
            if case.text == HEADS:
                total = torch.logaddexp(total, inputs["slope"][h].double() * 2)
            elif "sink" in case.text:
                total = torch.logaddexp(total, inputs["slope"][h].double())
            lse[b, h] = total
            weights = torch.exp(s - total.masked_fill(total == -math.inf, 0)[:, None])
            out[b, h] = weights @ v[b, h // group].double()
    return out, lse


def check(case: Case, found: Any, want: Any) -> None:
    (out, lse), (right, right_lse) = found, want
    tolerance = 1e-5 if case.dtype == torch.float32 else 2e-3
    assert out.dtype == case.dtype
    torch.testing.assert_close(out.double(), right, atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(lse.double(), right_lse, atol=1e-5, rtol=1e-5)


def places(keys: int) -> list[tuple[int, int]]:
    """(first, queries): in the middle, at the ends, across tiles, all but one."""
    middle, most = (keys // 2, 3), (7, min(40, keys - 7))
    return [middle, (0, 1), (keys - 1, 1), (keys - 16, 16), most, (1, keys - 1)]


def attend(run: TritonDecode, call: Call, splits: int | None = None) -> Any:
    out, lse = run(call, splits)
    assert lse is not None and not out.isnan().any()
    return out, lse


@pytest.mark.parametrize("name", ALL)
def test_values(name: str) -> None:
    case = ALL[name]
    q, k, v, inputs = case.tensors()
    run = decoder(case)
    few = 6 if case.batch * q.shape[1] < 8 else 3
    for first, count in places(k.shape[2])[:few]:
        own = q[:, :, first : first + count]
        found = attend(run, Call(own, k, v, inputs, first))
        check(case, found, truth(case, own, k, v, first, inputs))


@pytest.mark.parametrize("splits", [2, 5, pytest.param(64, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ["window", "mixture", "radial", "four_axes", *MORE])
def test_keys_cut_into_parts(name: str, splits: int) -> None:
    """Even into more parts than there are tiles, of which some are empty."""
    case = ALL[name]
    q, k, v, inputs = case.tensors()
    first = k.shape[2] // 2
    own = q[:, :, first : first + 3]
    found = attend(decoder(case, "sm_80"), Call(own, k, v, inputs, first), splits)
    check(case, found, truth(case, own, k, v, first, inputs))


@pytest.mark.parametrize("backend", ["triton", "torch", "reference"])
@pytest.mark.parametrize("layout", ["bhnd", "bnhd"])
def test_every_position_of_a_small_mask(backend: str, layout: str) -> None:
    """Queries of zeros weigh all kept keys alike: outputs are counts of exactly those keys."""
    text = (
        "pattern p over (a, b) keep causal(a) and near(b, 2) and (head != 1 or q.b != 3)"
        " keep k.index == 0 and q.a > 3"
    )
    mask = maskdsl.parse(text).bind(a=5, b=6, heads=4, kv_heads=2)
    v = torch.eye(30).expand(1, 2, 30, 30)
    k = torch.randn(1, 2, 30, 16)
    kernel = maskdsl.compile(
        mask, 16, value_dim=30, backend=backend, layout=layout, q_tile=(4, 8), kv_tile=(2, 8)
    )
    dense = np.stack([mask.dense(head=h) for h in range(4)])
    for m in (1, 3, 29):
        for first in range(31 - m):
            q = torch.zeros(1, 4, m, 16)
            if layout == "bnhd":
                q, own_k, own_v = (x.transpose(1, 2) for x in (q, k, v))
            else:
                own_k, own_v = k, v
            out, lse = kernel(q, own_k, own_v, q_offset=first, return_lse=True)
            out = out.transpose(1, 2) if layout == "bnhd" else out
            keep = torch.from_numpy(dense[:, first : first + m])
            assert torch.equal(out[0] != 0, keep)
            count = keep.sum(-1)
            torch.testing.assert_close(lse[0].exp(), count.float(), atol=1e-4, rtol=0)
            if first + m == 30:
                again = kernel(q, own_k, own_v)
                again = again.transpose(1, 2) if layout == "bnhd" else again
                assert torch.equal(again, out)


@pytest.mark.parametrize("splits", [1, 3])
@pytest.mark.parametrize("name", ["causal", "neighborhood_3d", "some_see_nothing", *MORE])
def test_exactly_the_right_keys(name: str, splits: int) -> None:
    """What a query may not see carries huge finite values and changes nothing, to the last bit."""
    case = ALL[name]
    mask = case.mask()
    q, k, v, inputs = case.tensors()
    run = decoder(case)
    i, b, h = k.shape[2] // 2, q.shape[0] - 1, q.shape[1] - 1
    kv = h // (q.shape[1] // k.shape[1])
    own = q[:, :, i : i + 2]
    out, _ = attend(run, Call(own, k, v, inputs, i), splits)
    hidden = torch.from_numpy(~mask.dense(h, b, queries=1, q_offset=i, **inputs)[0])
    k2, v2 = k.clone(), v.clone()
    k2[b, kv, hidden] = 3e37
    v2[b, kv, hidden] = 3e37
    again, _ = run(Call(own, k2, v2, inputs, i), splits)  # the other query may see some
    assert torch.equal(again[b, h, 0], out[b, h, 0])


@pytest.mark.parametrize("splits", [1, 2])
def test_tiles_that_are_not_visited_are_not_loaded(splits: int) -> None:
    case = CASES["blocks"]
    q, k, v, _ = case.tensors()
    run = decoder(case)
    plan = run.kernel_for(1).plan
    row = 50 // plan.q_tile.size[0]
    visited = {tile for tile, _ in plan.rows(0)[row]}
    assert 0 < len(visited) < plan.kv_tiles
    for tile in set(range(plan.kv_tiles)) - visited:
        k[:, :, tile * 16 : tile * 16 + 16] = torch.nan
        v[:, :, tile * 16 : tile * 16 + 16] = torch.nan
    attend(run, Call(q[:, :, 50:51], k, v, {}, 50), splits)


@pytest.mark.parametrize("backend", ["torch", "reference"])
@pytest.mark.parametrize("name", ["heads", "seven", "segments", "soft_cap", "some_see_nothing"])
def test_other_backends(name: str, backend: str) -> None:
    case = ALL[name]
    q, k, v, inputs = case.tensors()
    kernel = maskdsl.compile(
        case.mask(), 16, value_dim=case.value_dim, backend=backend, layout=case.layout
    )
    for first, count in places(k.shape[2]):
        own = q[:, :, first : first + count]
        given = [x.transpose(1, 2) for x in (own, k, v)] if case.layout == "bnhd" else [own, k, v]
        out, lse = kernel(*given, q_offset=first, return_lse=True, **inputs)
        out = out.transpose(1, 2) if case.layout == "bnhd" else out
        check(case, (out, lse), truth(case, own, k, v, first, inputs))


def test_the_torch_backend_takes_a_few_queries_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    case = ALL["heads"]
    q, k, v, inputs = case.tensors()
    own = q[:, :, 10:50]
    run = TorchDecode(case.mask().program, 0.25)
    whole, _ = run(Call(own, k, v, inputs, 10))
    monkeypatch.setattr(torch_decode, "PAIRS", 7 * 75)
    parts, _ = run(Call(own, k, v, inputs, 10))
    torch.testing.assert_close(parts, whole, atol=1e-6, rtol=1e-6)


def test_one_kernel_serves_every_position_and_one_size_of_tile_every_number() -> None:
    case = replace(CASES["causal"], dtype=torch.float16)
    q, k, v, _ = case.tensors()
    run = decoder(case)
    for first, count in ((3, 1), (50, 1), (99, 2), (64, 7), (0, 30)):
        run(Call(q[:, :, first : first + count], k, v, {}, first))
    assert len(run._kernels) == 1
    assert run.kernel_for(1) is run.kernel_for(32)
    assert run.kernel_for(100).plan.q_tile.size == (64,)


def test_further_queries_share_a_tile_while_they_see_much_the_same() -> None:
    """One query of a dilated window sees one residue class; its neighbours see the others."""
    spec = Spec(16, 16, "float16")
    for text, sizes in (("near(n, 200)", (64, 64)), ("dilated(n, 40, 4)", (1, 64))):
        mask = maskdsl.parse(f"pattern p over (n) keep {text}").bind(n=1024)
        kv_tile = Tile(16, 4) if "dilated" in text else Tile(16)
        run = TritonDecode(mask, TritonForward(mask.plan(16, kv_tile), spec, 1.0))
        assert tuple(run.kernel_for(m).plan.q_tile.size[0] for m in (1, 60)) == sizes
        q = torch.zeros(1, 1, 1, 16, dtype=torch.float16)
        x = torch.zeros(1, 1, 1024, 16, dtype=torch.float16)
        _, lse = run(Call(q, x, x, {}, 500))
        assert lse is not None
        assert round(float(lse.exp())) == mask.dense(queries=1, q_offset=500).sum()


def test_heads_together() -> None:
    """The heads of a program share a key head and a plan, and are few enough."""
    text = "pattern p over (n) keep causal(n) and (head {} or near(n, 9))"
    found = []
    for condition, heads, kv_heads in (
        ("< 99", 8, 2), ("% 2 == 0", 8, 2), ("< 2", 8, 2), ("< 6", 12, 1), ("< 99", 7, 1),
        ("< 999", 512, 2), ("< 99", 4, 4),
    ):  # fmt: skip
        mask = maskdsl.parse(text.format(condition)).bind(n=64, heads=heads, kv_heads=kv_heads)
        found.append(heads_together(mask.plan(16, 16)))
    assert found == [4, 1, 2, 6, 7, 128, 1]


def test_splits_fill_a_device() -> None:
    assert splits_for(8, 64, 132) == 33
    assert splits_for(8, 4, 132) == 4
    assert splits_for(1, 1000, 132) == 64
    assert splits_for(200, 64, 132) == 1
    assert splits_for(10**6, 64, 132) == 1


@pytest.mark.parametrize(
    ("count", "given", "message"),
    [
        (4, {"q_offset": 1.5}, "q_offset must be an int, not 1.5"),
        (4, {"q_offset": -1}, "q_offset must be at least 0, not -1"),
        (4, {"q_offset": 29}, "4 queries from position 29 do not fit 32 keys"),
        (32, {"q_offset": 1}, "32 queries from position 1 do not fit 32 keys"),
        (33, {}, "q has tokens 33, the mask's is 32"),
        (0, {}, "q has tokens 0, the mask's is 32"),
    ],
)
@pytest.mark.parametrize("backend", ["triton", "torch", "reference"])
def test_wrong_places_are_one_line(
    backend: str, count: int, given: dict[str, Any], message: str
) -> None:
    mask = maskdsl.parse("pattern c over (n) keep causal(n)").bind(n=32)
    kernel = maskdsl.compile(mask, 16, backend=backend, q_tile=16, kv_tile=16)
    x = torch.zeros(1, 1, 32, 16)
    with pytest.raises(BindError, match=message) as caught:
        kernel(torch.zeros(1, 1, count, 16), x, x, **given)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("backend", ["triton", "torch", "reference"])
def test_cross_attention_takes_all_queries(backend: str) -> None:
    mask = maskdsl.parse("pattern c over (n) -> (m)").bind(n=32, m=32)
    kernel = maskdsl.compile(mask, 16, backend=backend, q_tile=16, kv_tile=16)
    x = torch.zeros(1, 1, 32, 16)
    with pytest.raises(BindError, match="q_offset is for a space that queries and keys share"):
        kernel(x, x, x, q_offset=0)
    with pytest.raises(BindError, match="q has tokens 3, the mask's is 32"):
        kernel(x[:, :, :3], x, x)


FEW = {
    "a window": "pattern c over (n) keep 0 <= q.n - k.n < 9",
    "a score and a sink": """pattern c over (n) input b[heads]: float
        input s[heads]: float
        keep causal(n) score logit * b[head] - 0.1 * (q.n - k.n) sink s[head]""",
    "rows of nothing": "pattern c over (n) keep causal(n) and k.n % 4 == 0 and q.n % 3 > 0",
}


@pytest.mark.parametrize("layout", ["bhnd", "bnhd"])
@pytest.mark.parametrize("backend", ["triton", "torch"])
@pytest.mark.parametrize("name", FEW)
def test_gradients(name: str, backend: str, layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the queries given among all queries, by the reference."""
    monkeypatch.setattr("maskdsl.runtime.few_queries.PAIRS", 32 * 4 * 2 * 3)  # of three queries
    mask = maskdsl.parse(FEW[name]).bind(n=32, heads=4, kv_heads=2)
    g = torch.Generator().manual_seed(1)
    every = [torch.randn(2, h, 32, 16, generator=g) for h in (4, 2, 2)]
    inputs = {a.name: torch.rand(4, generator=g) + 0.5 for a in mask.program.inputs}
    kernel, reference = (
        maskdsl.compile(mask, 16, backend=b, layout=layout, q_tile=16, kv_tile=16)
        for b in (backend, "reference")
    )
    found = []
    for kern, rows in ((kernel, slice(20, 28)), (reference, slice(0, 32))):
        q, k, v = (x.clone().requires_grad_() for x in every)
        own = {n: x.clone().requires_grad_() for n, x in inputs.items()}
        turned = [x.transpose(1, 2) if layout == "bnhd" else x for x in (q[:, :, rows], k, v)]
        few = {"q_offset": 20} if kern is kernel else {}
        out, lse = kern(*turned, return_lse=True, **few, **own)
        out = out.transpose(1, 2) if layout == "bnhd" else out
        if kern is reference:
            out, lse = out[:, :, 20:28], lse[:, :, 20:28]
        seen = lse > -torch.inf
        loss = (out.square() + out).sum() + torch.where(seen, lse, 0).sum()
        found.append(torch.autograd.grad(loss, [q, k, v, *own.values()]))
    for got, want in zip(*found, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


def test_the_reference_differentiates() -> None:
    mask = maskdsl.parse("pattern c over (n) keep causal(n)").bind(n=8)
    x = torch.randn(1, 1, 8, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    whole, few = (x.clone().requires_grad_() for _ in range(2))
    kernel = maskdsl.compile(mask, 4, torch.float64, backend="reference")
    kernel(whole, whole, whole)[:, :, 5:7].sum().backward()
    kernel(few[:, :, 5:7], few, few, q_offset=5).sum().backward()
    torch.testing.assert_close(few.grad, whole.grad)


def test_an_empty_batch_and_expanded_tensors() -> None:
    case = CASES["causal"]
    q, k, v, _ = case.tensors()
    run = decoder(case)
    out, lse = run(Call(q[:0, :, :3], k[:0], v[:0], {}, 5))
    assert out.shape == (0, 4, 3, 16) and lse.shape == (0, 4, 3)
    k, v = k[:, :, :1].expand_as(k), v[:, :1].expand_as(v)
    own = q[:, :, 40:43]
    check(case, attend(run, Call(own, k, v, {}, 40), 2), truth(case, own, k, v, 40, {}))


# what is emitted


def decode_workload(target: str, queries: int = 1) -> DecodeEmission:
    """The suite's: 1 query, 128K keys, 32 heads on 8, a window of 8192."""
    mask = maskdsl.load("std/sliding_window").bind(n=131072, window=8192, heads=32, kv_heads=8)
    spec = Spec(128, 128, "bfloat16", target)
    whole = mask.plan(target=target, head_dim=128)
    tile = query_tiles(whole, spec, queries)[0]
    return DecodeEmission(mask.plan(tile, whole.kv_tile), spec)


def test_ahead_of_time() -> None:
    targets = ["sm_80", "sm_90", "sm_100", "gfx942"]
    jobs = [(decode_workload(t, n), t) for n in (1, 64) for t in targets]
    found = resources_many([(e.emitted(), t) for e, t in jobs])
    for (emission, target), one in zip(jobs, found, strict=True):
        assert one.shared <= SHARED[target]
        if target == "sm_90":
            assert one.spills == 0
            assert one.instructions["HGMMA"] and one.instructions["UTMALDG"]
        assert len(emission.render().splitlines()) < 200


def test_golden(request: pytest.FixtureRequest) -> None:
    check_golden("decode", decode_workload("sm_90").render(), request)


def test_sources_are_formatted(tmp_path: Path) -> None:
    for name, case in ALL.items():
        for target in ("sm_90", "sm_80"):
            if name in MORE and target == "sm_90":
                continue  # loads by descriptors stay on one line, however long their places
            spec = case.spec(target)
            for count in (1, 64):
                tiles = query_tiles(case.plan(), spec, count)
                several = len(tiles) > 1
                plan = case.mask().plan(tiles if several else tiles[0], case.kv_tile)
                text = DecodeEmission(plan, spec).render()
                (tmp_path / f"{name}_{target}_{count}.py").write_text(text)
    command = ["format", "--isolated", "--line-length", "100", "--diff", str(tmp_path)]
    ruff = pytest.importorskip("ruff", reason="ruff is a tool of the developers")
    done = subprocess.run(
        [sys.executable, "-m", ruff.__name__, *command], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout
