"""One plan to one standalone Triton module: the forward kernel and what launches it."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from maskdsl.codegen.arguments import arguments_of, data_of
from maskdsl.codegen.boxes import (
    all_of,
    axes_of,
    coordinate_name,
    lane_span,
    lane_token,
    token,
)
from maskdsl.codegen.expressions import Printed, print_roots
from maskdsl.codegen.header import comment_lines, facts
from maskdsl.codegen.loops import Dim, Loop, loop_of, mask_of
from maskdsl.codegen.rendering import digest, render
from maskdsl.codegen.sides import Stage, by_sides
from maskdsl.codegen.spec import Spec, padded
from maskdsl.codegen.tabulate import left_over, tabulate, tabulate_ints
from maskdsl.codegen.text import PRODUCT
from maskdsl.codegen.walk import Walk, make_walk
from maskdsl.errors import CompileError
from maskdsl.ir.integers import integer
from maskdsl.ir.logic import TRUE
from maskdsl.ir.nodes import Node, depends_on, postorder
from maskdsl.ir.rewrite import substitute
from maskdsl.planner import Plan

L2_BYTES = 32 << 20  # of keys and values that heads running together may share


@dataclass(frozen=True)
class Emitted:
    """source: a Python module that needs torch and triton alone. kernel: the name of its kernel.

    tables: constant arguments of the kernel by name: the walk (int32) and the pattern's tables.
    """

    source: str
    kernel: str
    tables: Mapping[str, np.ndarray]
    key: str


def emit(plan: Plan, spec: Spec) -> Emitted:
    """The forward kernel of a plan. Raises CompileError where the plan or the pattern is beyond
    kernels.
    """
    e = Emission(plan, spec)
    return Emitted(e.render(), e.kernel, e.tables, e.key)


class Emission:
    """Everything the templates say of one plan, worked out; `key` names it, `render` writes it."""

    def __init__(self, plan: Plan, spec: Spec) -> None:
        self.plan, self.spec = plan, spec
        _supported(plan)
        program = plan.program
        self.walk: Walk = make_walk(plan)
        self.keep, self.score = _lowered(plan)
        self.exact = left_over(self.keep, self.score)
        self.printed = self._print()
        indexing = self.printed.indexing
        names = [tuple(n for n, _ in a) for a in (program.query_axes, program.key_axes)]
        q_grid, k_grid = plan.q_grid_, plan.kv_grid_
        self.q_axes = axes_of("q", names[0], q_grid, "tile", "q" in indexing)
        self.k_axes = axes_of("k", names[1], k_grid, "first", "k" in indexing)
        q_lanes, k_lanes = q_grid.tile.lanes, k_grid.tile.lanes
        settings = spec.settings(q_lanes, k_lanes)
        self.kernel = re.sub(r"\W", "_", plan.name) + "_forward"
        folded = self.score is None and spec.rising
        lanes = padded(spec.head_dim), padded(spec.value_dim)
        self.head = Dim(spec.head_dim, lanes[0], "dims")
        same = spec.value_dim == spec.head_dim
        self.value = Dim(spec.value_dim, lanes[1], "dims" if same else "value_dims")
        self.arrays = dict(sorted(self.printed.arrays.items()))
        self.q_inside = all_of(self.q_axes)
        loops = self._loops()
        self.context: dict[str, Any] = {
            "kernel": self.kernel,
            "title": f"Forward attention for the pattern `{plan.name}`, emitted by MaskDSL.",
            "pattern": comment_lines(plan.source),
            "facts": facts(plan, spec, self.walk, settings),
            "block_q": q_lanes,
            "block_k": k_lanes,
            "q_box": _box(names[0], q_grid.tile.size),
            "k_box": _box(names[1], k_grid.tile.size),
            "rows": plan.q_tiles,
            "queries": math.prod(program.query_shape),
            "keys": math.prod(program.key_shape),
            "heads": program.heads,
            "kv_heads": program.kv_heads,
            "group": program.heads // program.kv_heads,
            "classes": self.walk.classes,
            "in_order": self.walk.in_order,
            "even": self.walk.even,
            "order": self._order(),
            "helpers": sorted(self.printed.helpers, key=_HELPERS.index),
            "arguments": arguments_of(spec.dtype, self.walk, self.arrays, self.printed.text),
            "once": self.printed.of(Stage.ONCE, *self.printed.roots),
            "row": self.printed.of(Stage.ROW, *self.printed.roots),
            "q_axes": self.q_axes,
            "k_axes": self.k_axes,
            "q_token": token([a.name for a in self.q_axes], q_grid, "tl.int64"),
            "k_token": token([a.first_wrap for a in self.k_axes], k_grid, "tl.int64"),
            "k_lane_token": token([a.name for a in self.k_axes], k_grid, "tl.int64"),
            "lane_token": lane_token(self.k_axes, k_grid),
            "lane_span": lane_span(k_grid),
            "token_step": k_grid.tile.span[-1],
            "coordinate_step": k_grid.tile.span[-1],
            "q_inside": self.q_inside,
            "q_mask": mask_of(self.q_inside and "q_inside", self.head),
            "out_mask": mask_of(self.q_inside and "q_inside", self.value),
            "head": self.head,
            "value": self.value,
            "folded": folded,
            "score": self._score(),
            "precision": ', input_precision="ieee"' if spec.dtype == "float32" else "",
            "may_be_empty": not plan.proofs["no_empty_row"],
            "loops": loops,
            "offsets": any(not x.addresses for x in loops),
            "l2_bytes": L2_BYTES,
            "walk_note": "" if self.walk.tables() else " (none are needed)",
            "options": self._options(*settings),
            **self._heads(),
        }

    @cached_property
    def tables(self) -> dict[str, np.ndarray]:
        """Constant arguments by name."""
        constant = {name: data_of(a) for name, a in self.arrays.items() if not a.is_input}
        return {**self.walk.tables(), **constant}

    @cached_property
    def key(self) -> str:
        """`name-shape-dtype-target-digest`: the digest covers all that the source depends on."""
        program, spec = self.plan.program, self.spec
        shapes = ("x".join(map(str, s)) for s in (program.query_shape, program.key_shape))
        dims = f"d{spec.head_dim}" + (
            f"v{spec.value_dim}" if spec.value_dim != spec.head_dim else ""
        )
        parts = [self.kernel, *dict.fromkeys(shapes), f"h{program.heads}", dims]
        return "-".join([*(p[:60] for p in parts), spec.dtype, spec.target, digest(self.context)])

    def render(self) -> str:
        """The module's text, formatted."""
        return render("forward.py.j2", self.context)

    # parts of the context

    def _print(self) -> Printed:
        program = self.plan.program
        roots: dict[str, tuple[Node, bool]] = {}
        if self.keep != TRUE and self.walk.partial.mode != "none":
            roots["keep"] = by_sides(self.keep), True
        if self.score is not None:
            roots["score"] = by_sides(self.score), False
        coordinates = {
            (side, axis): coordinate_name(side, axis)
            for side, axes in (("q", program.query_axes), ("k", program.key_axes))
            for axis, _ in axes
        }
        return print_roots(roots, coordinates, program.key_axes[-1][0])

    def _loops(self) -> list[Loop]:
        kinds = (("full", self.walk.full), ("partial", self.walk.partial))
        return [
            loop_of(kind, visits, self.printed, self.k_axes, self.head, self.value)
            for kind, visits in kinds
            if visits.mode != "none"
        ]

    def _score(self) -> str:
        """The logit in base 2, from the score's text."""
        text = self.printed.roots.get("score")
        if not text:
            return ""
        scaled = f"{text.within(PRODUCT)} * LOG2E"
        if self.score is not None and depends_on([self.score], "logit"):
            return scaled
        return f"tl.zeros([BLOCK_Q, BLOCK_K], tl.float32) + {scaled}"  # one logit for many pairs

    def _heads(self) -> dict[str, str]:
        """The head's part of each base address."""
        program = self.plan.program
        text = " + {}.to(tl.int64) * {}_strides[1]"
        kv_head = "kv_head" if program.heads > program.kv_heads else "head"
        own, shared = program.heads > 1, program.kv_heads > 1
        return {
            "head_of_q": text.format("head", "q") if own else "",
            "head_of_out": text.format("head", "out") if own else "",
            "head_of_k": text.format(kv_head, "k") if shared else "",
            "head_of_v": text.format(kv_head, "v") if shared else "",
        }

    def _options(self, warps: int, stages: int) -> str:
        """Launch options. Where the pattern keeps binary64, no product is fused with a sum."""
        fusion = ', "enable_fp_fusion": False' if self.exact else ""
        return f'"num_warps": {warps}, "num_stages": {stages}{fusion}'

    def _order(self) -> str:
        if self.walk.even:
            return "one head after the other"
        return "the longest rows first, for as many heads as the L2 cache holds"


_HELPERS = [
    "floor_div", "floor_mod", "int_pow", "bit_length", "bit_count", "int64_or_0", "finite_or_0",
    "tanh", "fold", "fmix", "uniform",
]  # fmt: skip


def _supported(plan: Plan) -> None:
    """Raises CompileError for what these kernels do not have."""
    if plan.program.segmented:
        raise CompileError("triton kernels of several segments are not supported yet")
    if plan.program.sink is not None:
        raise CompileError("triton kernels with a sink are not supported yet")


def _lowered(plan: Plan) -> tuple[Node, Node | None]:
    """keep and score as kernels evaluate them: of one head where all heads are alike, floats
    tabulated.
    """
    program = plan.program
    keep, score = program.keep, program.score
    if len(plan.head_classes) == 1:
        keep = plan.head_classes[0].keep
    if program.heads == 1:
        heads = {
            n: integer(0) for n in postorder(keep, *([score] if score else [])) if n.op == "head"
        }
        keep = substitute(keep, heads)
        score = substitute(score, heads) if score else None
    return tabulate(keep), tabulate_ints(score) if score else None


def _box(names: tuple[str, ...], size: tuple[int, ...]) -> str:
    if len(size) == 1:
        return ""
    return ": " + " x ".join(f"{n} {name}" for name, n in zip(names, size, strict=True))
