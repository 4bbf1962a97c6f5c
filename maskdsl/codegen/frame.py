"""What a program holds and what it walks: a tile of one side (home), tiles of the other (away)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from maskdsl.codegen.arguments import Argument, arguments_of
from maskdsl.codegen.away import Away
from maskdsl.codegen.boxes import (
    Axis,
    all_of,
    axes_of,
    lane_span,
    token,
)
from maskdsl.codegen.closed import closed_walk
from maskdsl.codegen.descriptors import Boxes, boxes_of
from maskdsl.codegen.expressions import Statement
from maskdsl.codegen.input_gradients import Added, Read, added, arguments_for
from maskdsl.codegen.input_walk import InputWalk, asks_inputs
from maskdsl.codegen.lowered import Lowered
from maskdsl.codegen.opened import Opened
from maskdsl.codegen.operands import Dim, Operand, mask_of
from maskdsl.codegen.sides import Stage
from maskdsl.codegen.spec import Spec, padded
from maskdsl.codegen.walk import Walk, make_walk
from maskdsl.ir.nodes import Node
from maskdsl.ir.program import Segment
from maskdsl.planner import Grid, Plan

_NAMES = {"q": "queries", "k": "keys"}
_TILES = {  # tensor: variable with a tile of it, variable that says which elements exist
    "q": ("q", "queries_inside"),
    "k": ("keys", "keys_inside"),
    "v": ("values", "values_inside"),
    "out": ("out", "outs_inside"),
    "do": ("do", "grads_inside"),
    "dq": ("dq", ""),
    "dk": ("dk", ""),
    "dv": ("dv", ""),
}
_OF_KEYS = ("k", "v", "dk", "dv")


class Frame:
    """One kernel of a module: its walk, its expressions, its tiles; `context` is for templates.

    home: the side whose tile a program holds; number: of the segment. roots: per segment of the
    other side, what is evaluated besides `keep`. numbers: of tables without a name.
    """

    def __init__(
        self, plan: Plan, spec: Spec, lowered: Lowered, home: str, number: int,
        roots: Sequence[Mapping[str, Node]], numbers: dict[str, int], opened: Opened | None = None,
    ) -> None:  # fmt: skip
        self.plan, self.spec, self.lowered, self.opened = plan, spec, lowered, opened
        self.home, self.number, self.numbers = home, number, numbers
        self.counts: dict[Stage, int] = {}
        program = plan.program
        self.walk = self._walk()
        # a key head's gradients sum over the query heads that share it
        self.shared = home == "k" and program.heads > program.kv_heads
        self.depth = 8 if self.shared else 4
        self.row = "member_row" if self.shared and self.walk.classes > 1 else "row"
        self.segment = self.segments_of(home)[number]
        axes, self.grid = self._held()
        self.names = tuple(n for n, _ in axes)
        self.own_sizes = {(home, n): size or 0 for n, size in axes}
        self.home_block = self.block_name(home, number)
        self.by_inputs: InputWalk | None = None
        if self._asks_inputs():
            others = plan.kv_grid_ if home == "q" else plan.q_grid_
            self.by_inputs = InputWalk(home, self.rows_name, self.walk.classes, others)
        self.closed = opened.walk(plan, home) if opened else None
        if not (opened or self.by_inputs):
            self.closed = closed_walk(plan, home)
        if self.closed is not None or self.by_inputs is not None:
            mode = "closed" if self.closed is not None else "inputs"
            self.walk = self.walk.without_tables(mode, always=self.closed is None or bool(opened))
        if opened and self.walk.order == "table":  # which extents would have another one
            self.walk = self.walk.as_it_lies()
        same = spec.value_dim == spec.head_dim
        self.head = Dim(spec.head_dim, padded(spec.head_dim), "dims")
        self.value = Dim(spec.value_dim, padded(spec.value_dim), "dims" if same else "value_dims")
        self.aways = [Away(self, i, r) for i, r in enumerate(roots)]
        self.arrays = {n: a for x in self.aways for n, a in sorted(x.printed.arrays.items())}
        indexing = any(home in x.printed.indexing for x in self.aways)
        size = opened.size(home) if opened else ""
        self.axes = axes_of(home, self.names, self.grid, True, indexing, self.home_block, size)

    def _asks_inputs(self) -> bool:
        """Whether the kernel is told at a call which tiles its inputs leave to visit."""
        return asks_inputs(self.plan)

    def _walk(self) -> Walk:
        """The rows of the home segment."""
        return make_walk(self.plan, self.home, self.number)

    def _held(self) -> tuple[Sequence[tuple[str, int | None]], Grid]:
        """(name, extent) of the home tile's axes, and the grid of such tiles."""
        grids = self.plan.q_grids if self.home == "q" else self.plan.kv_grids
        return self.segment.axes, grids[self.number]

    @property
    def suffix(self) -> str:
        """What tells the kernels of a side's segments apart."""
        return f"_{self.segment.name}" if len(self.segments_of(self.home)) > 1 else ""

    def segments_of(self, side: str) -> tuple[Segment, ...]:
        return self.plan.program.queries if side == "q" else self.plan.program.keys

    def block_name(self, side: str, number: int) -> str:
        """The constant with the lanes of a segment's tiles."""
        segments = self.segments_of(side)
        name = f"_{segments[number].name}".upper() if len(segments) > 1 else ""
        return f"BLOCK_{side.upper()}{name}"

    @property
    def tables(self) -> dict[str, Any]:
        return self.walk.tables()

    @property
    def helpers(self) -> set[str]:
        own = self.closed.helpers if self.closed else set()
        return set(own).union(*(x.printed.helpers for x in self.aways))

    def context(
        self, kernel: str, held: Sequence[str], walked: Sequence[str], stored: Sequence[str],
        tensors: Sequence[str], per_query: Sequence[str], reads: Sequence[Sequence[Read]] = (),
    ) -> dict[str, Any]:  # fmt: skip
        """What the kernel's templates say.

        held: tensors whose tile a program loads; walked: those of which it loads tile after tile;
        stored: those of which it writes a tile. tensors, per_query: see `arguments_of`. reads:
        those of inputs whose gradients it adds to, per segment walked.
        """
        self.kernel = kernel
        inside = all_of(self.axes)
        aways = [x.context(walked) for x in self.aways]
        known = self._known(Stage.ONCE) + self._known(Stage.ROW)
        programs = "KV_HEADS" if self.shared else "HEADS"
        batch_heads = f"batch * {programs}.value"
        adds: list[Added] = []
        for away, own, context in zip(self.aways, reads, aways, strict=False):
            context["added"] = added(own, away.printed, inside and f"{self.home}_inside")
            adds += context["added"]
        texts = " ".join([*(x.printed.text for x in self.aways), *(a.mask for a in adds)])
        operands = [
            x
            for n in tensors
            for x in (
                [self._home_operand(n)]
                if n in (*held, *stored)
                else [self.operand(n, away) for away in self.aways]
            )
        ]
        arguments = arguments_of(
            self.spec.dtype, operands, per_query, batch_heads, self.walk, self.arrays, texts
        )
        if self.by_inputs is not None:
            arguments += self.by_inputs.arguments()
        told: list[str] = []
        if self.opened is not None:
            told = [name for name, _ in self.opened.sizes]
            told += [self.rows_name] if self.opened.size(self.home) else []
            arguments += [Argument(name, name) for name in told]
        arguments += arguments_for(adds)
        scored = any(x is not None for row in self.lowered.scores for x in row)
        return {
            "kernel": kernel,
            "home": self.home,
            "block": self.home_block,
            "lane": f"{self.home}_lane",
            "shared": self.shared,
            "batch_heads": batch_heads,
            "rows": self.rows_name,
            "rows_value": self.rows_name + (".value" if self.rows_name.isupper() else ""),
            "rows_table": self.walk.table("rows"),
            "classes": self.walk.classes,
            "order": self.walk.order,
            "even": self.walk.even,
            "order_what": _order(self.walk.even),
            "home_what": self.home_what,
            "aways": aways,
            "walks": any(x["loops"] for x in aways),
            "held": [self._placed(n, inside) for n in held],
            "stored": [self._placed(n, inside) for n in stored],
            "arguments": arguments,
            "told": told,
            "added": adds,
            "pointers": [x.name for x in operands if x.boxes is None],
            "once": self._known(Stage.ONCE),
            "row_statements": self._known(Stage.ROW),
            "axes": self.axes,
            "token": token([a.name for a in self.axes], self.grid, "tl.int64",
                           self.segment.offset),
            "lane_span": max(lane_span(x.grid) for x in self.aways),
            "home_inside": inside,
            "head": self.head,
            "value": self.value,
            "folded": not scored and self.spec.rising,
            "closed": self.closed,
            "precision": f', input_precision="{self.spec.precision}"'
            if self.spec.dtype == "float32"
            else "",
            "may_be_empty": not self._never_empty,
            "per_member": self.shared and any(re.search(r"\bhead\b", s.text) for s in known),
        }  # fmt: skip

    @property
    def _never_empty(self) -> bool:
        opened = self.opened
        return opened.never_empty(self.plan) if opened else self.plan.proofs["no_empty_row"]

    @property
    def home_what(self) -> str:
        """What the program holds, in words."""
        return _NAMES[self.home] + (f" of {self.segment.name}" if self.suffix else "")

    @property
    def all_boxes(self) -> list[Boxes]:
        """Of every tensor that descriptors see."""
        operands = [self._home_operand("q"), *(self.operand("k", x) for x in self.aways)]
        return [x.boxes for x in operands if x.boxes is not None]

    @property
    def rows_name(self) -> str:
        if self.opened is not None and self.opened.size(self.home):
            return "rows" if self.home == "q" else "columns"
        return ("ROWS" if self.home == "q" else "COLUMNS") + self.suffix.upper()

    def _known(self, stage: Stage) -> list[Statement]:
        return [s for x in self.aways for s in x.printed.of(stage, *x.printed.roots)]

    def operand(self, name: str, away: Away) -> Operand:
        """A tensor of which this kernel walks tiles, in one segment."""
        return self._operand(name, away.axes, away.grid, away.block, away.segment)

    def _home_operand(self, name: str) -> Operand:
        return self._operand(name, self.axes, self.grid, self.home_block, self.segment)

    def _operand(
        self, name: str, axes: list[Axis], grid: Grid, block: str, segment: Segment
    ) -> Operand:
        program = self.plan.program
        of_keys = name in _OF_KEYS
        grouped = program.heads > program.kv_heads
        number = "kv_head" if of_keys and grouped else "head"
        several = (program.kv_heads if of_keys else program.heads) > 1
        dim = self.value if name in ("v", "out", "do", "dv") else self.head
        head = f" + {number}.to(tl.int64) * {name}_strides[1]" if several else ""
        boxes = boxes_of(axes, grid) if self.describes else None
        size = self.opened.size("k" if of_keys else "q") if self.opened else ""
        if boxes is not None and size:
            boxes = replace(boxes, extents=(size,))
        at = ""
        if boxes is not None:
            place = f"batch, {number if several else 0}"
            if boxes.merged:
                place = "batch_head"
                if of_keys and grouped and not self.shared:
                    place = "batch * KV_HEADS + kv_head"
                if self.shared and not of_keys:
                    place = "batch * HEADS + head"
            at = ", ".join([place, *boxes.at, "0"])
        several = len(program.keys if of_keys else program.queries) > 1
        part = (segment.name or "") if several else ""
        return Operand(name, *_TILES[name], dim, head, block, boxes, at, part, segment.offset)

    @property
    def describes(self) -> bool:
        """Whether descriptors load and store this kernel's tiles: all of them, or none."""
        grids = (*self.plan.q_grids, *self.plan.kv_grids)
        return self.spec.copies_boxes and all(can_be_boxes(g) for g in grids)

    def _placed(self, name: str, inside: str) -> tuple[Operand, str]:
        """(operand, which elements of its home tile exist)"""
        x = self._home_operand(name)
        return x, mask_of(inside and f"{self.home}_inside", x.dim)


def can_be_boxes(grid: Grid) -> bool:
    """Whether a grid's tiles are boxes that a descriptor loads."""
    names = tuple(f"a{i}" for i in range(len(grid.shape)))
    return boxes_of(axes_of("q", names, grid, True, False, ""), grid) is not None


def _order(even: bool) -> str:
    if even:
        return "one head after the other"
    return "the longest rows first, for as many heads as the L2 cache holds"
