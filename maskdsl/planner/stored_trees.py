"""Trees as plain data, and back without classifying: what storing a plan spares its reader."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from maskdsl.ir.nodes import Node
from maskdsl.ir.storage import Reader, Writer
from maskdsl.planner.boxes import EMPTY, FULL, MIXED, OUTSIDE, Side, Space
from maskdsl.planner.tree import Level, Summary, Tree, offsets

_NUMBERS = ("root_kind", "certain", "full", "partial")


def tree_record(w: Writer, tree: Tree) -> dict[str, Any]:
    """Space and keep expression are left out: the plan has them."""

    def arrays(x: Level | Summary) -> dict[str, int]:
        return {f.name: w.content(getattr(x, f.name)) for f in dataclasses.fields(x)}

    return {
        **{name: getattr(tree, name) for name in _NUMBERS},
        "varies": tree.varies,
        "pairs": tree.pairs,
        "leaves": w.content(tree.leaves),
        "levels": [arrays(x) for x in tree.levels],
        "summaries": [arrays(x) for x in tree.summaries],
    }


def tree_of(reader: Reader, record: dict[str, Any], keep: Node, queries: Side, keys: Side) -> Tree:
    """The tree of a record. Raises ValueError and its like where the record is of no tree."""

    def arrays(fields: dict[str, int]) -> dict[str, np.ndarray]:
        dtypes = {"kind": np.int8}
        return {name: reader.content(n, dtypes.get(name, np.int64)) for name, n in fields.items()}

    tree = object.__new__(Tree)  # its __init__ classifies
    tree.space = Space(keep, queries, keys)
    tree.keep = tree.space.keep
    tree.levels = [Level(**arrays(fields)) for fields in record["levels"]]
    tree.summaries = [Summary(**arrays(fields)) for fields in record["summaries"]]
    tree.leaves = reader.content(record["leaves"], np.int64)
    tree.varies, tree.pairs = record["varies"], record["pairs"]
    tree.rough = False  # plans hold finished trees
    for name in _NUMBERS:
        setattr(tree, name, record[name])
    _check_numbers(tree)
    _check_boxes(tree)
    return tree


def _check_numbers(tree: Tree) -> None:
    counts = [tree.root_kind, tree.certain, tree.full, tree.partial]
    counts += [] if tree.pairs is None else [tree.pairs]
    if any(type(n) is not int or n < 0 for n in counts) or type(tree.varies) is not bool:
        raise ValueError("numbers of tiles that are none")
    if not tree.summaries and (tree.levels or tree.root_kind not in (EMPTY, FULL)):
        raise ValueError("a tree without kinds")


def _check_boxes(tree: Tree) -> None:
    """Boxes must divide from the whole space down to tiles, and numbers of boxes be of the next
    level's: what walks a tree then stays inside the space.
    """
    if not tree.summaries:
        return
    space, widths, boxes = tree.space, tree.space.widths, 1
    for level in tree.levels:
        parts = level.child_widths
        if not np.array_equal(level.widths, widths) or parts.shape != widths.shape:
            raise ValueError("levels that do not follow one another")
        if (parts < space.tile_widths).any() or (widths % parts).any():
            raise ValueError("boxes that are not divided")
        count = math.prod((widths // parts).tolist())
        alike = len(level.children) == count  # before so many are made
        if not alike or not np.array_equal(level.children, offsets(widths, parts)):
            raise ValueError("parts that are not those of a box")
        shape = (boxes, count)
        open_ = level.kind == MIXED
        below = int(level.node.max(initial=-1)) + 1
        columns = (level.kind, level.node, level.pairs, level.tiles)
        if any(x.shape != shape for x in columns) or ((level.node >= 0) != open_).any():
            raise ValueError("a level of another shape")
        if any((x < least).any() for x, least in zip(columns, (0, -1, 0, 0), strict=True)):
            raise ValueError("kinds or numbers below zero")
        if (level.kind > OUTSIDE).any():
            raise ValueError("kinds that there are not")
        widths, boxes = parts, below
    if not np.array_equal(widths, space.tile_widths) or tree.leaves.shape != (boxes, len(widths)):
        raise ValueError("tiles of other sizes")
    if ((tree.leaves < 0) | (tree.leaves >= space.widths)).any():
        raise ValueError("tiles outside the space")
    sizes = [len(level.kind) for level in tree.levels] + [boxes]
    for summary, size in zip(tree.summaries, sizes, strict=True):
        columns = (summary.kind, summary.pairs, summary.full, summary.partial)
        if any(x.shape != (size,) or (x < 0).any() for x in columns):
            raise ValueError("a summary of another shape")
        if (summary.kind > MIXED).any():
            raise ValueError("kinds that there are not")
