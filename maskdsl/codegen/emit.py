"""One plan to one standalone Triton module: the forward kernel and what launches it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from maskdsl.codegen.arguments import data_of
from maskdsl.codegen.expressions import LINE
from maskdsl.codegen.frame import Frame
from maskdsl.codegen.header import comment_lines, facts
from maskdsl.codegen.lowered import lower
from maskdsl.codegen.opened import Opened
from maskdsl.codegen.operands import Dim
from maskdsl.codegen.rendering import digest, render
from maskdsl.codegen.spec import Spec, padded
from maskdsl.codegen.text import PRODUCT
from maskdsl.ir.nodes import Node
from maskdsl.planner import Plan

L2_BYTES = 32 << 20  # of what the tiles of one head walk, that heads running together may share


@dataclass(frozen=True)
class Emitted:
    """source: a Python module that needs torch and triton alone. kernel: the name of its kernel, or
    of its first.

    tables: constant arguments of its kernels by name: the walks (int32) and the pattern's tables.
    """

    source: str
    kernel: str
    tables: Mapping[str, np.ndarray]
    key: str


def emit(plan: Plan, spec: Spec) -> Emitted:
    """The forward kernel of a plan. Raises CompileError where the plan or the pattern is beyond
    kernels.
    """
    return Emission(plan, spec).emitted()


class Module:
    """One emitted module: what its templates say; `key` names it, `render` writes it."""

    template: str
    direction: str  # "forward", "dq" or "dkv"
    kernel: str
    frames: Sequence[Frame]
    context: dict[str, Any]

    def __init__(self, plan: Plan, spec: Spec, opened: Opened | None = None) -> None:
        self.plan, self.spec, self.opened = plan, spec, opened
        self.lowered = opened.lowered if opened else lower(plan)
        self.name = re.sub(r"\W", "_", plan.name)

    @property
    def merged(self) -> bool | None:
        """Whether descriptors see batch and heads as one axis; None where there are none."""
        boxes = [b for f in self.frames for b in f.all_boxes]
        return any(b.merged for b in boxes) if boxes else None

    @property
    def asks_inputs(self) -> bool:
        """Whether a call's inputs decide what is visited."""
        return any(f.by_inputs is not None for f in self.frames)

    @property
    def kernels(self) -> list[str]:
        """Names of the kernels."""
        return [f.kernel for f in self.frames]

    @cached_property
    def tables(self) -> dict[str, np.ndarray]:
        """Constant arguments by name."""
        found: dict[str, np.ndarray] = {}
        for f in self.frames:
            constant = {name: data_of(a) for name, a in f.arrays.items() if not a.is_input}
            found |= {**f.tables, **constant}
        return found

    @cached_property
    def key(self) -> str:
        """`name-shape-dtype-target-digest`: the digest is of the source."""
        program, spec = self.plan.program, self.spec
        sides = zip((program.queries, program.keys), self.open_sizes, strict=True)
        shapes = (size or "+".join("x".join(map(str, s.shape)) for s in x) for x, size in sides)
        dims = f"d{spec.head_dim}" + (
            f"v{spec.value_dim}" if spec.value_dim != spec.head_dim else ""
        )
        parts = [self.kernel, *dict.fromkeys(shapes), f"h{program.heads}", dims]
        return "-".join([*(p[:60] for p in parts), spec.dtype, spec.target, digest(self.text)])

    @property
    def proofs(self) -> Mapping[str, bool]:
        """What was proved, by name."""
        if self.opened is None:
            return self.plan.proofs
        return {"no_empty_row": self.opened.never_empty(self.plan)}

    @property
    def open_sizes(self) -> tuple[str, str]:
        """The variables with the extents of queries and of keys, where they are open."""
        return (self.opened.size("q"), self.opened.size("k")) if self.opened else ("", "")

    @property
    def lanes(self) -> tuple[int, int]:
        """Of the largest tiles of queries and of keys."""
        return plan_lanes(self.plan)

    @cached_property
    def text(self) -> str:
        """The module's text, formatted."""
        return render(self.template, self.context)

    def render(self) -> str:
        return self.text

    def emitted(self) -> Emitted:
        return Emitted(self.render(), self.kernel, self.tables, self.key)

    def shared_context(self, contexts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """What the templates of every module say of the plan. contexts: of its frames."""
        plan, spec = self.plan, self.spec
        settings = spec.settings(*self.lanes, self.direction)
        program = plan.program
        same = spec.value_dim == spec.head_dim
        used = set().union(*(f.helpers for f in self.frames))
        queries, keys = self.open_sizes
        group = program.heads // program.kv_heads
        return {
            "pattern": comment_lines(plan.source, plan.name),
            "constants": self._constants(),
            "direction": self.direction,
            "facts": facts(
                plan, spec, [f.walk for f in self.frames], settings, self.open_sizes, self.proofs
            ),
            "frames": contexts,
            "types": _types_of(contexts),
            "options": self._options(*settings),
            "queries": queries or "QUERIES",
            "queries_value": queries or "QUERIES.value",
            "query_tokens": 0 if queries else program.query_tokens,
            "keys": keys or program.key_tokens,
            "grouped_queries": f"{queries} * {group}" if queries else program.query_tokens * group,
            "sizes": self._sizes(),
            "heads": program.heads,
            "kv_heads": program.kv_heads,
            "group": group,
            "head": Dim(spec.head_dim, padded(spec.head_dim), "dims"),
            "value": Dim(spec.value_dim, padded(spec.value_dim), "dims" if same else "value_dims"),
            "helpers": sorted(used, key=_HELPERS.index),
            "line": LINE,
            "l2_bytes": L2_BYTES,
            "walk_note": "" if self.tables else " (none are needed)",
            "described": any(f.describes for f in self.frames),
            "merges": sorted({b.merged for f in self.frames for b in f.all_boxes}),
        }

    def _constants(self) -> list[tuple[str, int, str]]:
        """(name, value, comment) of the tiles' sizes and numbers."""
        found = []
        homes = {f.home for f in self.frames}
        for side, what in (("q", "queries"), ("k", "keys")):
            frame = next(f for f in self.frames if f.home == side or side not in homes)
            segments = frame.segments_of(side)
            grids = self.plan.q_grids if side == "q" else self.plan.kv_grids
            for number, (segment, grid) in enumerate(zip(segments, grids, strict=True)):
                names = tuple(n for n, _ in segment.axes)
                of = f" of {segment.name}" if len(segments) > 1 else ""
                block = frame.block_name(side, number)
                box = _box(names, grid.tile.size)
                found.append((block, grid.tile.lanes, f"{what} of a tile{of}{box}"))
        for f in self.frames:
            what = f.home_what
            if f.rows_name.isupper():
                found.append((f.rows_name, f.grid.count, f"tiles of {what}"))
        return found

    def _sizes(self) -> list[tuple[str, str]]:
        """What the launch tells of extents that are open: (name, text)."""
        if self.opened is None:
            return []
        rows = [
            (f.rows_name, f"triton.cdiv({self.opened.size(f.home)}, {f.home_block}.value)")
            for f in self.frames
            if not f.rows_name.isupper()
        ]
        return [*self.opened.sizes, *rows]

    def _options(self, warps: int, stages: int) -> str:
        """Launch options. Where the pattern keeps binary64, no product is fused with a sum."""
        fusion = ', "enable_fp_fusion": False' if self.lowered.exact else ""
        return f'"num_warps": {warps}, "num_stages": {stages}{fusion}'


class Emission(Module):
    """The module of the forward kernels: one for each segment of queries."""

    template = "forward.py.j2"
    direction = "forward"

    def __init__(self, plan: Plan, spec: Spec, opened: Opened | None = None) -> None:
        super().__init__(plan, spec, opened)
        self.kernel = f"{self.name}_forward"
        low = self.lowered
        numbers: dict[str, int] = {}
        self.frames = []
        for number in range(len(plan.program.queries)):
            roots = [
                _roots(low.score("q", number, away), low.sink if away == 0 else None)
                for away in range(len(plan.program.keys))
            ]
            self.frames.append(Frame(plan, spec, low, "q", number, roots, numbers, opened))
        tensors = ["q", "k", "v", "out"]
        contexts = [
            f.context(self.kernel + f.suffix, ["q"], ["k", "v"], ["out"], tensors, ["lse"])
            for f in self.frames
        ]
        for frame, context in zip(self.frames, contexts, strict=True):
            sink = frame.aways[0].printed.roots.get("sink")
            context["sink"] = "" if sink is None else sink.within(PRODUCT)
        self.context = {
            **self.shared_context(contexts),
            "title": f"Forward attention for the pattern `{plan.name}`, emitted by MaskDSL.",
            "sink": low.sink is not None,
        }


def _roots(score: Node | None, sink: Node | None) -> dict[str, Node]:
    return {n: x for n, x in (("score", score), ("sink", sink)) if x is not None}


def _types_of(contexts: Sequence[Mapping[str, Any]]) -> list[str]:
    """`"name": "type"` of the kernels' arguments that have one."""
    found = {a.name: a.type for f in contexts for a in f["arguments"] if a.type}
    return [f'"{name}": "{type_}"' for name, type_ in found.items()]


def plan_lanes(plan: Plan) -> tuple[int, int]:
    """Lanes of the largest tiles of queries and of keys."""
    return tuple(max(g.tile.lanes for g in grids) for grids in (plan.q_grids, plan.kv_grids))  # type: ignore[return-value]


_HELPERS = [
    "floor_div", "floor_mod", "int_pow", "bit_length", "bit_count", "int64_or_0", "finite_or_0",
    "tanh", "fold", "fmix", "uniform",
]  # fmt: skip


def _box(names: tuple[str, ...], size: tuple[int, ...]) -> str:
    if len(size) == 1:
        return ""
    return ": " + " x ".join(f"{n} {name}" for name, n in zip(names, size, strict=True))
