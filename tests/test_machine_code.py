"""The benchmark's kernels at their real sizes, compiled ahead of time: what their machine code
takes and what its loops hold. No GPU is needed.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch
from filelock import FileLock

import maskdsl
from benchmarks.suite import Workload, load_workloads
from maskdsl import CompileError
from maskdsl.planner import Plan
from maskdsl.runtime.machine_code import read_amdgcn, read_sass
from maskdsl.runtime.resources import Resources, resources_many

SUITE = load_workloads()
DIRECTIONS = ("forward", "backward")
# compiled in every run: causal, of video, of several classes of heads, of inputs
QUICK = ("causal-16k", "hunyuan", "strided-16k", "documents-64k")
SHARED = {"sm_80": 163 << 10, "sm_90": 227 << 10, "sm_100": 227 << 10, "gfx942": 64 << 10}
PRODUCTS = {"sm_80": "HMMA", "sm_90": "HGMMA", "sm_100": "UTCHMMA", "gfx942": "v_mfma"}
# What masks are made of: comparisons, selections and logic, of lanes and of whole warps.
MASKING = re.compile(
    r"U?(F|I)SETP|U?F?SEL|U?PLOP3|U?LOP3|P2R|R2P|V?IMNMX"
    r"|(v|s)_cmp_\w+|v_cndmask\w+|(v|s)_(and|or|xor)_\w+"
)
EXPONENTIAL = re.compile(r"MUFU\.EX2|v_exp_f32\w*")  # one for each pair, and a few for each row
SELECTION = re.compile(r"F?SEL")
Loop = Mapping[str, int]


@dataclass(frozen=True)
class Found:
    """Of the emitted modules, and of those of a kernel of equal tiles that masks nothing; and
    whether the forward plan has full tiles (with no lane outside the space) and others.
    """

    modules: Sequence[Resources]
    bare: Sequence[Resources]
    full: bool
    other: bool


def count(loop: Loop, opcodes: re.Pattern[str]) -> int:
    return sum(n for opcode, n in loop.items() if opcodes.fullmatch(opcode))


def compiled_for(workload: Workload, target: str) -> maskdsl.Kernel:
    dtype = getattr(torch, workload.dtype)
    return maskdsl.compile(
        workload.mask(), workload.head_dim, dtype, backend="triton", target=target, **workload.tiles
    )


def loops_of(modules: Sequence[Resources]) -> dict[str, tuple[Loop, ...]]:
    return {name: loops for one in modules for name, loops in one.loops.items() if loops}


def sources_of(kernel: maskdsl.Kernel, direction: str) -> list[str]:
    """The emitted modules."""
    if direction == "forward":
        return [kernel.source]
    return [source for name, source in kernel.sources.items() if name != "forward"]


def kinds_of(plan: Plan) -> tuple[bool, bool]:
    """Whether it visits full tiles of tokens alone, and others."""
    if plan.tiles.full == 0:
        return False, True
    whole = [
        {t for t in range(n) if len(plan.tokens(side, t)) == tile.lanes}
        for side, n, tile in (("q", plan.q_tiles, plan.q_tile), ("k", plan.kv_tiles, plan.kv_tile))
    ]
    found = {
        kind == "full" and row in whole[0] and tile in whole[1]
        for head in {c.heads[0] for c in plan.head_classes}
        for row, visits in enumerate(plan.rows(head))
        for tile, kind in visits
    }
    return True in found, False in found


def compile_all(target: str, names: Sequence[str]) -> dict[tuple[str, str], Found | str]:
    """By workload and direction; the message, where a kernel is refused."""
    jobs: dict[Any, list[str]] = {}
    found: dict[tuple[str, str], Any] = {}
    for name in names:
        workload = SUITE[name]
        for direction in DIRECTIONS:
            try:
                kernel = compiled_for(workload, target)
                jobs[name, direction] = sources_of(kernel, direction)
            except CompileError as error:
                found[name, direction] = str(error)
                continue
            lanes = kernel.plan.q_tile.lanes, kernel.plan.kv_tile.lanes
            like = (*lanes, workload.head_dim, direction)
            if like not in jobs:
                bare = maskdsl.compile(
                    maskdsl.load("std/full").bind(n=16384, heads=4), workload.head_dim,
                    torch.bfloat16, backend="triton", target=target,
                    q_tile=lanes[0], kv_tile=lanes[1],
                )  # fmt: skip
                jobs[like] = sources_of(bare, direction)
            found[name, direction] = like, *kinds_of(kernel.plan)
    texts = [(key, text) for key, sources in jobs.items() for text in sources]
    halves = texts[::2], texts[1::2]
    with ThreadPoolExecutor(2) as pool:
        parts = pool.map(lambda half: resources_many([(s, target) for _, s in half]), halves)
    done: dict[Any, list[Resources]] = {}
    for half, part in zip(halves, parts, strict=True):
        for (key, _), one in zip(half, part, strict=True):
            done.setdefault(key, []).append(one)
    return {
        key: x if isinstance(x, str) else Found(done[key], done[x[0]], *x[1:])
        for key, x in found.items()
    }


@pytest.fixture(scope="session")
def found(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Found]:
    """(workload, direction, target) to what was found, compiled once for all processes of the test
    session.
    """
    folder = tmp_path_factory.getbasetemp()
    folder = folder.parent if folder.name.startswith("popen-") else folder

    @cache
    def of(target: str, quick: bool) -> dict[tuple[str, str], Found | str]:
        names = [n for n in SUITE if (n in QUICK) == quick]
        path = folder / f"machine_code_{target}_{quick}.pickle"
        with FileLock(f"{path}.lock"):
            if not path.exists():
                path.write_bytes(pickle.dumps(compile_all(target, names)))
        return pickle.loads(path.read_bytes())

    def one(name: str, direction: str, target: str) -> Found:
        x = of(target, name in QUICK)[name, direction]
        if isinstance(x, str):
            raise CompileError(x)
        return x

    return one


def by_speed(names: Iterable[str]) -> list[Any]:
    return [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in names]


def cases(known: Mapping[tuple[str, str, str], Any]) -> list[Any]:
    """(workload, direction, target), with the marks of those that are known to fail."""
    every = [(n, d, t) for t in PRODUCTS for n in SUITE for d in DIRECTIONS]
    slow = pytest.mark.slow

    def is_quick(key: tuple[str, str, str]) -> bool:
        return key[0] in QUICK and key[2] == "sm_90"

    return [
        pytest.param(
            *key,
            id="-".join(key),
            marks=[m for m in (known.get(key), None if is_quick(key) else slow) if m],
        )
        for key in every
    ]


@pytest.mark.parametrize(("name", "direction", "target"), cases({}))
def test_it_fits_and_multiplies_on_the_tensor_cores(
    found: Callable[..., Found], name: str, direction: str, target: str
) -> None:
    modules = found(name, direction, target).modules
    for one in modules:
        assert 0 < one.registers <= (512 if target == "gfx942" else 255)
        assert 0 < one.shared <= SHARED[target]
    walking = loops_of(modules)
    assert len(walking) >= (1 if direction == "forward" else 2)
    for loop in (loop for loops in walking.values() for loop in loops):
        assert any(opcode.startswith(PRODUCTS[target]) for opcode in loop)
        assert count(loop, EXPONENTIAL) > 0


@pytest.mark.parametrize("name", by_speed(n for n, w in SUITE.items() if w.head_dim <= 128))
def test_no_spills_forward(found: Callable[..., Found], name: str) -> None:
    assert all(one.spills == 0 for one in found(name, "forward", "sm_90").modules)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("name", by_speed(SUITE))
def test_tiles_are_loaded_by_descriptors(
    found: Callable[..., Found], name: str, direction: str
) -> None:
    for loops in loops_of(found(name, direction, "sm_90").modules).values():
        assert all(loop.get("UTMALDG", 0) > 0 for loop in loops)


# AMD's code of these selects some 300 times a turn, even where all tiles are full and the source
# has no mask (flux-stride-16): what does it was not found out
SELECTS = {
    (name, "backward", "gfx942"): pytest.mark.xfail(strict=True, reason="selects without a mask")
    for name in ("flux", "flux-stride-16")
}


@pytest.mark.parametrize(("name", "direction", "target"), cases(SELECTS))
def test_full_tiles_are_not_masked(
    found: Callable[..., Found], name: str, direction: str, target: str
) -> None:
    """A mask takes at least one selection for each pair of a thread. The loop over full tiles has
    less than half of that more than a kernel without a mask has; any other loop has it, or more
    matrix products.
    """
    one = found(name, direction, target)
    product = re.compile(re.escape(PRODUCTS[target]) + r"\w*")
    for bare_name, (bare,) in loops_of(one.bare).items():
        end = bare_name.removeprefix("full")
        loops = [x for n, of in loops_of(one.modules).items() if n.endswith(end) for x in of]
        first, *others = sorted(loops, key=lambda loop: sum(loop.values()))
        pairs = count(bare, EXPONENTIAL)
        assert count(bare, SELECTION) < pairs / 2  # AMD selects where it rounds to bfloat16
        masked = [count(x, MASKING) - count(bare, MASKING) for x in (first, *others)]
        if one.full:
            assert masked[0] < pairs / 2
            assert count(first, product) == count(bare, product)
        if one.other and direction == "forward":  # in a loop, or once where there is one such tile
            (module,) = one.modules
            inside = count(first, MASKING) if one.full else 0
            assert count(module.instructions, MASKING) - inside >= pairs
        if not one.other:
            assert not others
        for loop, more in zip(others, masked[1:], strict=True):
            assert more >= pairs / 2 or count(loop, product) > count(bare, product)


@pytest.mark.parametrize("direction", [pytest.param("forward", marks=pytest.mark.slow), "backward"])
def test_a_kernel_tells_the_same(found: Callable[..., Found], direction: str) -> None:
    kernel = compiled_for(SUITE["causal-16k"], "sm_90")
    modules = found("causal-16k", direction, "sm_90").modules
    told = kernel.resources(direction=direction)
    assert told.loops == {n: loops for one in modules for n, loops in one.loops.items()}
    assert told.shared == max(one.shared for one in modules)
    assert told.instructions["HGMMA"] == sum(one.instructions["HGMMA"] for one in modules)


# Counting itself.

SASS = """
.text.kernel:
        /*0000*/                   MOV R1, c[0x0][0x28] ;
        /*0010*/                   HMMA.16816.F32 R4, R8, R10, R4 ;
.L_x_1:
        /*0020*/                   LDS R2, [R3] ;
.L_x_3:
        /*0030*/              @!P0 BRA `(.L_x_9) ;
.L_x_2:
        /*0040*/                   HMMA.16816.F32 R4, R8, R10, R4 ;
        /*0050*/                   MUFU.EX2 R5, R5 ;
        /*0060*/               @P1 BRA `(.L_x_3) ;
        /*0070*/               @P2 BRA `(.L_x_1) ;
.L_x_4:
        /*0080*/                   HGMMA.64x64x16.F32.BF16 R88, gdesc[UR8], R88 ;
        /*0090*/                   BRA.U UP0, `(.L_x_4) ;
.L_x_5:
        /*00a0*/                   FADD R1, R1, R2 ;
        /*00b0*/               @P0 BRA `(.L_x_5) ;
        /*00c0*/                   EXIT ;
.L_x_9:
        /*00d0*/                   SYNCS.PHASECHK.TRANS64.TRYWAIT P0, [R1], R2 ;
        /*00e0*/              @!P0 BRA `(.L_x_9) ;
        /*00f0*/                   BRA `(.L_x_2) ;
.L_x_6:
        /*0100*/                   BRA `(.L_x_6);
"""
AMD = """
kernel:
	s_load_dwordx2 s[0:1], s[2:3], 0x0
.LBB0_1:                                ; =>This Inner Loop Header: Depth=1
	v_mfma_f32_32x32x8_bf16 v[0:15], v[16:17], v[18:19], 0
	s_cbranch_vccz .LBB0_3
	v_exp_f32_e32 v1, v1
.LBB0_3:
	s_cbranch_scc1 .LBB0_1
	s_branch .LBB0_5
.LBB0_4:
	v_mfma_f32_32x32x8_bf16 v[0:15], v[16:17], v[18:19], 0
	s_branch .LBB0_4
.LBB0_5:
	s_endpgm
"""


def test_innermost_loops_with_products() -> None:
    """Not what is unrolled before them, nor the outer loop, nor loops without products; what waits
    out of line belongs to its loop, and code that nothing reaches is no loop.
    """
    inner, last = read_sass(SASS).loops()
    assert inner == {"BRA": 4, "HMMA": 1, "MUFU.EX2": 1, "SYNCS": 1}
    assert last == {"BRA": 1, "HGMMA": 1}
    assert read_sass(SASS).counts()["HMMA"] == 2
    (only,) = read_amdgcn(AMD).loops()
    assert only == {
        "s_cbranch_scc1": 1, "s_cbranch_vccz": 1, "v_exp_f32_e32": 1, "v_mfma_f32_32x32x8_bf16": 1,
    }  # fmt: skip
