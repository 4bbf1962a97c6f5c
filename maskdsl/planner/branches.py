"""Patterns joined by `or`, as disjoint branches that each have tiles of their own.

A local window and far columns want different layouts. Attention over each is merged by its
log-sum-exp afterwards, which is exact because no key is in two branches.
"""

from __future__ import annotations

from dataclasses import replace

from maskdsl.ir import logic
from maskdsl.ir.integers import truth
from maskdsl.ir.nodes import Node
from maskdsl.ir.program import Program
from maskdsl.planner.build import make_plan
from maskdsl.planner.layout import MOST_LEAVES, Candidate, Cost, work
from maskdsl.planner.plan import Plan

MOST_PARTS = 4  # conditions of an `or` that are tried as a branch of their own
GAIN = 0.9  # of the cost without branches, at most: merging reads and writes every output again


def branches(
    program: Program, lanes: tuple[int, int] = (64, 64), cost: Cost = work
) -> tuple[Program, ...]:
    """The two disjoint programs of least cost that together keep what `program` keeps, or `program`
    alone where that costs little more.

    Only the first has the sink. Raises PlanError where a branch is too irregular.
    """
    if program.segmented or not _splits(program.keep):
        return (program,)
    whole = make_plan(program, "", None, None, lanes, cost)
    if any(len(t.leaves) > MOST_LEAVES for c in whole.head_classes for t in c.all_trees):
        return (program,)  # irregular: its branches would be too, and each plan slow
    best: tuple[Program, ...] = (program,)
    least = GAIN * _cost(whole, cost)
    for one, other in _splits(program.keep):
        both = (_with(program, one, True), _with(program, other, False))
        total = sum(_cost(make_plan(p, "", None, None, lanes, cost), cost) for p in both)
        if total < least:
            best, least = both, total
    return best


def _splits(keep: Node) -> list[tuple[Node, Node]]:
    """Disjoint pairs of conditions that together are `keep`."""
    common, either = [], keep
    if keep.op == "and":
        ors = [a for a in keep.args if a.op == "or"]
        if not ors:
            return []
        either = max(ors, key=lambda a: len(a.args))
        common = [a for a in keep.args if a is not either]
    if either.op != "or":
        return []
    found = []
    for part in either.args[:MOST_PARTS]:
        rest = logic.or_(*(a for a in either.args if a is not part))
        for first, second in ((part, rest), (rest, part)):
            alone = logic.and_(*common, first)
            found.append((alone, logic.and_(*common, second, logic.not_(first))))
    return found


def _with(program: Program, keep: Node, sink: bool) -> Program:
    block = replace(program.only, keep=keep)
    if sink:
        return replace(program, blocks=((block,),))
    return replace(program, blocks=((block,),), sink=None, sink_error=truth(False))


def _cost(plan: Plan, cost: Cost) -> float:
    heads, tiles = plan.program.heads, plan.tiles
    q_tile, kv_tile = plan.q_grids[0].tile, plan.kv_grids[0].tile
    return cost(Candidate(q_tile, kv_tile, tiles.full / heads, tiles.partial / heads, True))
