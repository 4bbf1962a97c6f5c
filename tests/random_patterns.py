"""Random patterns, extents and tiles for property tests."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

import maskdsl
from maskdsl import Tile

AXES = "tyx"


@dataclass(frozen=True)
class Case:
    text: str
    values: dict[str, Any]
    q_tile: Tile
    kv_tile: Tile

    def mask(self) -> maskdsl.Mask:
        return maskdsl.parse(self.text).bind(**self.values)


def _int(rng: np.random.Generator, axes: str, depth: int) -> str:
    """An int expression that has a value everywhere."""
    if depth == 0 or rng.random() < 0.25:
        leaf = rng.integers(5)
        a = rng.choice(list(axes))
        return [f"q.{a}", f"k.{a}", str(rng.integers(-4, 12)), f"{a}.size", "q.index"][leaf]
    x, y = _int(rng, axes, depth - 1), _int(rng, axes, depth - 1)
    c = int(rng.integers(2, 9))
    return str(
        rng.choice(
            [
                f"({x} + {y})", f"({x} - {y})", f"{c} * {x}", f"({x}) // {c}", f"({x}) % {c}",
                f"({x}) // -{c}", f"min({x}, {y})", f"max({x}, {y})", f"abs({x} - {y})",
                f"(if {x} < {y} then {x} else {c})", f"bit_count({x} - {y})", f"bit_length({x})",
                f"clamp({x}, 1, {c})", f"int(({x}) / {c})", f"floor(0.37 * ({x}))", "(q.t * k.t)",
            ]
        )
    )  # fmt: skip


def _bool(rng: np.random.Generator, axes: str, depth: int) -> str:
    a = rng.choice(list(axes))
    w, d = int(rng.integers(1, 7)), int(rng.integers(1, 5))
    if depth == 0 or rng.random() < 0.35:
        return str(
            rng.choice(
                [
                    f"causal({a})", f"near({a}, {w})", f"dilated({a}, {w}, {d})",
                    f"block({a}, {w})",
                    f"neighborhood({a}, {w}, stride={d})", f"neighborhood({a}, {w}, dilation={d})",
                    f"0 <= q.{a} - k.{a} < {w}", f"(q.{a} - k.{a}) % {d} == 0", f"k.{a} < {d}",
                    f"{_int(rng, axes, 2)} <= {_int(rng, axes, 2)}",
                    f"{_int(rng, axes, 2)} == {_int(rng, axes, 1)}",
                    f"exp(-0.2 * abs(q.{a} - k.{a})) > 0.3",
                    f"random(5, q.{a} // 3, k.{a} // 2) < 0.4",
                    f"head > {d - 2}", f"(some i in 0 .. {d}: q.{a} == k.{a} + 2 * i)",
                ]
            )
        )  # fmt: skip
    x, y = _bool(rng, axes, depth - 1), _bool(rng, axes, depth - 1)
    return str(rng.choice([f"({x} and {y})", f"({x} and {y})", f"({x} or {y})", f"not {x}"]))


def _tile(rng: np.random.Generator, rank: int) -> Tile:
    size = tuple(int(2 ** rng.integers(0, 4 if rank < 3 else 3)) for _ in range(rank))
    plain = rng.random() < 0.5
    step = tuple(1 if plain else int(rng.integers(1, 5)) for _ in range(rank))
    origin = tuple(0 if plain else int(rng.integers(-9, 10)) for _ in range(rank))
    return Tile(size, step, origin)


def odd_tile(rng: np.random.Generator, tile: Tile) -> Tile:
    """The same tile with lanes left empty and axes that wrap, on some axes."""
    pitch = tuple(int(rng.integers(1, n + 1)) if rng.random() < 0.5 else n for n in tile.size)
    wrap = tuple(bool(rng.random() < 0.5) for _ in tile.size)
    origin = tuple(
        int(rng.integers(-20, 20)) if w else o for o, w in zip(tile.origin, wrap, strict=True)
    )
    return Tile(tile.size, tile.step, origin, pitch, wrap)


def wild_case(seed: int) -> tuple[str, dict[str, int]]:
    """A text over one axis in which operations may fail, behind guards or not."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(2, 9))
    x, y = _int(rng, "t", 1), _int(rng, "t", 1)
    c = int(rng.integers(-2, n + 2))
    risky = str(
        rng.choice(
            [
                f"{x} // (k.t - {c}) > 0", f"{x} % ({y}) == 1", f"1 / (q.t - {c}) < 0.5",
                f"2 ** (q.t - {c}) > 3", f"log(k.t - {c}) > 1", f"sqrt(k.t - {c}) > 1",
                f"int(4e18 * (k.t - {c})) > 0", f"(k.t - {c}) ** -0.5 > 0.1",
                f"9223372036854775800 + 2 * (k.t + {c}) > 0", f"q.t ** (20 + k.t) > {c}",
                "floor(1e308 * (q.t + 1)) > 1", f"({x}) // ({y}) + 3 * {c} < k.t",
            ]
        )
    )  # fmt: skip
    guard = str(
        rng.choice(
            [f"k.t != {c}", f"q.t > {c}", f"k.t > {c}", "true", f"{y} != 0", f"q.t + k.t < {c + 3}"]
        )
    )
    form = str(
        rng.choice(
            [
                f"keep {risky}", f"keep {guard} and {risky}", f"keep not ({guard}) or {risky}",
                f"keep if {guard} then {risky} else q.t > 1", f"let r = {risky} keep {guard} and r",
                f"keep not ({guard}) keep {risky}", f"keep {risky} keep not ({guard})",
                f"keep (some i in 0 .. 3: {guard} and i > 0 and ({risky}))",
                f"keep 0 < (if {guard} then 1 else 0) <= (if {risky} then 1 else 0)",
            ]
        )
    )  # fmt: skip
    return f"pattern wild over (t) {form}", {"t": n}


def random_case(seed: int, small: bool = False, odd: bool = False) -> Case:
    """A pattern over 1 to 3 axes, at most about 300 tokens a side, with any kind of tiles (odd:
    also such that leave lanes empty or wrap).
    """
    rng = np.random.default_rng(seed)
    rank = int(rng.integers(1, 4))
    axes = AXES[:rank]
    limit = {1: 24, 2: 6, 3: 4}[rank] if small else {1: 90, 2: 18, 3: 8}[rank]
    extents = {a: int(rng.integers(1, limit)) for a in axes}
    separate = rank == 1 and rng.random() < 0.3
    keeps = "\n".join(f"keep {_bool(rng, axes, 2)}" for _ in range(rng.integers(1, 3)))
    text = f"pattern random over ({', '.join(axes)})\n{keeps}"
    if separate:
        text = text.replace("k.t", "k.u").replace("over (t)", "over (t) -> (u)")
        text = f"pattern random over (t) -> (u)\nkeep {_int(rng, 't', 2)} <= k.u * 2 + q.t // 3 - 4"
        text = text.replace("k.t", "k.u")
        extents["u"] = int(rng.integers(1, limit))
    heads = int(rng.integers(1, 4))
    q_tile, kv_tile = _tile(rng, rank), _tile(rng, rank)
    if odd:
        q_tile, kv_tile = odd_tile(rng, q_tile), odd_tile(rng, kv_tile)
    return Case(text, {**extents, "heads": heads}, q_tile, kv_tile)
