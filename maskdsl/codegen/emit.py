"""One plan to one standalone Triton module: the forward kernel and what launches it."""

from __future__ import annotations

import math
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
from maskdsl.codegen.loops import Dim
from maskdsl.codegen.lowered import lower
from maskdsl.codegen.rendering import digest, render
from maskdsl.codegen.spec import Spec, padded
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
    kernel: str
    frames: Sequence[Frame]
    context: dict[str, Any]

    def __init__(self, plan: Plan, spec: Spec) -> None:
        self.plan, self.spec = plan, spec
        self.lowered = lower(plan)
        self.name = re.sub(r"\W", "_", plan.name)

    @cached_property
    def tables(self) -> dict[str, np.ndarray]:
        """Constant arguments by name."""
        found: dict[str, np.ndarray] = {}
        for f in self.frames:
            constant = {name: data_of(a) for name, a in f.arrays.items() if not a.is_input}
            found |= {**f.walk.tables(), **constant}
        return found

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
        return render(self.template, self.context)

    def emitted(self) -> Emitted:
        return Emitted(self.render(), self.kernel, self.tables, self.key)

    def shared_context(self) -> dict[str, Any]:
        """What the templates of every module say of the plan."""
        plan, spec = self.plan, self.spec
        program = plan.program
        same = spec.value_dim == spec.head_dim
        names = [tuple(n for n, _ in a) for a in (program.query_axes, program.key_axes)]
        q_tile, k_tile = plan.q_grid_.tile, plan.kv_grid_.tile
        used = set().union(*(f.printed.helpers for f in self.frames))
        return {
            "pattern": comment_lines(plan.source),
            "block_q": q_tile.lanes,
            "block_k": k_tile.lanes,
            "q_box": _box(names[0], q_tile.size),
            "k_box": _box(names[1], k_tile.size),
            "rows": plan.q_tiles,
            "columns": plan.kv_tiles,
            "queries": math.prod(program.query_shape),
            "keys": math.prod(program.key_shape),
            "heads": program.heads,
            "kv_heads": program.kv_heads,
            "group": program.heads // program.kv_heads,
            "head": Dim(spec.head_dim, padded(spec.head_dim), "dims"),
            "value": Dim(spec.value_dim, padded(spec.value_dim), "dims" if same else "value_dims"),
            "helpers": sorted(used, key=_HELPERS.index),
            "line": LINE,
            "l2_bytes": L2_BYTES,
            "walk_note": "" if self.tables else " (none are needed)",
        }

    def options(self, warps: int, stages: int) -> str:
        """Launch options. Where the pattern keeps binary64, no product is fused with a sum."""
        fusion = ', "enable_fp_fusion": False' if self.lowered.exact else ""
        return f'"num_warps": {warps}, "num_stages": {stages}{fusion}'


class Emission(Module):
    """The module of the forward kernel."""

    template = "forward.py.j2"

    def __init__(self, plan: Plan, spec: Spec) -> None:
        super().__init__(plan, spec)
        self.kernel = f"{self.name}_forward"
        low = self.lowered
        roots = {n: x for n, x in (("score", low.score), ("sink", low.sink)) if x is not None}
        frame = Frame(plan, spec, low, "q", roots, {})
        self.frames = [frame]
        settings = spec.settings(plan.q_grid_.tile.lanes, plan.kv_grid_.tile.lanes)
        self.context = {
            **self.shared_context(),
            "title": f"Forward attention for the pattern `{plan.name}`, emitted by MaskDSL.",
            "facts": facts(plan, spec, frame.walk, settings),
            "f": frame.context(
                self.kernel, ["q"], ["k", "v"], ["out"], ["q", "k", "v", "out"], ["lse"]
            ),
            "sink": frame.printed.roots["sink"].text if low.sink is not None else "",
            "options": self.options(*settings),
            "backward": False,
        }


_HELPERS = [
    "floor_div", "floor_mod", "int_pow", "bit_length", "bit_count", "int64_or_0", "finite_or_0",
    "tanh", "fold", "fmix", "uniform",
]  # fmt: skip


def _box(names: tuple[str, ...], size: tuple[int, ...]) -> str:
    if len(size) == 1:
        return ""
    return ": " + " x ".join(f"{n} {name}" for name, n in zip(names, size, strict=True))
