"""How many tiles a pattern visits under many layouts at once: axis by axis where its conditions
part by axes, from a sample of rows where they do not.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from maskdsl.ir import logic
from maskdsl.ir.evaluate import evaluate
from maskdsl.ir.nodes import Node, postorder
from maskdsl.ir.rewrite import VARYING
from maskdsl.planner.boxes import EMPTY, FULL, Side, Space
from maskdsl.planner.tiles import Grid, Tile
from maskdsl.planner.tree import Tree

DENSE = 1024  # extents up to which every pair of an axis is evaluated


@dataclass(frozen=True)
class Share:
    """Of all pairs of tiles: visited, and full (arrays over candidates)."""

    visited: np.ndarray
    full: np.ndarray


@dataclass(frozen=True)
class Parted:
    """A condition taken apart: of one axis ("axis"), or "and", "or", "not" of others, or "any"
    where nothing is known beforehand.
    """

    op: str
    args: tuple[Parted, ...] = ()
    axis: str = ""
    node: Node | None = None

    def leaves(self) -> list[Parted]:
        own = [self] if self.op == "axis" else []
        return own + [leaf for a in self.args for leaf in a.leaves()]


def part(keep: Node) -> Parted | None:
    """The condition taken apart by axes, or None where some part of it joins several axes."""
    axes: dict[Node, frozenset[str]] = {}
    varies: dict[Node, bool] = {}
    for node in postorder(keep):
        own = frozenset([node.value[1]]) if node.op == "coord" else frozenset()
        axes[node] = own.union(*(axes[a] for a in node.args))
        varies[node] = (
            node.op in VARYING
            or (node.op == "load" and node.value.is_input)
            or any(varies[a] for a in node.args)
        )

    def walk(node: Node) -> Parted | None:
        if not varies[node] and len(axes[node]) == 1:
            return Parted("axis", axis=next(iter(axes[node])), node=node)
        if node.op in ("and", "or"):
            return gather(node)
        if node.op == "not":
            inner = walk(node.args[0])
            return inner and Parted("not", (inner,))
        return Parted("any") if varies[node] or not axes[node] else None

    def gather(node: Node) -> Parted | None:
        by_axis: dict[str, list[Node]] = {}
        rest = []
        for a in node.args:
            if not varies[a] and len(axes[a]) == 1:
                by_axis.setdefault(next(iter(axes[a])), []).append(a)
            else:
                rest.append(walk(a))
        if any(r is None for r in rest):
            return None
        join = logic.and_ if node.op == "and" else logic.or_
        own = [Parted("axis", axis=name, node=join(*x)) for name, x in by_axis.items()]
        return Parted(node.op, (*own, *(r for r in rest if r)))

    return walk(keep)


def combine(parted: Parted, shares: Mapping[Parted, Share]) -> Share:
    """The share of a condition from those of its parts, as if these were independent: exact for a
    conjunction over different axes.
    """
    if parted.op == "axis":
        return shares[parted]
    if parted.op == "any":
        return Share(np.ones(1), np.zeros(1))
    args = [combine(a, shares) for a in parted.args]
    if parted.op == "not":
        return Share(1 - args[0].full, 1 - args[0].visited)
    if parted.op == "and":
        return Share(_product(a.visited for a in args), _product(a.full for a in args))
    return Share(1 - _product(1 - a.visited for a in args), 1 - _product(1 - a.full for a in args))


def _product(factors: Iterable[np.ndarray]) -> np.ndarray:
    total = np.ones(1)
    for f in factors:
        total = total * f
    return total


class AxisMeter:
    """Shares of the conditions of one axis, for tiles of queries and of keys on it."""

    def __init__(self, axis: str, extent: int, leaves: Sequence[Parted]) -> None:
        self.axis, self.extent, self.leaves = axis, extent, leaves
        self.dense = extent <= DENSE
        places = np.arange(extent)
        at = {("q", axis): places[:, None], ("k", axis): places[None, :]}
        self.truth = [
            np.broadcast_to(evaluate(leaf.node, at, {}), (extent, extent)).astype(np.int32)
            for leaf in (leaves if self.dense else ())
            if leaf.node is not None
        ]
        self._rows: dict[Tile, tuple[list[np.ndarray], np.ndarray]] = {}
        self._orders: dict[Tile, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}

    def shares(self, q: Tile, k: Tile) -> list[tuple[float, float]]:
        """(visited, full) per condition, of all pairs of tiles."""
        if not self.dense:
            return [self._by_tree(leaf, q, k) for leaf in self.leaves]
        rows, q_sizes = self._of_rows(q)
        order, heads, k_sizes = self._order(k)
        area = q_sizes[:, None] * k_sizes[None, :]
        total = self.count(q) * self.count(k)
        found = []
        for part_ in rows:
            kept = np.add.reduceat(part_[:, order], heads, axis=1)
            visited, full = np.count_nonzero(kept), np.count_nonzero(kept == area)
            found.append((float(visited / total), float(full / total)))
        return found

    def count(self, tile: Tile) -> int:
        """Tiles on the axis."""
        return Grid(tile, (self.extent,)).count

    def _order(self, tile: Tile) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(coordinates tile after tile, where each tile begins, tokens of each), without the tiles
        that hold no token.
        """
        if tile not in self._orders:
            grid = Grid(tile, (self.extent,))
            tokens = grid.tokens(np.arange(grid.count))
            sizes = (tokens >= 0).sum(1)
            sizes = sizes[sizes > 0]
            heads = np.cumsum(sizes) - sizes
            self._orders[tile] = tokens[tokens >= 0], heads, sizes
        return self._orders[tile]

    def _of_rows(self, tile: Tile) -> tuple[list[np.ndarray], np.ndarray]:
        if tile not in self._rows:
            order, heads, sizes = self._order(tile)
            rows = [np.add.reduceat(t[order], heads, axis=0) for t in self.truth]
            self._rows[tile] = rows, sizes
        return self._rows[tile]

    def _by_tree(self, leaf: Parted, q: Tile, k: Tile) -> tuple[float, float]:
        assert leaf.node is not None
        rows, columns = (
            Side(n, (self.axis,), Grid(t, (self.extent,))) for n, t in (("q", q), ("k", k))
        )
        tree = Tree(leaf.node, rows, columns)
        total = rows.grid.count * columns.grid.count
        return (tree.full + tree.partial) / total, tree.full / total


def sampled(keep: Node, queries: Side, keys: Side, sample: int) -> tuple[float, float]:
    """(visited, full) of rows of so many pairs of tiles, as far as bounds tell: undecided tiles
    count as visited.
    """
    space = Space(keep, queries, keys)
    rows = max(1, min(queries.grid.count, sample // max(1, keys.grid.count)))
    chosen = np.unique(np.linspace(0, queries.grid.count - 1, rows + 2).astype(np.int64)[1:-1])
    columns = np.arange(min(keys.grid.count, sample)) * max(1, keys.grid.count // sample)
    q, k = (x.reshape(-1) for x in np.meshgrid(chosen, columns, indexing="ij"))
    starts = np.zeros((len(q), len(space.digits)), dtype=np.int64)
    places = {"q": _digits_of(queries.grid, q), "k": _digits_of(keys.grid, k)}
    for i, d in enumerate(space.digits):
        if d.part != "l":
            starts[:, i] = places[d.side][d.axis, d.part]
    kind, _, _, _ = space.classify(starts, space.tile_widths)
    return float(np.mean(kind != EMPTY)), float(np.mean(kind == FULL))


def _digits_of(grid: Grid, tiles: np.ndarray) -> dict[tuple[int, str], np.ndarray]:
    found = {}
    for axis, index in enumerate(np.unravel_index(tiles, grid.shape)):
        residue, block = np.divmod(index, grid.blocks[axis])
        found[axis, "r"], found[axis, "j"] = residue, block * grid.tile.pitch[axis]
    return found
