"""What is emitted: exact tables for floats, expressions, walks, and whole modules as goldens."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from kernels import CASES

import maskdsl
from maskdsl import CompileError, Tile
from maskdsl.codegen import GradientEmission, emit
from maskdsl.codegen.closed import closed_walk
from maskdsl.codegen.sides import by_sides
from maskdsl.codegen.tabulate import left_over, tabulate
from maskdsl.codegen.visits import Visits, places_of
from maskdsl.codegen.walk import make_walk
from maskdsl.ir.definition import positions
from maskdsl.ir.evaluate import evaluate
from maskdsl.ir.nodes import Node, postorder
from maskdsl.ir.program import Program
from maskdsl.planner import Grid

GOLDEN = Path(__file__).parent / "golden"
# patterns of the library, with the tiles that the layout search takes for them on sm_90
GOLDENS: dict[str, tuple[int, dict[str, Any]]] = {
    "causal": (64, {"n": 16384, "heads": 32, "kv_heads": 8}),
    "streaming": (128, {"n": 131072, "sinks": 4, "window": 1020, "heads": 16}),
    "natten3d": (
        128,
        {
            "t": 30, "y": 48, "x": 81, "window": [6, 8, 8], "stride": [1, 1, 1],
            "dilation": [1, 1, 1], "causal": [False] * 3, "heads": 24,
        },
    ),
    "sliding_tile": (
        128, {"t": 30, "y": 48, "x": 80, "tile": [6, 8, 8], "window": [[3, 3, 3]] * 24, "heads": 24}
    ),
    "radial": (128, {"t": 30, "s": 3840, "decay": 0.95}),
    "dilated": (128, {"n": 32768, "window": 2048, "dilation": 4, "heads": 16}),
    "strided": (128, {"n": 16384, "stride": 128, "heads": 16}),
    "swin": (32, {"y": 256, "x": 256, "window": [8, 8], "shift": [4, 4], "heads": 4}),
    "documents": (128, {"n": 65536, "heads": 16}),
    "alibi": (128, {"n": 16384, "heads": 16}),
}  # fmt: skip


def values(node: Node, program: Program) -> np.ndarray:
    """Over all pairs of head 0, (queries, keys)."""
    segments = program.only.queries, program.only.keys
    q, k = (positions(s, side, np.arange(s.tokens)) for s, side in zip(segments, "qk", strict=True))
    leaves = {n: x[:, None] for n, x in q.items()} | {n: x[None, :] for n, x in k.items()}
    leaves |= {"head": np.int64(0), "batch": np.int64(0)}
    found = np.asarray(evaluate(node, leaves, {}))
    return np.broadcast_to(found, (segments[0].tokens, segments[1].tokens))


FLOATS = [
    "abs(q.n - k.n) * 1.5 < 30",
    "abs(q.n - k.n) <= 100 / (k.n + 1)",
    "q.n < 3.5 * k.n",
    "q.n >= 3.5 * k.n",
    "q.n == 2.5 * k.n",
    "q.n != 2.5 * k.n",
    "q.n * 0.1 == k.n * 0.2",
    "1 / (k.n - 5.5) < q.n",
    "q.n <= exp(k.n * 1.0)",
    "exp(1.0 * q.n) > k.n",
    "log2(1.0 + k.n) * 3 <= q.n",
    "tanh(q.n - k.n + 0.0) > 0.5",
    "int(sqrt(k.n * 1.0)) == q.n % 7",
    "floor(-0.37 * k.n) + ceil(0.37 * q.n) > 0",
    "1.0 * (q.n - k.n) * (q.n - k.n) < 50.5",
    "random(3, q.n, k.n) < 0.5",
    "0.25 >= random(3, q.n, k.n)",
    "(if q.n > 10 then 1e300 else -1e300) * 1e10 > k.n",
]


@pytest.mark.parametrize("text", FLOATS)
def test_tabulated_floats_decide_the_same(text: str) -> None:
    program = maskdsl.parse(f"pattern p over (n) keep {text}").bind(n=41).program
    tabulated = tabulate(program.keep)
    np.testing.assert_array_equal(values(tabulated, program), values(program.keep, program))
    printed = by_sides(tabulated)
    np.testing.assert_array_equal(values(printed, program), values(program.keep, program))


def test_radial_needs_no_floats_and_two_small_tables() -> None:
    program = CASES["radial"].mask().program
    tabulated = tabulate(program.keep)
    assert not left_over(tabulated, None)
    tables = {n.value.content: n.value for n in postorder(tabulated) if n.op == "load"}
    assert sorted(a.data.size for a in tables.values()) == [13, 13]
    np.testing.assert_array_equal(values(tabulated, program), values(program.keep, program))


def test_thresholds_need_no_table() -> None:
    program = maskdsl.parse("pattern p over (n) keep abs(q.n - k.n) * 1.5 < 30").bind(n=99).program
    assert not any(n.op == "load" for n in postorder(tabulate(program.keep)))


def test_what_cannot_be_exact_is_refused() -> None:
    text = "pattern p over (n) input x[n]: float keep log(x[q.n]) < 1.0"
    program = maskdsl.parse(text).bind(n=9).program
    with pytest.raises(CompileError, match=r"log\(...\) decides which keys are kept"):
        left_over(tabulate(program.keep), None)


@pytest.mark.parametrize("home", ["q", "k"])
@pytest.mark.parametrize("name", CASES)
def test_the_walk_visits_what_the_plan_visits(name: str, home: str) -> None:
    plan = CASES[name].plan()
    walk = make_walk(plan, home)
    tiles, other = plan.q_tiles, plan.kv_grid_
    if home == "k":
        tiles, other = plan.kv_tiles, plan.q_grid_
    for head in range(plan.program.heads):
        visits = [(q, k, kind) for q, row in enumerate(plan.rows(head)) for k, kind in row]
        own = int(walk.head_class[head]) * tiles
        for row in range(own, own + tiles):
            at = int(walk.rows[row])
            want = {k if home == "q" else q: x for q, k, x in visits if at == (q, k)[home == "k"]}
            found: dict[int, str] = {}
            for kind, part in walk.visits[0].items():
                numbers = visited(part, other, row)
                assert found.keys().isdisjoint(numbers)
                found |= dict.fromkeys(numbers, kind)
            assert found.keys() == want.keys()
            assert all(kind == "partial" or want[tile] == "full" for tile, kind in found.items())


def visited(visits: Visits, grid: Grid, row: int) -> list[int]:
    """Numbers of the tiles that a row visits, as a kernel works out their first coordinates."""
    if visits.entries is None:
        return []
    low, high = (row, row + 1) if visits.starts is None else visits.starts[row : row + 2]
    firsts = []
    for entry in visits.entries.reshape(-1, visits.width)[low:high]:
        packed = [int(entry[0]) >> s & (1 << b) - 1 for s, b, _ in visits.packing.fields]
        outer = [x + start for x, (_, _, start) in zip(packed, visits.packing.fields, strict=True)]
        if visits.mode == "list":
            firsts.append(outer)
        else:
            firsts += [[*outer, x] for x in range(*map(int, entry[-2:]), grid.tile.span[-1])]
    places = [places_of(grid, a) + start for a, start in enumerate(grid.starts)]
    index = [
        [int(np.flatnonzero(p == x)[0]) for p, x in zip(places, f, strict=True)] for f in firsts
    ]
    return [int(np.ravel_multi_index(i, grid.shape)) for i in index]


CLOSED = {
    "causal": "keep causal(n)",
    "window": "keep causal(n) and near(n, 40)",
    "both_sides": "keep near(n, 70)",
    "ahead": "keep q.n <= k.n <= q.n + 50",
    "full": "",
    "chunks": "keep block(n, 64)",
}


@pytest.mark.parametrize("n", [128, 203])
@pytest.mark.parametrize("tiles", [(16, 16), (32, 16), (16, 64)])
@pytest.mark.parametrize("name", CLOSED)
def test_closed_walks_visit_what_the_plan_visits(name: str, tiles: tuple[int, int], n: int) -> None:
    """The ends that a kernel works out, evaluated as Python, against the plan's kinds."""
    plan = maskdsl.parse(f"pattern p over (n) {CLOSED[name]}").bind(n=n).plan(*tiles)
    for home in "qk":
        closed = closed_walk(plan, home)
        if closed is None:
            assert name == "chunks"
            continue
        rows = plan.q_tiles if home == "q" else plan.kv_tiles
        other = plan.kv_grid_ if home == "q" else plan.q_grid_
        for tile in range(rows):
            names = {"tile": tile, "tl": Numbers}
            for s in closed.statements:
                names[s.name] = eval(s.text, names)
            ends = {x: int(eval(text, names)) for x, text in closed.ends.items()}
            found = dict.fromkeys(range(ends["first"], ends["last"]), "partial")
            found |= dict.fromkeys(range(ends["full_first"], ends["full_last"]), "full")
            pairs = ((tile, i) if home == "q" else (i, tile) for i in range(other.count))
            for i, (q, k) in enumerate(pairs):
                kind = plan.kind(0, q, k)
                crosses = (i + 1) * other.tile.size[0] > n  # walked with the partial ones
                assert found.get(i, "empty") == ("partial" if kind == "full" and crosses else kind)


class Numbers:
    """Triton's functions on ints."""

    minimum, maximum = min, max
    where = staticmethod(lambda condition, a, b: a if condition else b)


def test_heads_that_share_keys_walk_the_key_tiles_in_one_order() -> None:
    text = "pattern p over (n) keep causal(n) and (head % 2 == 0 or near(n, 20))"
    plan = maskdsl.parse(text).bind(n=200, heads=4, kv_heads=2).plan(16, 16)
    orders = make_walk(plan, "k").rows.reshape(2, plan.kv_tiles)
    np.testing.assert_array_equal(orders[0], orders[1])
    assert (make_walk(plan).rows.reshape(2, plan.q_tiles)[0] != orders[0]).any()


def test_full_runs_hold_no_tile_that_crosses_an_edge() -> None:
    mask = maskdsl.parse("pattern p over (a, b)").bind(a=9, b=21)
    plan = mask.plan(Tile((4, 8), (2, 2), (1, 3)), Tile((4, 8), (2, 2), (1, 3)))
    tokens = plan.kv_grid_.tokens(np.arange(plan.kv_tiles))
    full = make_walk(plan).visits[0]["full"]
    for row in range(plan.q_tiles):
        assert (tokens[visited(full, plan.kv_grid_, row)] >= 0).all()
    rows = int((plan.q_grid_.tokens(np.arange(plan.q_tiles)) >= 0).any(1).sum())
    assert full.tiles == rows * int((tokens >= 0).all(1).sum())


def test_tables_are_int32() -> None:
    tables = make_walk(CASES["mixture"].plan()).tables()
    assert {"head_class", "rows"} <= tables.keys()
    assert all(t.dtype == np.int32 for t in tables.values())


def test_emission_is_deterministic_and_keys_tell_plans_apart() -> None:
    case = CASES["packed"]
    first, second = (emit(case.plan(), case.spec()) for _ in range(2))
    assert first.source == second.source
    assert first.key == second.key
    keys = {emit(c.plan(), c.spec(t)).key for c in CASES.values() for t in ("sm_80", "sm_90")}
    keys |= {
        GradientEmission(kernel, c.plan(), c.spec()).key
        for c in CASES.values()
        for kernel in ("dq", "dkv")
    }
    keys.add(GradientEmission("dq", case.plan(), case.spec(), ["slope"]).key)
    assert len(keys) == 4 * len(CASES) + 1


def test_names_of_axes_and_patterns_do_not_clash_with_the_kernel() -> None:
    text = "pattern class_ over (ptr, tile) input lane[ptr]: int keep lane[q.ptr] == k.tile"
    plan = maskdsl.parse(text).bind(ptr=16, tile=16).plan((4, 4), (4, 4))
    source = emit(plan, CASES["causal"].spec()).source
    assert "q_ptr_axis = " in source
    assert "k_tile_axis = " in source
    compile(source, "kernel.py", "exec")


def test_patterns_cannot_write_code() -> None:
    text = 'pattern p over (n) # """ \\ \x0c\u2028import os\nkeep causal(n)'
    source = emit(maskdsl.parse(text).bind(n=64).plan(16, 16), CASES["causal"].spec()).source
    assert "import os" not in source.replace("?import os", "").replace(
        '#     pattern p over (n) # """', ""
    )
    compile(source, "kernel.py", "exec")


def test_full_loops_hold_no_mask_and_proved_kernels_no_bounds() -> None:
    source = emit(CASES["causal_divisible"].plan(), CASES["causal_divisible"].spec()).source
    full = source[source.index("# full tiles") : source.index("# partial tiles")]
    assert "mask" not in full.replace("nothing to mask", "")
    assert "tl.where" not in full
    assert "mask=" not in source


@pytest.mark.parametrize("name", GOLDENS)
def test_golden(name: str, request: pytest.FixtureRequest) -> None:
    dim, bound = GOLDENS[name]
    mask = maskdsl.load(f"std/{name}").bind(**bound)
    kernel = maskdsl.compile(mask, dim, torch.bfloat16, backend="triton", target="sm_90")
    for direction, source in kernel.sources.items():
        check_golden(f"{name}_{direction}", source, request)
        assert len(source.splitlines()) < 200


def check_golden(name: str, source: str, request: pytest.FixtureRequest) -> None:
    path = GOLDEN / f"{name}.py"
    if request.config.getoption("--refresh-goldens"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(source)
    assert source == path.read_text()


@pytest.mark.parametrize("name", CASES)
def test_sources_are_formatted(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    (tmp_path / "forward.py").write_text(emit(case.plan(), case.spec()).source)
    for spec in (case.spec(), case.spec("sm_80")):
        for kernel in ("dq", "dkv"):
            module = GradientEmission(kernel, case.plan(), spec, ["slope"])
            (tmp_path / f"{kernel}_{spec.target}.py").write_text(module.render())
    (tmp_path / "pointers.py").write_text(emit(case.plan(), case.spec("sm_80")).source)
    command = ["format", "--isolated", "--line-length", "100", "--diff", str(tmp_path)]
    ruff = pytest.importorskip("ruff", reason="ruff is a tool of the developers")
    done = subprocess.run(
        [sys.executable, "-m", ruff.__name__, *command], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout
