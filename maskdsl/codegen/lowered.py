"""A plan's expressions as kernels evaluate them."""

from __future__ import annotations

from dataclasses import dataclass

from maskdsl.codegen.tabulate import left_over, tabulate, tabulate_ints
from maskdsl.ir.integers import integer
from maskdsl.ir.nodes import Node, postorder
from maskdsl.ir.rewrite import substitute
from maskdsl.planner import Plan


@dataclass(frozen=True)
class Lowered:
    """keeps, scores: per segment of queries and of keys; sink. Of one head where all heads are
    alike, floats that decide tabulated.

    exact: whether binary64 arithmetic is left for the kernel.
    """

    keeps: tuple[tuple[Node, ...], ...]
    scores: tuple[tuple[Node | None, ...], ...]
    sink: Node | None
    exact: bool

    def keep(self, home: str, number: int, away: int) -> Node:
        """Between segment `number` of the home side and segment `away` of the other."""
        return self.keeps[number][away] if home == "q" else self.keeps[away][number]

    def score(self, home: str, number: int, away: int) -> Node | None:
        return self.scores[number][away] if home == "q" else self.scores[away][number]


def lower(plan: Plan) -> Lowered:
    """The expressions of a plan. Raises CompileError for what kernels do not have."""
    program = plan.program
    several = len(plan.head_classes) > 1
    alike = plan.head_classes[0].keeps
    keeps = tuple(
        tuple(block.keep if several else keep for block, keep in zip(blocks, line, strict=True))
        for blocks, line in zip(program.blocks, alike, strict=True)
    )
    scores = tuple(tuple(b.score for b in row) for row in program.blocks)
    return lowered(keeps, scores, program.sink, program.heads)


def lowered(
    keeps: tuple[tuple[Node, ...], ...], scores: tuple[tuple[Node | None, ...], ...],
    sink: Node | None, heads: int,
) -> Lowered:  # fmt: skip
    """Expressions as kernels evaluate them. Raises CompileError for what they do not have."""

    def free_of_floats(root: Node | None) -> Node | None:
        return None if root is None else tabulate_ints(_of_one_head(heads, root))

    keeps = tuple(tuple(tabulate(_of_one_head(heads, x)) for x in row) for row in keeps)
    scores = tuple(tuple(free_of_floats(x) for x in row) for row in scores)
    sink = free_of_floats(sink)
    exact = False
    for line, own in zip(keeps, scores, strict=True):
        for keep, score in zip(line, own, strict=True):
            exact |= left_over(keep, score) | left_over(keep, sink)
    return Lowered(keeps, scores, sink, exact)


def _of_one_head(heads: int, root: Node) -> Node:
    """The expression for head 0 where there is no other."""
    if heads > 1:
        return root
    return substitute(root, {n: integer(0) for n in postorder(root) if n.op == "head"})
