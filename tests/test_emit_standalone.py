"""Standalone files run where MaskDSL cannot be imported: values and gradients against the
definition in float64.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grid_cases
import numpy as np
import pytest
import torch
from kernels import PACKED, RADIAL

import maskdsl
from maskdsl.codegen import table_text
from maskdsl.integrations.standalone import standalone
from maskdsl.runtime.boundary import Call
from maskdsl.runtime.cache import load_source
from maskdsl.runtime.reference import Reference
from maskdsl.runtime.resources import resources_many

SEGMENTS = """pattern segments
over image(h, w) then text(n)
input slope[heads]: float
input shift[n]: float
keep image -> image: near(h, 2) and near(w, 2)
keep text -> text: causal(n)
keep any -> text: true
score image -> image: logit - slope[head] * abs(q.h - k.h)
score text -> text: logit + shift[k.n]
"""
UNSEEN = "pattern unseen over (n) keep causal(n) and k.n % 5 != 0"  # keys 0, 5, ... are nobody's
ODDITIES = """pattern oddities(table: bool[n], weight: float[heads])
over (n)
keep random(7, q.n // 4, k.n // 4) < 0.4 or (q.n - k.n) % (head + 2) == 0 and not table[k.n]
keep bit_length(q.n * k.n) == 5 or q.n != 7 and k.n ** 2 // (q.n - 7) in 3 .. 5
score 2.0 * tanh(logit / 2.0) - weight[head] * sqrt(abs(q.n - k.n))
"""
TOLERANCE = {torch.float32: 1e-4, torch.float16: 2e-3}  # of the largest entry


@dataclass(frozen=True)
class Case:
    """spec: a library entry or a text. values: what is bound. inputs: their shapes and kinds."""

    spec: str
    values: dict[str, Any]
    inputs: dict[str, tuple[tuple[int, ...], str]] = field(default_factory=dict)
    head_dim: int = 16
    value_dim: int = 16
    dtype: torch.dtype = torch.float32
    batch: int = 1
    options: dict[str, Any] = field(default_factory=dict)

    def mask(self) -> maskdsl.Mask:
        read = maskdsl.load if self.spec.startswith("std/") else maskdsl.parse
        return read(self.spec).bind(**self.values)

    def text(self) -> str:
        return standalone(
            self.mask(), self.head_dim, self.dtype, value_dim=self.value_dim, version="0.0.0",
            **self.options,
        )  # fmt: skip


CASES = {
    "causal": Case(
        "std/causal", {"n": 101, "heads": 4, "kv_heads": 2}, head_dim=64, value_dim=40,
        dtype=torch.float16, batch=2,
    ),
    "natten2d": Case(
        "std/natten2d",
        {"y": 9, "x": 13, "window": [5, 3], "stride": [2, 1], "dilation": [1, 2],
         "causal": [False, True], "heads": 2},
    ),
    "radial": Case(RADIAL, {"t": 13, "s": 11, "decay": 0.95, "least": 6}, head_dim=80),
    "longformer": Case("std/longformer", {"n": 97, "window": 6, "dilation": 2, "globals": 3}),
    "segments": Case(
        SEGMENTS, {"h": 6, "w": 9, "n": 21, "heads": 2, "kv_heads": 1},
        {"slope": ((2,), "float"), "shift": ((21,), "float")}, batch=2,
        options={"q_tile": ((4, 4), (16,)), "kv_tile": ((4, 4), (16,))},
    ),
    "sink_logits": Case(
        "std/sink_logits", {"n": 83, "window": 20, "heads": 2}, {"sinks": ((2,), "float")}, batch=2
    ),
    "documents": Case(
        "std/documents", {"n": 85, "heads": 2, "kv_heads": 1}, {"doc": ((2, 85), "int")}, batch=2,
        options={"q_tile": 32, "kv_tile": 16},
    ),
    "packed": Case(
        PACKED, {"n": 101, "window": 30, "heads": 4, "kv_heads": 2},
        {"doc": ((2, 101), "int"), "slope": ((4,), "float")}, batch=2,
        options={"q_tile": 32, "kv_tile": 32},
    ),
    "oddities": Case(
        ODDITIES, {"n": 61, "heads": 3, "table": np.arange(61) % 3 == 0, "weight": [-0.1, 0.2, 0.4]}
    ),
    "unseen": Case(UNSEEN, {"n": 70, "heads": 2}, options={"descriptors": False}),
    "nothing": Case(
        "pattern nothing over (n) -> (m) keep q.n > 20 and k.m < 9", {"n": 40, "m": 37}
    ),
}  # fmt: skip

# Runs every file of a folder without MaskDSL, and writes what it gives beside it.
SCRIPT = """
import importlib.util, sys, warnings
from pathlib import Path
import torch
warnings.simplefilter("ignore")
sys.modules["maskdsl"] = None
for file in sorted(Path(sys.argv[1]).glob("*.py")):
    spec = importlib.util.spec_from_file_location(file.stem, file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    given = torch.load(file.with_suffix(".in"))
    leaves = [given[n].requires_grad_() for n in "qkv"]
    inputs = given["inputs"]
    leaves += [x.requires_grad_() for x in inputs.values() if x.is_floating_point()]
    torch.use_deterministic_algorithms(True, warn_only=True)  # new memory is NaN
    out, lse = module.attention(*leaves[:3], inputs, return_lse=True)
    of = [given["do"], given["of_lse"]]
    grads = torch.autograd.grad([out, lse], leaves, of, allow_unused=True)
    torch.use_deterministic_algorithms(False)
    found = {"out": out.detach(), "lse": lse.detach(), "grads": grads}
    if hasattr(module, "visits_for"):
        visits = module.visits_for(inputs, len(given["q"]))
        out, lse = module.attention(*leaves[:3], inputs, return_lse=True, visits=visits)
        found["by_visits"] = out, torch.autograd.grad([out, lse], leaves, of, allow_unused=True)
        found["visits"] = {n: x for tables in visits.values() for n, x in tables.items()}
    if file.stem in sys.argv[2:]:
        again = given["q"].detach()[:, :, ::1], *(x.detach().clone() for x in leaves[1:3])
        for x in again[1:]:
            x[:, :, ::5] = 3e37
        found["huge"] = module.attention(*again, inputs).detach()
        wide = torch.zeros(*again[0].shape[:3], again[0].shape[3] + 3)
        odd = wide[..., 1:-2].copy_(again[0])  # aligned to nothing
        found["odd"] = module.attention(odd, *leaves[1:3], inputs).detach()
        swapped = again[0].transpose(1, 2).contiguous().transpose(1, 2)
        found["swapped"] = module.attention(swapped, *leaves[1:3], inputs).detach()
        total = module.attention(*leaves[:3], inputs).sum()
        found["of_sum"] = torch.autograd.grad(total, leaves[0])[0]
        found["of_ones"] = torch.autograd.grad(
            module.attention(*leaves[:3], inputs), leaves[0], torch.ones_like(out))[0]
        module.self_test()
    torch.save(found, file.with_suffix(".out"))
"""


def tensors(case: Case) -> dict[str, Any]:
    """Small whole numbers; q, k, v, the gradients of what is given, and the inputs."""
    mask = case.mask()
    heads, queries, keys = mask.shape
    g = torch.Generator().manual_seed(1)

    def whole(*shape: int) -> torch.Tensor:
        return torch.randint(-2, 3, (case.batch, *shape), generator=g).to(case.dtype)

    inputs = {}
    for name, (shape, kind) in case.inputs.items():
        ints = torch.randint(0, 4, shape, generator=g).sort(-1).values
        inputs[name] = ints if kind == "int" else torch.rand(shape, generator=g)
    return {
        "q": whole(heads, queries, case.head_dim),
        "k": whole(mask.kv_heads, keys, case.head_dim),
        "v": whole(mask.kv_heads, keys, case.value_dim),
        "do": whole(heads, queries, case.value_dim),
        "of_lse": whole(heads, queries).float(),
        "inputs": inputs,
    }


EXTRA = ("unseen", "radial", "oddities")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every case's file, what it was given and what it gave."""
    folder = tmp_path_factory.mktemp("standalone")
    for name, case in CASES.items():
        (folder / f"{name}.py").write_text(case.text())
        torch.save(tensors(case), folder / f"{name}.in")
    env = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": ""}
    command = [sys.executable, "-c", SCRIPT, str(folder), *EXTRA]
    done = subprocess.run(command, env=env, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("self-test passed") == len(EXTRA)
    return folder


def close(x: torch.Tensor, want: torch.Tensor, dtype: torch.dtype) -> None:
    limit = TOLERANCE[dtype] * max(float(want.abs().max()), 1e-3)
    torch.testing.assert_close(x.double(), want.double(), rtol=0, atol=limit)


@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients(name: str, folder: Path) -> None:
    case = CASES[name]
    given, found = torch.load(folder / f"{name}.in"), torch.load(folder / f"{name}.out")
    leaves = [given[n].double().requires_grad_() for n in "qkv"]
    exact = {n: x.double() if x.is_floating_point() else x for n, x in given["inputs"].items()}
    leaves += [x.requires_grad_() for x in exact.values() if x.is_floating_point()]
    reference = Reference(case.mask().program, case.head_dim**-0.5)
    out, lse = reference.forward(Call(*leaves[:3], exact))
    assert torch.equal(found["lse"] == -math.inf, lse == -math.inf)
    finite = torch.where(lse == -math.inf, 0.0, lse)
    close(found["out"], out.detach(), case.dtype)
    close(torch.where(lse == -math.inf, 0.0, found["lse"]), finite.detach(), case.dtype)
    of = [given["do"].double(), given["of_lse"].double()]
    wanted = torch.autograd.grad([out, finite], leaves, of, allow_unused=True)
    assert len(wanted) == len(found["grads"])
    for x, want in zip(found["grads"], wanted, strict=True):
        close(x, want, case.dtype)


@pytest.mark.parametrize("name", EXTRA)
def test_strides_and_layouts(name: str, folder: Path) -> None:
    found = torch.load(folder / f"{name}.out")
    for other in ("odd", "swapped"):
        assert torch.equal(found[other], found["out"]), other
    assert torch.equal(found["of_sum"], found["of_ones"])


@pytest.mark.parametrize("name", ["documents", "packed"])
def test_what_inputs_leave_empty_is_skipped(name: str, folder: Path) -> None:
    """The same results, from the tiles that the runtime of MaskDSL visits or fewer."""
    case, found = CASES[name], torch.load(folder / f"{name}.out")
    out, grads = found["by_visits"]
    close(out.detach(), found["out"], case.dtype)
    for x, want in zip(grads, found["grads"], strict=True):
        close(x, want, case.dtype)
    inputs = torch.load(folder / f"{name}.in")["inputs"]
    mask = case.mask()
    plan = mask.plan(**case.options)
    counts = found["visits"]["input_counts"]
    for number, c in enumerate(plan.head_classes):
        for b in range(case.batch):
            keep = torch.from_numpy(mask.dense(head=c.heads[0], batch=b, **inputs))
            for row in range(plan.q_tiles):
                kinds = [0, 0]
                for column in range(plan.kv_tiles):
                    own = keep[plan.tokens("q", row)][:, plan.tokens("k", column)]
                    whole = bool(own.all()) and own.shape[1] == 16 * (1 + (name == "packed"))
                    kinds[whole] += bool(own.any())
                assert counts[b, number, row].tolist() == kinds


def test_keys_that_nobody_sees_may_hold_anything(folder: Path) -> None:
    found = torch.load(folder / "unseen.out")
    assert torch.equal(found["huge"], found["out"])


def test_a_file_needs_torch_and_triton_alone() -> None:
    text = CASES["segments"].text()
    imports = {line.split()[1].split(".")[0] for line in text.splitlines()
               if line.startswith(("import ", "from "))}  # fmt: skip
    assert imports <= {"base64", "contextlib", "math", "torch", "triton", "zlib"}
    defined = [line for line in text.splitlines() if line.startswith(("def ", "class "))]
    assert len(defined) == len({line.split("(")[0] for line in defined})


def test_what_it_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    mask = maskdsl.load("std/causal").bind(n=64)
    with pytest.raises(maskdsl.CompileError, match="positive scale"):
        standalone(mask, 16, version="0", scale=-1.0)
    monkeypatch.setattr(table_text, "MAX_BYTES", 10)
    with pytest.raises(maskdsl.CompileError, match="take larger tiles"):
        CASES["oddities"].text()


@pytest.mark.slow
def test_the_library_tests_itself(capsys: pytest.CaptureFixture[str]) -> None:
    """The self-test of every entry with an oracle, in this process."""
    for name, draw in sorted(grid_cases.CASES.items()):
        case = draw(np.random.default_rng(5))
        entry, _, pattern = name.partition(":")
        mask = maskdsl.load(f"std/{entry}", pattern or None).bind(**case.bound)
        text = standalone(mask, 16, torch.float32, version="0.0.0")
        module = load_source(f"standalone_{name.replace(':', '_')}", lambda text=text: text)
        module.self_test()
        assert "self-test passed (torch.float32" in capsys.readouterr().out, name


@pytest.mark.slow
def test_machine_code_is_that_of_the_kernels() -> None:
    """Triton compiles the file's kernels, under their new names, to what it makes of ours."""
    mask = maskdsl.load("std/causal").bind(n=1024, heads=4, kv_heads=2)
    kernel = maskdsl.compile(mask, 64, torch.float16, backend="triton", target="sm_90")
    text = standalone(mask, 64, torch.float16, version="0.0.0")
    names = {n: f"causal_{n}" for n in kernel.sources}
    jobs = []
    for name, source in kernel.sources.items():
        types = source[source.index("TYPES = {") : source.index("\n\n\n@triton.jit")]
        others = ", ".join(own for n, own in names.items() if n != name)
        jobs.append((f"{text}\n\n{types}\ndel {others}\n", "sm_90"))
    found = resources_many([*jobs, *((s, "sm_90") for s in kernel.sources.values())])
    assert found[:3] == found[3:]
