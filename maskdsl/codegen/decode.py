"""One plan to the standalone Triton module of decoding: few queries, anywhere in a shared space.

The query heads that share a key head are computed together: the lanes of a program are (query,
head) pairs, so that keys and values are read once for all of them. The row of tiles that a query
walks follows from its position, so that one module serves every position and number of queries.
"""

from __future__ import annotations

import ast
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from maskdsl.codegen.arguments import Argument
from maskdsl.codegen.boxes import token
from maskdsl.codegen.decode_walk import ordered_walk
from maskdsl.codegen.descriptors import Boxes
from maskdsl.codegen.emit import Module, plan_lanes
from maskdsl.codegen.expressions import LINE
from maskdsl.codegen.frame import Frame, can_be_boxes
from maskdsl.codegen.lowered import Lowered
from maskdsl.codegen.opened import Opened
from maskdsl.codegen.operands import Operand
from maskdsl.codegen.spec import WARPGROUPS, Spec
from maskdsl.codegen.text import PRODUCT
from maskdsl.codegen.walk import Walk
from maskdsl.errors import CompileError
from maskdsl.ir.integers import make
from maskdsl.ir.nodes import Node, postorder
from maskdsl.ir.program import Segment
from maskdsl.ir.rewrite import substitute
from maskdsl.planner import Grid, Plan, Tile

MOST_LANES = 128
MOST_SPLITS = 64  # parts that the merging kernel takes in, all at once
# what the launch tells a kernel besides tensors, and passes under another name
_PLACES = ("batches", "position", "count", "first_row", "rows", "splits")
_PASSED = {
    "out_ptr": "parts", "lse_ptr": "part_lse", "out_strides": "parts.stride()", "batches": "batch",
}  # fmt: skip


def heads_together(plan: Plan) -> int:
    """How many query heads a program computes: as many of those that share a key head as have one
    plan and few enough lanes.
    """
    program = plan.program
    group = program.heads // program.kv_heads
    class_of = np.empty(program.heads, dtype=np.int64)
    for number, alike in enumerate(plan.head_classes):
        class_of[list(alike.heads)] = number
    for share in range(min(group, MOST_LANES), 1, -1):
        parts = class_of.reshape(-1, share) if group % share == 0 else None
        if parts is not None and bool((parts == parts[:, :1]).all()):
            return share
    return 1


def query_tiles(
    plan: Plan, spec: Spec, queries: int, longest: int = MOST_LANES
) -> tuple[Tile, ...]:
    """Per segment, the tile of queries along the last axis for calls of about so many queries.

    plan: whose heads and key tiles are taken. longest: queries of a tile at most; lanes that the
    target's matrix products have anyway are idle then. Raises CompileError where the key tiles
    leave no room for any.
    """
    members = _power(heads_together(plan))
    keys = plan_lanes(plan)[1]
    least, most = _lanes(spec)
    lanes = max(min(max(members * _power(queries), least), most), members)
    while lanes > max(16, members) and not _fits(spec, lanes, keys):
        lanes //= 2
    found = []
    for segment in plan.program.queries:
        long = min(lanes // members, _power(segment.shape[-1]), longest)
        found.append(Tile((*(1,) * (len(segment.shape) - 1), long)))
    return tuple(found)


def _lanes(spec: Spec) -> tuple[int, int]:
    """The least and the most that a program has."""
    if spec.dtype == "float32":  # its products take registers, not matrix units
        return 16, 32
    return (64, MOST_LANES) if spec.target in WARPGROUPS else (16, 64)


def _least(plan: Plan, spec: Spec) -> int:
    """Lanes of a program at least, as far as they fit."""
    least = _lanes(spec)[0]
    while least > 16 and not _fits(spec, least, plan_lanes(plan)[1]):
        least //= 2
    return least


def _fits(spec: Spec, queries: int, keys: int) -> bool:
    try:
        spec.settings(queries, keys)
    except CompileError:
        return False
    return True


def _power(count: int) -> int:
    """The power of two that is at least as large."""
    return 1 << (count - 1).bit_length()


class DecodeFrame(Frame):
    """The kernel of one segment of queries. heads: computed together; they, and idle lanes,
    are the last axis of the tile that a program holds.
    """

    def __init__(
        self, plan: Plan, spec: Spec, lowered: Lowered, heads: int, number: int,
        roots: Sequence[dict[str, Node]], numbers: dict[str, int], opened: Opened | None = None,
    ) -> None:  # fmt: skip
        self.heads = heads
        long = plan.q_grids[number].tile.size[-1]
        # lanes of a query: of its heads, and idle ones
        self.members = max(_power(heads), _least(plan, spec) // long)
        super().__init__(plan, spec, lowered, "q", number, roots, numbers, opened)
        if self.members > 1:
            lane = f"q_lane % {self.members}"
            odd = heads != self.members
            inside = (f"{lane} < {heads}",) if odd else ()
            lane = f"tl.minimum({lane}, {heads - 1})" if odd else lane
            value = f"first_head + {lane}" if heads > 1 else ""
            self.axes[-1] = replace(self.axes[-1], first="", value=value, inside=inside)

    def _walk(self) -> Walk:
        return ordered_walk(self.plan, self.number)

    def _asks_inputs(self) -> bool:
        return False  # the rows of one call are few: asking would take longer than visiting

    def _held(self) -> tuple[Sequence[tuple[str, int | None]], Grid]:
        axes, grid = super()._held()
        if self.members == 1:
            return axes, grid
        with_heads = Grid(Tile((*grid.tile.size, self.members)), (*grid.extents, self.members))
        return (*axes, ("head", self.plan.program.heads)), with_heads

    @property
    def describes(self) -> bool:
        return self.spec.copies_boxes and all(can_be_boxes(g) for g in self.plan.kv_grids)

    @property
    def all_boxes(self) -> list[Boxes]:
        operands = [self.operand("k", x) for x in self.aways]
        return [x.boxes for x in operands if x.boxes is not None]

    def _home_operand(self, name: str) -> Operand:
        return replace(super()._home_operand(name), boxes=None, at="")

    def decoding(self, kernel: str) -> dict[str, Any]:
        """What the kernel's template says."""
        context = self.context(kernel, ["q"], ["k", "v"], ["out"], ["q", "k", "v", "out"], ["lse"])
        for away in context["aways"]:
            away["loops"] = [
                replace(x, opening=_of_one_split(x.opening, self.depth)) for x in away["loops"]
            ]
        arguments = [
            replace(x, value=_PASSED.get(x.name, x.value))
            for x in context["arguments"]
            if x.name not in _PLACES
        ]
        segment, grid = self.segment, self.plan.q_grids[self.number]
        tokens = [a.name for a in self.axes[: len(segment.axes)]]
        sink = self.aways[0].printed.plain.get("sink")
        return context | {
            "arguments": [*arguments, *(Argument(n, _PASSED.get(n, n)) for n in _PLACES)],
            "token": token(tokens, grid, "tl.int64", segment.offset),
            "home_inside": " & ".join(f"({x})" for a in self.axes for x in a.inside),
            "sink": "" if sink is None else sink.within(PRODUCT),
            "together": self.heads,
            "segment": segment,
            "row_of": _row_text(segment, grid),
            "pointers": [] if self.describes else ["k", "v"],
        }


class DecodeEmission(Module):
    """The module of decoding: a kernel for each segment of queries, one that merges what it gave
    for parts of the keys, and `decode`, which launches them.

    plan: with tiles of queries along the last axis, as `query_tiles` gives them. Raises
    CompileError where the plan or the pattern is beyond kernels.
    """

    template = "decode.py.j2"
    direction = "forward"

    def __init__(self, plan: Plan, spec: Spec, opened: Opened | None = None) -> None:
        super().__init__(plan, spec, opened)
        self.kernel = f"{self.name}_decode"
        self.heads = heads_together(plan)
        low = self.lowered = _by_lanes(self.lowered, self.heads, plan.program.heads)
        numbers: dict[str, int] = {}
        self.frames: list[DecodeFrame] = []
        for number in range(len(plan.program.queries)):
            roots = []
            for away in range(len(plan.program.keys)):
                found = {"score": low.scores[number][away], "sink": low.sink if away == 0 else None}
                roots.append({n: x for n, x in found.items() if x is not None})
            own = (low, self.heads, number, roots, numbers, opened)
            self.frames.append(DecodeFrame(plan, spec, *own))
        contexts = [f.decoding(self.kernel + f.suffix) for f in self.frames]
        self.context = {
            **self.shared_context(contexts),
            "title": f"Decoding for the pattern `{plan.name}`, emitted by MaskDSL.",
            "sink": low.sink is not None,
            "merge": f"{self.name}_merge",
            "most_splits": MOST_SPLITS,
            "parts": plan.program.heads // self.heads,
        }

    @property
    def lanes(self) -> tuple[int, int]:
        return max(f.grid.tile.lanes for f in self.frames), plan_lanes(self.plan)[1]

    def _constants(self) -> list[tuple[str, int, str]]:
        by = f" by {self.heads} heads" if self.heads > 1 else ""
        lanes = {f.home_block: f.grid.tile.lanes for f in self.frames}
        return [
            (name, lanes[name], f"lanes of a tile: {value} queries{by}")
            if name in lanes
            else (name, value, what)
            for name, value, what in super()._constants()
        ]


def _by_lanes(low: Lowered, together: int, heads: int) -> Lowered:
    """The expressions with the head as a coordinate of the lanes, where several are computed
    together.
    """
    if together == 1:
        return low
    head = make("coord", (), 0, heads - 1, ("q", "head"))

    def spread(root: Node) -> Node:
        return substitute(root, {n: head for n in postorder(root) if n.op == "head"})

    return replace(
        low,
        keeps=tuple(tuple(spread(x) for x in row) for row in low.keeps),
        scores=tuple(tuple(None if x is None else spread(x) for x in r) for r in low.scores),
        sink=None if low.sink is None else spread(low.sink),
    )


def _of_one_split(opening: Sequence[str], depth: int) -> list[str]:
    """The lines that lead to a tile, its innermost loop cut to what one split takes of it."""
    at = max(i for i, line in enumerate(opening) if line.lstrip().startswith("for "))
    line = opening[at].lstrip()
    indent = " " * (len(opening[at]) - len(line))
    loop = ast.parse(f"{line} pass").body[0]
    assert isinstance(loop, ast.For)
    assert isinstance(loop.iter, ast.Call)
    low, high, *steps = (ast.get_source_segment(line, x) for x in loop.iter.args)
    step = "".join(f", {x}" for x in steps)
    prefix = "run_" if f"{low}, {high}" == "run_low, run_high" else ""
    ends = f"{prefix}low, {prefix}high"
    lines = [f"{ends} = part_of({low}, {high}{step or ', 1'}, split, splits)"]
    if depth + len(indent + lines[0]) > LINE:
        lines = [f"low = {low}", f"high = {high}"]
        lines.append(f"{ends} = part_of({ends}{step or ', 1'}, split, splits)")
    lines.append(f"{line[: line.index('range(')]}range({ends}{step}):")
    return [*opening[:at], *(indent + x for x in lines), *opening[at + 1 :]]


def _row_text(segment: Segment, grid: Grid) -> str:
    """The number of the tile that holds `at`, a token counted from the segment's first."""
    long, line = grid.tile.size[-1], segment.shape[-1]
    if len(segment.shape) == 1:
        return f"{{at}} // {long}"
    return f"{{at}} // {line} * {grid.shape[-1]} + {{at}} % {line} // {long}"
