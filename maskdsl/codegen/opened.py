"""Extents that a module is told at a call: one kernel for every length.

Queries and keys lie along one axis each, of which at least one is open, and the walk of all heads
has a closed form for all extents at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from maskdsl.codegen.bounded import LONGEST, bounded
from maskdsl.codegen.closed import Closed, never_empty, open_walk, serves
from maskdsl.codegen.lowered import Lowered, lowered
from maskdsl.codegen.tabulate import left_over
from maskdsl.errors import CompileError
from maskdsl.ir.nodes import Node, postorder
from maskdsl.ir.program import Block, Program
from maskdsl.planner import Plan


@dataclass(frozen=True)
class Opened:
    """A program with open extents. Raises CompileError where no module can serve them all."""

    program: Program

    def __post_init__(self) -> None:
        program = self.program
        if program.segmented or len(program.query_axes) > 1 or len(program.key_axes) > 1:
            raise CompileError("extents stay open along one axis of queries and of keys")
        reads = postorder(self.keep)
        if any(n.op in ("head", "batch") or (n.op == "load" and n.value.is_input) for n in reads):
            raise CompileError("heads, batches or inputs decide which keys are kept")
        low = self.lowered
        keep, score = low.keeps[0][0], low.scores[0][0]
        if any(n.type == "float" for n in reads) or left_over(keep, score):
            raise CompileError("floats decide which keys are kept")

    @property
    def keep(self) -> Node:
        return self.block.keep

    def size(self, side: str) -> str:
        """The variable with the extent of a side's axis; "" where it is bound."""
        ((name, extent),) = self.program.query_axes if side == "q" else self.program.key_axes
        return f"{name}_size" if extent is None else ""

    @property
    def sizes(self) -> list[tuple[str, str]]:
        """(variable, what the launch sets it to)"""
        found = {self.size("q"): "q.shape[2]", self.size("k"): "k.shape[2]"}
        return [(name, text) for name, text in found.items() if name]

    @cached_property
    def lowered(self) -> Lowered:
        """The expressions, of coordinates up to `LONGEST` and of sizes that the kernel is told."""
        roots = [self.keep, self.block.score, self.program.sink]
        keep, score, sink = (None if r is None else bounded(r) for r in roots)
        assert keep is not None
        return lowered(((keep,),), ((score,),), sink, self.program.heads)

    def walk(self, plan: Plan, home: str) -> Closed:
        """The closed form of a walk under the plan's tiles. Raises CompileError."""
        found = open_walk(self.block, plan, home)
        if isinstance(found, str):
            raise CompileError(f"the walk has no closed form for all extents: {found}")
        return found

    @property
    def block(self) -> Block:
        return self.program.blocks[0][0]

    def never_empty(self, plan: Plan) -> bool:
        """Whether each query keeps a key, whatever the extents."""
        return never_empty(self.block, plan)

    def serves(self, plan: Plan, homes: Sequence[str]) -> bool:
        """Whether the closed forms give the walks of a plan of bound extents."""
        tokens = max(plan.program.query_tokens, plan.program.key_tokens)
        return tokens <= LONGEST and all(serves(self.block, plan, home) for home in homes)
