"""A plan's expressions as kernels evaluate them."""

from __future__ import annotations

from dataclasses import dataclass

from maskdsl.codegen.tabulate import left_over, tabulate, tabulate_ints
from maskdsl.errors import CompileError
from maskdsl.ir.integers import integer
from maskdsl.ir.nodes import Node, postorder
from maskdsl.ir.rewrite import substitute
from maskdsl.planner import Plan


@dataclass(frozen=True)
class Lowered:
    """keep, score, sink: of one head where all heads are alike, floats that decide tabulated.

    exact: whether binary64 arithmetic is left for the kernel.
    """

    keep: Node
    score: Node | None
    sink: Node | None
    exact: bool


def lower(plan: Plan) -> Lowered:
    """The expressions of a plan. Raises CompileError for what kernels do not have."""
    program = plan.program
    if program.segmented:
        raise CompileError("triton kernels of several segments are not supported yet")
    keep = program.keep if len(plan.head_classes) > 1 else plan.head_classes[0].keep
    keep = tabulate(_of_one_head(plan, keep))
    score, sink = (
        None if x is None else tabulate_ints(_of_one_head(plan, x))
        for x in (program.score, program.sink)
    )
    return Lowered(keep, score, sink, left_over(keep, score) or left_over(keep, sink))


def _of_one_head(plan: Plan, root: Node) -> Node:
    """The expression for head 0 where there is no other."""
    if plan.program.heads > 1:
        return root
    return substitute(root, {n: integer(0) for n in postorder(root) if n.op == "head"})
