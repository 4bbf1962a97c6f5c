"""Where the tiles of a pattern might lie: steps and boundaries that its own text suggests."""

from __future__ import annotations

import math
from dataclasses import dataclass

from maskdsl.ir.integers import combine, terms_of
from maskdsl.ir.nodes import Node, postorder
from maskdsl.planner.tiles import Tile

MOST_STEPS, MOST_PERIODS = 3, 4  # proposals of one axis, the commonest first


@dataclass(frozen=True)
class Frame:
    """How tiles lie on one axis, whatever their size.

    step: every step-th coordinate. period, origin: tiles should not cross origin + i * period
    (coordinates; None: no such boundaries). wrap: the boundaries count round the end of the axis.
    """

    step: int = 1
    origin: int = 0
    period: int | None = None
    wrap: bool = False

    def pitch(self, size: int) -> int:
        """Lanes to fill of `size`, so that tiles and boundaries meet; all of them where half would
        stay empty.
        """
        if self.period is None:
            return size
        period = self.period // self.step
        if size % period == 0 or period % size == 0:
            return size
        meets = (p for p in range(size, 0, -1) if p % period == 0 or period % p == 0)
        pitch = next(meets)
        return pitch if 2 * pitch > size else size

    def tile(self, size: int) -> Tile:
        """The tile of one axis."""
        return Tile((size,), (self.step,), (self.origin,), (self.pitch(size),), (self.wrap,))


def joined(tiles: list[Tile]) -> Tile:
    """The tile of several axes from one of each."""
    return Tile(*(tuple(getattr(t, name)[0] for t in tiles) for name in Tile.__match_args__))


def frames(keep: Node, side: str, axis: str, extent: int) -> list[Frame]:
    """The plain frame, and those which the moduli, divisors and strides of `keep` suggest."""
    steps: dict[int, int] = {}
    periods: dict[tuple[int, int, bool], int] = {}
    for node in postorder(keep):
        if node.op in ("mod", "floordiv") and node.args[1].is_const:
            _of_division(node, (side, axis), extent, steps, periods)
        elif node.op in ("le", "lt", "eq") and node.args[0].type == "int":
            _of_comparison(node, (side, axis), extent, periods)
    common = sorted(steps, key=lambda s: (-steps[s], s))[:MOST_STEPS]
    bounds = sorted(periods, key=lambda p: (-periods[p], p))[:MOST_PERIODS]
    found = [Frame()]
    found += [Frame(1, origin, period, wrap) for period, origin, wrap in bounds]
    for step in common:
        found.append(Frame(step))
        found += [
            Frame(step, origin, period, wrap)
            for period, origin, wrap in bounds
            if period % step == 0 and period > step
        ]
    return found


def _coefficient(node: Node, coord: tuple[str, str]) -> tuple[int, int, bool]:
    """(coefficient of the coordinate, constant, whether nothing else is added) of a sum."""
    constant, terms = terms_of(node)
    own = [c for t, c in terms.items() if t.op == "coord" and t.value == coord]
    return (own[0] if own else 0), constant, len(terms) == 1


def _of_division(
    node: Node,
    coord: tuple[str, str],
    extent: int,
    steps: dict[int, int],
    periods: dict[tuple[int, int, bool], int],
) -> None:
    m = node.args[1].value
    inner, wrap = node.args[0], False
    c, constant, alone = _coefficient(inner, coord)
    if inner.op == "mod" and inner.args[1].is_const and inner.args[1].value == extent:
        c, constant, alone = _coefficient(inner.args[0], coord)  # an axis rolled round
        wrap = True
    if not c or m <= 1:
        return
    g = math.gcd(c, m)
    period = m // g
    if node.op == "mod" and 1 < period < extent:
        steps[period] = steps.get(period, 0) + 1
    if alone and 1 < period < extent and constant % g == 0:
        origin = -(constant // g) * pow(c // g, -1, period) % period
        key = (period, (origin if not wrap else -constant % extent), wrap)
        periods[key] = periods.get(key, 0) + 1


def _of_comparison(
    node: Node, coord: tuple[str, str], extent: int, periods: dict[tuple[int, int, bool], int]
) -> None:
    """`x <= s * (...) + c`: blocks of s coordinates begin where x passes the bound."""
    constant, terms = combine([(1, node.args[0]), (-1, node.args[1])])
    own = [c for t, c in terms.items() if t.op == "coord" and t.value == coord]
    others = [c for t, c in terms.items() if not (t.op == "coord" and t.value == coord)]
    if len(own) != 1 or abs(own[0]) != 1 or not others:
        return
    s = math.gcd(*others)
    if not 1 < s < extent:
        return
    # x + constant <= 0 ends a block at -constant; constant - x <= 0 begins one at constant
    first = (1 - constant if own[0] > 0 else constant) % s
    for origin in {first} | ({-constant * own[0] % s} if node.op == "eq" else set()):
        key = (s, origin, False)
        periods[key] = periods.get(key, 0) + 1
