"""Tiles that inputs decide, against the dense definition: what a call visits, and that it visits no
more than it needs where that is promised.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from random_patterns import odd_tile, random_case

import maskdsl
from maskdsl import BindError, Plan, PlanError, Tile
from maskdsl.runtime.input_tiles import InputTiles, Visits, input_tiles

EMPTY, FULL, PARTIAL = 0, 1, 2
PACKED = 1000  # packings of each kind


def kinds_of(truth: np.ndarray, q: int, k: int) -> np.ndarray:
    """Kinds (batch, query tiles, key tiles) of tiles of q x k of bool (batch, queries, keys), the
    last ones short.
    """
    batch, queries, keys = truth.shape
    rows, columns = -(-queries // q), -(-keys // k)
    padding = ((0, 0), (0, rows * q - queries), (0, columns * k - keys))
    shape = (batch, rows, q, columns, k)
    some = np.pad(truth, padding).reshape(shape).any((2, 4))
    every = np.pad(truth, padding, constant_values=True).reshape(shape).all((2, 4))
    return np.where(every & some, FULL, np.where(some, PARTIAL, EMPTY))


def found_of(visits: Visits, plan: Plan, number: int = 0) -> np.ndarray:
    """The kinds of all tile pairs, int (batch, query tiles, key tiles)."""
    kinds = visits.kinds[number].numpy()
    found = np.zeros((len(kinds), plan.q_tiles, plan.kv_tiles), dtype=int)
    found[:, visits.rows[number].numpy(), visits.columns[number].numpy()] = kinds
    return found


def wanted_of(mask: maskdsl.Mask, plan: Plan, inputs: dict[str, Any], batch: int) -> np.ndarray:
    """The same from the definition, int (heads, batch, query tiles, key tiles)."""
    rows = [plan.tokens("q", i) for i in range(plan.q_tiles)]
    columns = [plan.tokens("k", j) for j in range(plan.kv_tiles)]
    wanted = np.zeros((mask.heads, batch, len(rows), len(columns)), dtype=int)
    for h, b in np.ndindex(mask.heads, batch):
        truth = mask.dense(head=h, batch=b, **inputs)
        for i, row in enumerate(rows):
            for j, column in enumerate(columns):
                tile = truth[np.ix_(row, column)]
                if tile.size and tile.any():
                    wanted[h, b, i, j] = FULL if tile.all() else PARTIAL
    return wanted


def surplus(mask: maskdsl.Mask, plan: Plan, inputs: dict[str, Any], batch: int) -> tuple[int, int]:
    """How many tiles are visited for nothing, and how many full ones are called partial; what the
    mask needs is visited and what is called full is so.
    """
    visits = input_tiles(plan, batch, **inputs)
    wanted = wanted_of(mask, plan, inputs, batch)
    idle = dull = 0
    for number, c in enumerate(plan.head_classes):
        found = found_of(visits, plan, number)
        for h in c.heads:
            assert ((found == EMPTY) <= (wanted[h] == EMPTY)).all()
            assert ((found == FULL) <= (wanted[h] == FULL)).all()
            idle += int(((wanted[h] == EMPTY) & (found != EMPTY)).sum())
            dull += int(((wanted[h] == FULL) & (found == PARTIAL)).sum())
    return idle, dull


# Packed documents


def lengths(rng: np.random.Generator, n: int) -> np.ndarray:
    """Of documents that fill a row, some of one token and some longer than any tile."""
    cuts = rng.choice(np.arange(1, n), int(rng.integers(0, min(14, n - 1))), replace=False)
    return np.diff(np.concatenate([[0], np.sort(cuts), [n]]))


def packing(rng: np.random.Generator, kind: str, n: int) -> np.ndarray:
    """Ids (n,) of documents that lie end to end: "sorted" or "shuffled" (some negative), or
    "padded", of any length, shuffled, with -1 after the last one.
    """
    filled = int(rng.integers(2, n + 1)) if kind == "padded" else n
    each = lengths(rng, filled)
    ids = rng.choice(1_000, len(each), replace=False) - (0 if kind == "padded" else 500)
    ids = np.sort(ids) if kind == "sorted" else ids
    return np.append(np.repeat(ids, each), np.full(n - filled, -1))


GUARDS = {
    "neither": "true",
    "query": "doc[batch, q.n] >= 0",
    "key": "doc[batch, k.n] >= 0",
    "both": "doc[batch, q.n] >= 0 and doc[batch, k.n] >= 0",
}


def packed_mask(n: int, causal: bool, window: int | None, guard: str) -> maskdsl.Mask:
    conditions = ["causal(n)"] if causal else []
    conditions += [f"near(n, {window})"] if window else []
    conditions += ["doc[batch, q.n] == doc[batch, k.n]", GUARDS[guard]]
    text = "pattern packed over (n) input doc[batch, n]: int keep " + " and ".join(conditions)
    return maskdsl.parse(text).bind(n=n)


def packed_truth(doc: np.ndarray, causal: bool, window: int | None, guard: str) -> np.ndarray:
    """bool (batch, n, n), told again."""
    n = doc.shape[1]
    distance = np.subtract.outer(np.arange(n), np.arange(n))
    truth = doc[:, :, None] == doc[:, None, :]
    truth &= (distance >= 0) | (not causal)
    truth &= (abs(distance) <= window) if window else True
    truth &= (doc[:, :, None] >= 0) | (guard not in ("query", "both"))
    truth &= (doc[:, None, :] >= 0) | (guard not in ("key", "both"))
    return truth


@pytest.mark.parametrize("windowed", [False, True])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("kind", ["sorted", "shuffled", "padded"])
def test_packed_documents_visit_what_the_mask_needs(
    kind: str, causal: bool, windowed: bool
) -> None:
    rng = np.random.default_rng([len(kind), causal, windowed])
    shapes = [(96, 8, 8), (128, 16, 16), (200, 16, 8), (250, 8, 16), (256, 16, 32)]
    for n, q_tile, kv_tile in shapes:
        window = int(rng.integers(1, 3 * n // 4)) if windowed else None
        guards = list(GUARDS) if kind == "padded" else ["neither"]
        for guard in guards:
            count = PACKED // (len(shapes) * len(guards))
            doc = np.stack([packing(rng, kind, n) for _ in range(count)])
            mask = packed_mask(n, causal, window, guard)
            plan = mask.plan(q_tile, kv_tile)
            truth = packed_truth(doc, causal, window, guard)
            for b in rng.integers(0, len(doc), 2):
                np.testing.assert_array_equal(truth[b], mask.dense(batch=int(b), doc=doc))
            found = found_of(input_tiles(plan, doc=doc), plan)
            np.testing.assert_array_equal(found, kinds_of(truth, q_tile, kv_tile))


def test_raw_minima_would_visit_too_much() -> None:
    """What renaming ids is for: ids in any order, of which ranges tell little."""
    rng = np.random.default_rng(0)
    doc = np.stack([packing(rng, "shuffled", 256) for _ in range(50)])
    mask = packed_mask(256, True, None, "neither")
    low, high = (f(doc.reshape(50, 16, 16), axis=2) for f in (np.min, np.max))
    raw = (low[:, :, None] <= high[:, None, :]) & (low[:, None, :] <= high[:, :, None])
    raw &= np.tri(16, dtype=bool)
    visited = found_of(input_tiles(mask.plan(16, 16), doc=doc), mask.plan(16, 16)) != EMPTY
    assert visited.sum() < 0.9 * raw.sum()


# Other patterns: (text, extents, tiles, inputs, what is promised: "exact" kinds, that all "visits"
# are needed, or no more than "bounds")

Inputs = dict[str, Any]


def _ids(rng: np.random.Generator, batch: int, n: int) -> np.ndarray:
    return np.stack([packing(rng, "shuffled", n) for _ in range(batch)])


def _sorted(rng: np.random.Generator, batch: int, n: int) -> np.ndarray:
    return np.stack([packing(rng, "sorted", n) for _ in range(batch)])


def _prefix_answers(rng: np.random.Generator) -> Inputs:
    doc = np.stack([np.repeat(rng.permutation(6), [20, 30, 10, 25, 15, 28]) for _ in range(3)])
    of = np.arange(6)
    of[3:] = rng.integers(0, 3, 3)
    return {"doc": doc, "prefix": of[doc]}


CASES: dict[str, tuple[str, dict[str, Any], Any, Any, Any, str]] = {
    "documents": ("std/documents", {"n": 128}, 16, 8, lambda r: {"doc": _ids(r, 3, 128)}, True),
    "documents_full": (
        "std/documents documents_full", {"n": 100}, 16, 32,
        lambda r: {"doc": _ids(r, 3, 100)}, "exact",
    ),
    "segments_in_order": (
        "over (n) input seg[batch, n]: int keep seg[batch, k.n] <= seg[batch, q.n]",
        {"n": 120}, 8, 16, lambda r: {"seg": _sorted(r, 3, 120)}, "exact",
    ),
    "segments_in_any_order": (
        "over (n) input seg[batch, n]: int keep seg[batch, k.n] < seg[batch, q.n]",
        {"n": 120}, 8, 16, lambda r: {"seg": r.integers(-9, 9, (3, 120))}, "exact",
    ),
    "prefix_lm": (
        "std/prefix_lm prefix_lm_batch", {"n": 120}, 8, 16,
        lambda r: {"prefix": r.integers(0, 130, 6)}, "exact",
    ),
    "prefix_and_window": (
        "over (n) input prefix[batch]: int "
        "keep 0 <= q.n - k.n < 20 or k.n < prefix[batch] and q.n - k.n < 50",
        {"n": 120}, 8, 16, lambda r: {"prefix": r.integers(0, 130, 6)}, "bounds",
    ),
    "lengths": (
        "over (n) input length[batch]: int keep causal(n) and q.n < length[batch]",
        {"n": 120}, 8, 16, lambda r: {"length": r.integers(0, 121, 6)}, "exact",
    ),
    "images": (
        "std/multimodal_prefix", {"n": 128}, 16, 8,
        lambda r: {"image": (x := _ids(r, 3, 128)) * (x % 2) - 1 + x % 2}, "visits",
    ),
    "shared_prefix": ("std/shared_prefix", {"n": 128}, 16, 8, _prefix_answers, "bounds"),
    "positions": (
        "over (n) input pos[batch, n]: int keep 0 <= pos[batch, q.n] - pos[batch, k.n] < 15",
        {"n": 128}, 16, 8, lambda r: {"pos": np.sort(r.integers(0, 200, (3, 128)), 1)}, "exact",
    ),
    "near_positions": (
        "over (n) input pos[batch, n]: int keep abs(pos[batch, q.n] - pos[batch, k.n]) <= 9",
        {"n": 128}, 16, 8, lambda r: {"pos": np.sort(r.integers(0, 200, (3, 128)), 1)}, "exact",
    ),
    "marked": (
        "std/longformer longformer_marked", {"n": 128, "window": 9}, 16, 8,
        lambda r: {"marked": r.random((3, 128)) < 0.02}, "exact",
    ),
    "picked": (
        "over (n) input picked[heads, 8, 8]: bool keep picked[head, q.n // 16, k.n // 16]",
        {"n": 128, "heads": 3}, 16, 8, lambda r: {"picked": r.random((3, 8, 8)) < 0.4}, "exact",
    ),
    "picked_finer_than_tiles": (
        "over (n) input picked[batch, 8, 8]: bool keep picked[batch, q.n // 16, k.n // 16]",
        {"n": 128}, 32, 64, lambda r: {"picked": r.random((3, 8, 8)) < 0.1}, "exact",
    ),
    "ranked": (
        "over (n) input rank[8, 8]: int keep causal(n) and rank[q.n // 16, k.n // 16] < 3",
        {"n": 125}, 16, 16, lambda r: {"rank": r.integers(0, 8, (8, 8))}, "exact",
    ),
    "weighed": (
        "over (n) input weight[heads, 8, 8]: float input least[heads]: float "
        "keep weight[head, q.n // 16, k.n // 16] > least[head]",
        {"n": 128, "heads": 2}, 16, 8,
        lambda r: {"weight": r.random((2, 8, 8)), "least": r.random(2)}, "exact",
    ),
    "reach": (
        "over (n) input reach[heads]: int keep abs(q.n - k.n) <= reach[head]",
        {"n": 128, "heads": 3}, 16, 8, lambda r: {"reach": r.integers(0, 60, 3)}, "exact",
    ),
    "reach_of_each": (
        "over (n) input reach[batch, n]: int keep causal(n) and q.n - k.n <= reach[batch, q.n]",
        {"n": 128}, 16, 8, lambda r: {"reach": r.integers(0, 30, (3, 128))}, "exact",
    ),
    "before_the_start": (
        "over (n) input doc[batch, n]: int "
        "keep q.n >= 4 and doc[batch, q.n - 4] == doc[batch, k.n]",
        {"n": 128}, 16, 8, lambda r: {"doc": _ids(r, 3, 128)}, "exact",
    ),
    "cross_attention": (
        "over (n) -> (m) input a[batch, n]: int input b[batch, m]: int "
        "keep a[batch, q.n] == b[batch, k.m]",
        {"n": 100, "m": 70}, 16, 8, lambda r: {"a": _ids(r, 3, 100) % 9, "b": _ids(r, 3, 70) % 9},
        "bounds",
    ),
    "frames": (
        "over (t, y, x) input clip[batch, t]: int "
        "keep clip[batch, q.t] == clip[batch, k.t] and near(y, 2) and near(x, 1)",
        {"t": 9, "y": 6, "x": 10}, (2, 2, 4), Tile((1, 4, 4), (2, 1, 1), (3, 1, 2)),
        lambda r: {"clip": np.sort(r.integers(0, 4, (2, 9)), 1)}, "bounds",
    ),
    "residues": (
        "over (y, x) input row[batch, y]: int keep row[batch, q.y] == row[batch, k.y]",
        {"y": 12, "x": 10}, Tile((2, 4), (3, 1), (1, 0)), Tile((2, 4), (3, 1), (1, 0)),
        lambda r: {"row": np.tile(np.arange(3), 4)[None]}, "exact",
    ),
    "odd_tiles": (
        "over (y, x) input row[batch, y]: int "
        "keep row[batch, q.y] <= row[batch, k.y] and near(x, 2)",
        {"y": 12, "x": 10}, Tile((2, 8), (1, 1), (0, 3), (2, 5), (False, True)),
        Tile((4, 8), (1, 1), (2, 0), (3, 7), (True, False)),
        lambda r: {"row": r.integers(0, 5, (2, 12))}, "bounds",
    ),
    "two_segments": (
        "over video(t, s) then text(n) input last[batch, t]: int input length[batch]: int "
        "keep video -> video: k.t <= last[batch, q.t] "
        "keep any -> text: k.n < length[batch] keep text -> video: true",
        {"t": 6, "s": 10, "n": 20}, [(2, 4), 8], [(1, 16), 4],
        lambda r: {"last": r.integers(0, 6, (3, 6)), "length": r.integers(0, 21, 3)}, "exact",
    ),
    "static": ("over (n) input x[n]: int keep causal(n)", {"n": 100}, 16, 8,
               lambda r: {"x": np.zeros(100, dtype=int)}, "exact"),
    "batch_only": (
        "over (n) input on[batch]: bool keep on[batch] and causal(n) or near(n, 2)",
        {"n": 100}, 16, 8, lambda r: {"on": np.array([True, False])}, "exact",
    ),
}  # fmt: skip


def case(name: str) -> tuple[maskdsl.Mask, Plan, Any, str]:
    text, values, q_tile, kv_tile, inputs, exact = CASES[name]
    if text.startswith("std/"):
        pattern = maskdsl.load(text.split()[0], *text.split()[1:])
    else:
        pattern = maskdsl.parse(f"pattern {name} {text}")
    mask = pattern.bind(**values)
    return mask, mask.plan(q_tile, kv_tile), inputs, exact


def batch_of(mask: maskdsl.Mask, inputs: Inputs) -> int:
    found = [
        inputs[a.name].shape[i]
        for a in mask.program.inputs
        for i, d in enumerate(a.dims)
        if d == "batch"
    ]
    return found[0] if found else 1


@pytest.mark.parametrize("name", CASES)
def test_patterns_with_inputs(name: str) -> None:
    mask, plan, make, exact = case(name)
    for seed in range(6):
        inputs = make(np.random.default_rng(seed))
        idle, dull = surplus(mask, plan, inputs, batch_of(mask, inputs))
        assert exact == "bounds" or idle == 0, seed
        assert exact != "exact" or dull == 0, seed


@pytest.mark.parametrize("name", CASES)
def test_nothing_waits_for_the_device(name: str) -> None:
    """Tensors of the meta device have no values to wait for: any look at one fails."""
    mask, plan, make, _ = case(name)
    inputs = make(np.random.default_rng(0))
    batch = batch_of(mask, inputs)
    meta = {n: torch.from_numpy(np.ascontiguousarray(x)).to("meta") for n, x in inputs.items()}
    tiles = InputTiles(plan)
    visits, known = tiles(meta, batch), input_tiles(plan, **inputs)
    for a, b in zip(visits.kinds, known.kinds, strict=True):
        assert a.device.type == "meta"
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
    for side in "qk":
        assert visits.lists(0, side).tiles.shape == known.lists(0, side).tiles.shape


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", CASES)
def test_nothing_waits_for_a_gpu(name: str) -> None:
    mask, plan, make, _ = case(name)
    inputs = make(np.random.default_rng(0))
    batch = batch_of(mask, inputs)
    there = {n: torch.from_numpy(np.ascontiguousarray(x)).cuda() for n, x in inputs.items()}
    tiles = InputTiles(plan)
    tiles(there, batch)
    torch.cuda.set_sync_debug_mode("error")
    try:
        visits = tiles(there, batch)
        visits.lists(0, "q"), visits.lists(0, "k")
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for a, b in zip(visits.kinds, input_tiles(plan, **inputs).kinds, strict=True):
        assert torch.equal(a.cpu(), b)


def test_infinities_that_meet_decide_nothing() -> None:
    """inf - inf and 0 * inf are no numbers, and no comparison holds of them."""
    x, y = np.zeros(16), np.ones(16)
    x[3], y[5] = np.inf, np.inf
    for difference in ("x[q.n] - y[k.n]", "x[q.n] * y[k.n]", "(-x[q.n]) + y[k.n]"):
        text = (
            "pattern p over (n) input x[n]: float input y[n]: float input most[1]: float "
            f"keep clamp({difference}, -1.0, 1.0) <= most[0]"
        )
        mask = maskdsl.parse(text).bind(n=16)
        inputs = {"x": x, "y": y, "most": np.ones(1)}
        assert not mask.dense(**inputs).all()
        surplus(mask, mask.plan(8, 8), inputs, 1)


# Random patterns

ATOMS = [
    "a[batch, q.t] == a[batch, k.t]", "a[batch, q.t] == b[k.t]", "a[batch, q.t] <= b[k.t] + {c}",
    "b[q.t] - {c} * b[k.t] < q.t - k.t", "abs(a[batch, q.t] - a[batch, k.t]) <= {c}",
    "a[batch, q.t] == b[k.t] + {c}", "b[q.t] + b[k.t] == {c}", "k.t < s[batch]", "q.t >= s[batch]",
    "flag[batch, q.t]", "flag[batch, k.t]", "flag[batch, q.t] == flag[batch, k.t]",
    "flag[batch, q.t] and not flag[batch, k.t]", "b[q.t] % {c} == 0", "(b[q.t] + k.t) % {c} < 2",
    "pick[q.t // {c}, k.t // {c}]", "pick[q.t % 3, k.t % 3]", "pick[b[q.t] % {c}, k.t // 9]",
    "x[q.t] < y[batch, k.t]", "x[q.t] - y[batch, k.t] > 0.1", "x[q.t] * y[batch, k.t] <= 0.0",
    "min(x[q.t], y[batch, k.t]) > -0.5", "abs(x[q.t] - x[k.t]) * 0.5 < 0.4", "x[k.t] >= 0.2",
    "(if flag[batch, k.t] then b[q.t] else k.t) > {c}", "max(b[q.t], b[k.t]) // {c} == 2",
    "clamp(x[q.t] - y[batch, k.t], 0.0, 1.0) <= 1.0", "b[q.t] * b[k.t] > {c}",
    "int(flag[batch, q.t]) + int(flag[batch, k.t]) + int(q.t < k.t) == 1", "wide[q.t] <= wide[k.t]",
    "wide[q.t] == wide[k.t]", "q.t >= {c} and b[q.t - {c}] == b[k.t]",
    "near(t, {c})", "causal(t)", "(q.t - k.t) % {c} == 0", "k.t < {c}", "q.t != {c}",
    "random(3, q.t, k.t) < 0.1", "(q.t * k.t) % 5 == {c}", "head > 0",
]  # fmt: skip

DECLARED = """input a[batch, t]: int input b[t]: int input s[batch]: int input flag[batch, t]: bool
input pick[100, 100]: bool input x[t]: float input y[batch, t]: float input wide[t]: int
"""


def random_condition(rng: np.random.Generator, depth: int) -> str:
    if depth == 0 or rng.random() < 0.2:
        return str(rng.choice(ATOMS)).replace("{c}", str(rng.integers(1, 9)))
    x, y = random_condition(rng, depth - 1), random_condition(rng, depth - 1)
    z = random_condition(rng, depth - 1)
    forms = [f"({x} and {y})", f"({x} or {y})", f"not ({x})", f"({x} and {y} and {z})"]
    return str(rng.choice([*forms, f"(if {x} then {y} else {z})"]))


def random_inputs(rng: np.random.Generator, n: int, batch: int) -> Inputs:
    def sort(x: np.ndarray) -> np.ndarray:
        return np.sort(x) if rng.random() < 0.5 else x

    inputs = {
        "a": sort(rng.integers(-3, 12, (batch, n))),
        "b": sort(rng.integers(-6, 30, n)),
        "s": rng.integers(-2, n + 3, batch),
        "flag": rng.random((batch, n)) < rng.choice([0.05, 0.5, 0.95]),
        "pick": rng.random((100, 100)) < rng.choice([0.1, 0.9]),
        "x": sort(rng.normal(size=n)),
        "y": rng.normal(size=(batch, n)),
        "wide": rng.choice(np.array([-(2**63), -1, 0, 2**63 - 1]), n),
    }
    for name in "xy":
        odd = rng.random(inputs[name].shape) < rng.choice([0, 0.05])
        values = rng.choice(np.array([np.nan, np.inf, -np.inf]), inputs[name].shape)
        inputs[name] = np.where(odd, values, inputs[name])
    return inputs


@pytest.mark.parametrize("seed", range(250))
def test_random_patterns_with_inputs_are_sound(seed: int) -> None:
    rng = np.random.default_rng([seed, 77])
    other = random_case(seed)
    axes = ["t", *(["u"] if len(other.q_tile.size) > 1 else [])]
    q_tile, kv_tile = (
        Tile(*(tuple(x[: len(axes)]) for x in (t.size, t.step, t.origin)))
        for t in (other.q_tile, other.kv_tile)
    )
    if seed % 3 == 0:
        q_tile, kv_tile = odd_tile(rng, q_tile), odd_tile(rng, kv_tile)
    n = int(rng.integers(1, 60 if len(axes) == 1 else 20))
    keeps = "\n".join(
        f"keep {random_condition(rng, int(rng.integers(0, 4)))}" for _ in range(rng.integers(1, 3))
    )
    text = f"pattern random over ({', '.join(axes)})\n{DECLARED}{keeps}"
    extents = {"t": n, "u": int(rng.integers(1, 6)), "heads": 2}
    mask = maskdsl.parse(text).bind(**{k: x for k, x in extents.items() if k in (*axes, "heads")})
    inputs = random_inputs(rng, n, 2)
    surplus(mask, mask.plan(q_tile, kv_tile), inputs, 2)


@pytest.mark.parametrize("limit", ["irregular", "conditions", "depth", "reads"])
def test_what_is_not_told_apart_stays_possible(limit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> Any:
        raise PlanError("too irregular")

    plans = {name: case(name)[1] for name in ("documents", "images", "picked_finer_than_tiles")}
    if limit == "irregular":
        monkeypatch.setattr("maskdsl.planner.inputs.Tree", refuse)
    elif limit == "conditions":
        monkeypatch.setattr("maskdsl.planner.conditions.MAX_CONDITIONS", 1)
    elif limit == "depth":
        monkeypatch.setattr("maskdsl.planner.conditions.MAX_DEPTH", 0)
    else:
        monkeypatch.setattr("maskdsl.runtime.tile_bounds.MAX_READS", 1)
    for name, plan in plans.items():
        mask, _, make, _ = case(name)
        inputs = make(np.random.default_rng(1))
        surplus(mask, plan, inputs, batch_of(mask, inputs))


def test_deep_patterns() -> None:
    text = "pattern deep over (n) input doc[n]: int\nlet x0 = doc[q.n] == doc[k.n]\n"
    for i in range(150):
        text += f"let x{i + 1} = (x{i} and k.n != {i}) or doc[q.n] == {i}\n"
    mask = maskdsl.parse(text + "keep x150").bind(n=32)
    surplus(mask, mask.plan(8, 8), {"doc": np.arange(32) // 5 + 140}, 1)


# Lists, and what is refused


@pytest.mark.parametrize("side", ["q", "k"])
def test_lists_name_each_visited_tile(side: str) -> None:
    rng = np.random.default_rng(5)
    _, plan, _, _ = case("documents")
    visits = input_tiles(plan, doc=np.stack([packing(rng, "padded", 128) for _ in range(4)]))
    found = found_of(visits, plan)
    found = found if side == "q" else found.transpose(0, 2, 1)
    lists = visits.lists(0, side)
    for b, row in np.ndindex(found.shape[:2]):
        partial, full = int(lists.partial[b, row]), int(lists.full[b, row])
        tiles = lists.tiles[b, row].tolist()
        assert tiles[:partial] == np.flatnonzero(found[b, row] == PARTIAL).tolist()
        assert tiles[partial : partial + full] == np.flatnonzero(found[b, row] == FULL).tolist()
    assert lists.tiles.min() >= 0
    assert lists.tiles.max() < found.shape[2]


def test_no_batch_entries() -> None:
    _, plan, _, _ = case("documents")
    visits = input_tiles(plan, doc=np.zeros((0, 128), dtype=int))
    assert visits.kinds[0].shape == (0, len(visits.rows[0]))
    assert visits.lists(0).tiles.shape[0] == 0


def test_what_the_plan_knows_stays_known() -> None:
    _, plan, make, _ = case("prefix_lm")
    visits = input_tiles(plan, **make(np.random.default_rng(0)))
    kinds = found_of(visits, plan)
    for i in range(plan.q_tiles):
        for j in range(plan.kv_tiles):
            if plan.kind(0, i, j) == "full":
                assert (kinds[:, i, j] == FULL).all()


def test_refusals(monkeypatch: pytest.MonkeyPatch) -> None:
    _, plan, make, _ = case("documents")
    doc = make(np.random.default_rng(0))["doc"]
    with pytest.raises(BindError, match="batch 3, not 2"):
        input_tiles(plan, 2, doc=doc)
    with pytest.raises(BindError, match="no input 'dok'"):
        input_tiles(plan, dok=doc)
    with pytest.raises(BindError, match="must be a tensor or an array"):
        input_tiles(plan, doc=doc.tolist())
    with pytest.raises(BindError, match="the input 'doc' is missing"):
        input_tiles(plan)
    with pytest.raises(BindError, match="must have shape"):
        input_tiles(plan, doc=doc[:, :100])
    with pytest.raises(BindError, match="must be of int"):
        input_tiles(plan, doc=doc.astype(float))
    monkeypatch.setattr("maskdsl.planner.inputs.MAX_CANDIDATES", 10)
    with pytest.raises(PlanError, match="more than 10"):
        input_tiles(plan, doc=doc)
