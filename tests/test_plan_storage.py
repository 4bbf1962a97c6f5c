"""Plans through bytes and files: equal and alike afterwards, and nothing else passes for a plan."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from grid_cases import CASES  # those of library_cases too
from hypothesis import given, settings
from hypothesis import strategies as st
from kernels import CASES as KERNELS
from random_patterns import random_case

import maskdsl
from maskdsl import EvalError, Plan, PlanError, Tile
from maskdsl.codegen import emit
from maskdsl.ir.definition import dense
from maskdsl.planner import storage
from maskdsl.runtime.boundary import Call
from maskdsl.runtime.torch_backend import TorchBackend


def assert_alike(plan: Plan) -> Plan:
    """What a stored plan gives, after comparing all that it can be asked."""
    data = plan.to_bytes()
    again = Plan.from_bytes(data)
    assert again == plan and plan == again and hash(again) == hash(plan)
    assert again is not plan and again.to_bytes() == data
    assert again.source == plan.source and again.name == plan.name
    assert (again.q_tile, again.kv_tile) == (plan.q_tile, plan.kv_tile)
    assert again.pairs == plan.pairs and again.tiles == plan.tiles
    assert again.explain() == plan.explain() and again.layouts == plan.layouts
    assert again.proofs == plan.proofs and again.class_proofs == plan.class_proofs
    assert np.array_equal(again.permutation(), plan.permutation())
    for ours, theirs in zip(plan.head_classes, again.head_classes, strict=True):
        head = ours.heads[0]
        assert again.rows(head) == plan.rows(head)
        for row in {0, plan.q_tiles // 2, plan.q_tiles - 1}:
            for column in range(min(plan.kv_tiles, 20)):
                assert again.kind(head, row, column) == plan.kind(head, row, column)
        for tree, stored in zip(ours.all_trees, theirs.all_trees, strict=True):
            assert vars(stored).keys() == vars(tree).keys()  # nothing of a tree is left out
    return again


@pytest.mark.parametrize("seed", range(5000, 5150))
def test_random_plans_round_trip(seed: int) -> None:
    case = random_case(seed, odd=seed % 2 == 1)
    mask = case.mask()
    again = assert_alike(mask.plan(case.q_tile, case.kv_tile))
    for head in range(mask.heads):
        shape = mask.shape[1:]
        assert np.array_equal(dense(again.program, head, 0, 0, shape[0], {}), mask.dense(head=head))


@pytest.mark.parametrize("name", CASES)
def test_library_plans_round_trip(name: str) -> None:
    """Heads, tables, inputs, segments and separate spaces among them."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    file, _, pattern = name.partition(":")
    for _ in range(4):
        case = CASES[name](rng)
        mask = maskdsl.load(f"std/{file}", name=pattern or None).bind(**case.bound)
        again = assert_alike(mask.plan())
        head = int(rng.integers(mask.heads))
        got = dense(again.program, head, 0, 0, mask.shape[1], case.inputs)
        assert np.array_equal(got, case.truth(head, 0))


SCORED = """pattern scored(table: int[_], slope: float[heads])
over a(n) then b(m)
input bias[heads, n]: float
keep a -> a: table[q.n] <= table[k.n] or causal(n)
keep any -> b: head > 0
score any -> a: logit + bias[head, k.n] - slope[head]
sink 0.5 * head
"""


def scored(**changed: Any) -> maskdsl.Mask:
    values: dict[str, Any] = {
        "n": 40, "m": 9, "heads": 4, "kv_heads": 2, "table": np.arange(40) % 7,
        "slope": np.array([0.25, -0.5, 1.0, 3.0]),
    }  # fmt: skip
    return maskdsl.parse(SCORED).bind(**{**values, **changed})


TILES = [Tile(8, step=3, origin=5, pitch=7, wrap=True), Tile(4)]


def test_everything_of_a_program_round_trips() -> None:
    plan = scored().plan(TILES, [8, 8])
    again = assert_alike(plan)
    assert again.program == plan.program
    assert again.program.sink == plan.program.sink
    assert [b.score for b in again.program.all_blocks] == [b.score for b in plan.program.all_blocks]
    assert again.q_grids[0].tile == TILES[0]
    tables = {
        n.value.name: n.value.data
        for root in again.program.roots
        for n in maskdsl.ir.nodes.postorder(root)
        if n.op == "load" and not n.value.is_input
    }
    assert np.array_equal(tables["table"], np.arange(40) % 7) and tables["table"].dtype == np.int64
    assert tables["slope"].tolist() == [0.25, -0.5, 1.0, 3.0]


def test_a_stored_plan_still_names_the_place_of_an_error() -> None:
    text = "pattern f over (n)\ninput d[n]: int\nkeep causal(n) and q.n // d[k.n] > 1\n"
    mask = maskdsl.parse(text).bind(n=16)
    again = Plan.from_bytes(mask.plan(4, 4).to_bytes())
    d = np.ones(16, dtype=np.int64)
    d[5] = 0
    with pytest.raises(EvalError) as expected:
        mask.dense(d=d)
    with pytest.raises(EvalError) as found:
        dense(again.program, 0, 0, 0, 16, {"d": d})
    assert str(found.value) == str(expected.value)
    assert "<text>:3:20" in str(found.value) and found.value.span is not None


@pytest.mark.parametrize("name", list(KERNELS)[:12])
def test_stored_plans_emit_and_simulate_the_same(name: str) -> None:
    case = KERNELS[name]
    plan = case.plan()
    again = assert_alike(plan)
    emitted, expected = emit(again, case.spec()), emit(plan, case.spec())
    assert (emitted.source, emitted.key) == (expected.source, expected.key)
    assert emitted.tables.keys() == expected.tables.keys()
    for table in expected.tables:
        assert np.array_equal(emitted.tables[table], expected.tables[table])
    for x, y in ((plan, again), (again, plan)):
        assert (
            maskdsl.simulate(x, head_dim=64).to_dict() == maskdsl.simulate(y, head_dim=64).to_dict()
        )


def test_a_stored_plan_runs_in_the_torch_backend() -> None:
    mask = maskdsl.load("std/sliding_window").bind(n=100, window=9, heads=2)
    plan = mask.plan(16, 16)
    rng = torch.Generator().manual_seed(1)
    q, k, v = (torch.randn(1, 2, 100, 16, generator=rng) for _ in range(3))
    call = Call(q, k, v, {})
    expected, found = (
        TorchBackend(p, 0.25).forward(call)[0] for p in (plan, Plan.from_bytes(plan.to_bytes()))
    )
    assert torch.equal(found, expected)


def test_loading_does_not_classify(monkeypatch: pytest.MonkeyPatch) -> None:
    data = scored().plan(TILES, [8, 8]).to_bytes()

    def refuse(*_: Any) -> None:
        raise AssertionError("classified")

    monkeypatch.setattr("maskdsl.planner.boxes.Space.classify", refuse)
    # 2 tiles of each of 3 residues and 3 tiles, by 5 and 2 tiles
    assert Plan.from_bytes(data).tiles.total == 4 * (2 * 3 + 3) * (5 + 2)


def test_files(tmp_path: Path) -> None:
    plan = scored().plan(TILES, [8, 8])
    plan.save(tmp_path / "a.plan")
    assert Plan.load(tmp_path / "a.plan") == plan
    assert Plan.load(str(tmp_path / "a.plan")) == plan
    for wrong in (tmp_path, tmp_path / "missing", "a\0b", 7, None):
        with pytest.raises(PlanError):
            Plan.load(wrong)  # type: ignore[arg-type]
    for wrong in (tmp_path, tmp_path / "missing" / "a", "a\0b", 7, None):
        with pytest.raises(PlanError):
            plan.save(wrong)  # type: ignore[arg-type]


def other_plans() -> dict[str, Plan]:
    """Each differs in one thing from `scored().plan(TILES, [8, 8])`."""
    table = np.arange(40) % 7
    table[3] += 1
    changed = SCORED.replace("causal(n)", "near(n, 3)")
    rescored, resunk = SCORED.replace("logit +", "logit -"), SCORED.replace("0.5", "0.25")
    values = scored().values

    def parsed(text: str) -> Plan:
        return maskdsl.parse(text).bind(**values).plan(TILES, [8, 8])

    found = {
        "keep": parsed(changed),
        "score": parsed(rescored),
        "sink": parsed(resunk),
        "name": parsed(SCORED.replace("pattern scored", "pattern rescored")),
        "extent": scored(m=10).plan(TILES, [8, 8]),
        "table": scored(table=table).plan(TILES, [8, 8]),
        "parameter": scored(slope=np.zeros(4)).plan(TILES, [8, 8]),
        "heads": scored(heads=2, slope=np.zeros(2)).plan(TILES, [8, 8]),
        "kv_heads": scored(kv_heads=1).plan(TILES, [8, 8]),
        "key tile": scored().plan(TILES, [8, 4]),
    }
    for field, value in {
        "size": 16, "step": 2, "origin": 4, "pitch": 6, "wrap": False
    }.items():  # fmt: skip
        fields = {"size": 8, "step": 3, "origin": 5, "pitch": 7, "wrap": True, field: value}
        found[field] = scored().plan([Tile(**fields), Tile(4)], [8, 8])
    return found


def test_plans_that_differ_are_unequal() -> None:
    plan = scored().plan(TILES, [8, 8])
    others = other_plans()
    everything = [plan, *others.values()]
    for i, a in enumerate(everything):
        for j, b in enumerate(everything):
            assert (a == b) == (i == j)
    for name, other in others.items():
        assert Plan.from_bytes(other.to_bytes()) == other != plan, name
    for stranger in (None, 0, "plan", plan.to_bytes(), plan.program, np.zeros(3), object):
        assert (plan == stranger) is False and (plan != stranger) is True


def test_plans_made_from_other_words_are_equal() -> None:
    plan = scored().plan(TILES, [8, 8])
    assert scored().plan(TILES, [8, 8]) == plan
    commented = maskdsl.parse("# said otherwise\n" + SCORED.replace("\n", "  # here\n"))
    again = commented.bind(**scored().values).plan(TILES, [Tile((8,), pitch=(8,)), 8])
    assert again == plan and hash(again) == hash(plan)
    assert len({plan, again}) == 1


SMALL = maskdsl.parse("pattern f(t: bool[n]) over (n) keep causal(n) and t[k.n]").bind(
    n=20, t=np.arange(20) % 3 > 0
)


def read(data: bytes) -> None:
    """Reading must fail in one line."""
    with pytest.raises(PlanError) as found:
        Plan.from_bytes(data)
    assert "\n" not in str(found.value) and len(str(found.value)) < 300


def test_every_flipped_byte_is_noticed() -> None:
    data = SMALL.plan(4, 4).to_bytes()
    rng = np.random.default_rng(2)
    for at in (*range(80), *rng.integers(0, len(data), 1500)):
        damaged = bytearray(data)
        damaged[at] ^= int(rng.integers(1, 256))
        read(bytes(damaged))


def test_every_truncation_is_noticed() -> None:
    data = SMALL.plan(4, 4).to_bytes()
    for length in range(len(data)):
        read(data[:length])
    read(data + b"\0")
    read(data + data)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300), st.integers(0, 60))
def test_arbitrary_bytes_are_no_plan(noise: bytes, kept: int) -> None:
    read(noise)
    read(SMALL.plan(4, 4).to_bytes()[:kept] + noise)


def test_other_versions_are_told_so() -> None:
    data = bytearray(SMALL.plan(4, 4).to_bytes())
    data[16] += 1
    with pytest.raises(PlanError, match="stored in version 2 of the format"):
        Plan.from_bytes(bytes(data))
    for stranger in ("text", None, 3, ["bytes"]):
        with pytest.raises(PlanError, match="is bytes, not"):
            Plan.from_bytes(stranger)  # type: ignore[arg-type]


def forged(body: bytes) -> bytes:
    """Any body under a digest that fits it."""
    return storage._HEAD.pack(storage.MAGIC, storage.VERSION, storage._digest(body)) + body


def body_of(plan: Plan) -> tuple[bytes, bytes]:
    """(text, contents) of a stored plan."""
    body = plan.to_bytes()[storage._HEAD.size :]
    (length,) = storage._LENGTH.unpack_from(body)
    return body[8 : 8 + length], body[8 + length :]


def joined(text: bytes, contents: bytes) -> bytes:
    return forged(storage._LENGTH.pack(len(text)) + text + contents)


def test_altered_plans_under_a_new_digest_are_read_or_refused() -> None:
    """Whoever alters a plan on purpose gets an error or a plan that can be walked, no crash."""
    text, contents = body_of(SMALL.plan(4, 4))
    assert joined(text, contents) == SMALL.plan(4, 4).to_bytes()
    rng = np.random.default_rng(4)
    refused = lines = 0
    for _ in range(3000):
        parts = [bytearray(text), bytearray(contents)]
        part = parts[int(rng.random() < 0.4)]
        for _ in range(int(rng.integers(1, 3))):
            new = rng.choice(list(b'0123456789-[]{},:"natle')) if part is parts[0] else None
            part[rng.integers(len(part))] = rng.integers(256) if new is None else new
        try:
            plan = Plan.from_bytes(joined(bytes(parts[0]), bytes(parts[1])))
        except PlanError as e:
            refused += 1
            lines += str(e).count("\n")
            continue
        for c in plan.head_classes:
            runs = c.runs
            assert (runs.first >= 0).all() and (runs.first + runs.count <= plan.kv_tiles).all()
    assert refused > 1500 and not lines


def test_parts_that_do_not_fit_are_refused() -> None:
    large = maskdsl.parse("pattern f(t: bool[n]) over (n) keep causal(n) and t[k.n]").bind(
        n=300, t=np.arange(300) % 3 > 0
    )
    text, contents = body_of(large.plan(4, 4))
    assert len(json.loads(text)["classes"][0]["trees"][0]["levels"]) > 1

    def changed(change: Callable[[dict[str, Any]], Any]) -> None:
        document = json.loads(text)
        change(document)
        read(joined(json.dumps(document).encode(), contents))

    changed(lambda d: d["classes"][0]["trees"].pop())
    changed(lambda d: d["classes"][0]["trees"].append(d["classes"][0]["trees"][0]))
    changed(lambda d: d["classes"].append(d["classes"][0]))
    changed(lambda d: d["classes"].pop())
    changed(lambda d: d["classes"][0]["heads"].append(1))
    changed(lambda d: d["classes"][0]["trees"][0]["levels"].pop())
    changed(lambda d: d["classes"][0]["trees"][0]["levels"].reverse())
    changed(lambda d: d["classes"][0]["trees"][0]["summaries"].pop())
    changed(lambda d: d["q_tiles"][0]["size"].append(4))
    changed(lambda d: d["q_tiles"][0].update(size=[8]))
    changed(lambda d: d["q_tiles"][0].pop("size"))
    changed(lambda d: d["program"].update(heads=2))
    changed(lambda d: d["program"]["queries"][0][1][0].__setitem__(1, 10**30))
    changed(lambda d: d["program"]["keys"][0].__setitem__(2, 5))
    changed(lambda d: d["program"]["blocks"].clear())
    changed(lambda d: d["tables"]["nodes"].clear())
    changed(lambda d: d["tables"]["arrays"][0].__setitem__(5, "another content"))
    changed(lambda d: d["tables"]["nodes"][-1][2].append(len(d["tables"]["nodes"])))


@pytest.mark.parametrize(
    "text",
    [
        b"", b"{}", b"[]", b"null", b"1", b'"x"', b"{" * 50_000, b"[" * 100_000, b"9" * 6000,
        b'{"tables":{}}', b'{"contents":[["<i8",[1000000000000]]]}',
        b'{"contents":[["<i8",[0,-1]]]}', b'{"contents":[["O",[1]]]}', b"\xff\xfe",
        b'{"contents":[["|i1",[' + b"1," * 70 + b"1]]]}",
    ],
)  # fmt: skip
def test_texts_that_are_no_plan(text: bytes) -> None:
    read(joined(text, b""))
    read(forged(storage._LENGTH.pack(2**63) + text))


def test_plans_past_the_limit_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    data = SMALL.plan(4, 4).to_bytes()
    (tmp_path / "large").write_bytes(data)
    monkeypatch.setattr(storage, "MAX_BYTES", len(data) - 1)
    with pytest.raises(PlanError, match="too large to store"):
        SMALL.plan(4, 4).to_bytes()
    with pytest.raises(PlanError, match="no stored plan"):
        Plan.load(tmp_path / "large")
