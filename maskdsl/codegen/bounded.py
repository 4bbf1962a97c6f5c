"""Expressions of open extents, in ranges that kernels can rely on."""

from __future__ import annotations

from maskdsl.ir.integers import make
from maskdsl.ir.nodes import Node, postorder
from maskdsl.ir.rewrite import substitute

LONGEST = 2**26  # tokens of an open axis, so that 32 bits hold what patterns make of coordinates


def bounded(root: Node, tiles: int = LONGEST) -> Node:
    """The expression with coordinates below `LONGEST`, and with sizes as leaves that kernels are
    told. tiles: more than there may be.
    """
    leaves = {}
    for node in postorder(root):
        if node.op == "coord":
            most = tiles if node.value[0] == "tile" else LONGEST
            leaves[node] = make("coord", (), 0, min(node.high, most - 1), node.value)
        elif node.op == "symbol":
            axis = node.value.removesuffix(".size")
            leaves[node] = make("coord", (), 1, LONGEST, ("size", axis))
    return substitute(root, leaves)
