"""What a program holds and what it walks: a tile of one side (home), tiles of the other (away)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from maskdsl.codegen.arguments import arguments_of
from maskdsl.codegen.boxes import (
    all_of,
    axes_of,
    coordinate_name,
    lane_span,
    lane_token,
    token,
)
from maskdsl.codegen.expressions import print_roots
from maskdsl.codegen.input_gradients import Read, added, arguments_for
from maskdsl.codegen.loops import Dim, Operand, loop_of, mask_of
from maskdsl.codegen.lowered import Lowered
from maskdsl.codegen.sides import Stage, by_sides
from maskdsl.codegen.spec import Spec, padded
from maskdsl.codegen.text import PRODUCT
from maskdsl.codegen.walk import make_walk
from maskdsl.ir.logic import TRUE
from maskdsl.ir.nodes import Node, depends_on
from maskdsl.planner import Plan

_AWAY = {"q": "k", "k": "q"}
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


class Frame:
    """One kernel of a module: its walk, its expressions, its tiles; `context` is for templates."""

    def __init__(
        self,
        plan: Plan,
        spec: Spec,
        lowered: Lowered,
        home: str,
        roots: Mapping[str, Node],
        numbers: dict[str, int],
    ) -> None:
        self.plan, self.spec, self.roots = plan, spec, roots
        self.home, self.away = home, _AWAY[home]
        program = plan.program
        self.walk = make_walk(plan, home)
        # a key head's gradients sum over the query heads that share it
        self.shared = home == "k" and program.heads > program.kv_heads
        self.depth = 8 if self.shared else 4
        axes = {"q": program.query_axes, "k": program.key_axes}
        names = {side: tuple(n for n, _ in axes[side]) for side in axes}
        grids = {"q": plan.q_grid_, "k": plan.kv_grid_}
        coordinates = {(s, n): coordinate_name(s, n) for s in axes for n in names[s]}
        expressions = {n: (by_sides(x), False) for n, x in roots.items()}
        if lowered.keep != TRUE and self.walk.partial.mode != "none":
            expressions = {"keep": (by_sides(lowered.keep), True), **expressions}
        last = names[self.away][-1]
        self.printed = print_roots(expressions, coordinates, last, home, numbers)
        self.arrays = dict(sorted(self.printed.arrays.items()))
        indexing = self.printed.indexing
        self.home_grid, self.away_grid = grids[home], grids[self.away]
        self.home_axes, self.away_axes = (
            axes_of(side, names[side], grids[side], side == home, side in indexing)
            for side in (home, self.away)
        )
        same = spec.value_dim == spec.head_dim
        self.head = Dim(spec.head_dim, padded(spec.head_dim), "dims")
        self.value = Dim(spec.value_dim, padded(spec.value_dim), "dims" if same else "value_dims")

    def context(
        self,
        kernel: str,
        held: Sequence[str],
        walked: Sequence[str],
        stored: Sequence[str],
        tensors: Sequence[str],
        per_query: Sequence[str],
        reads: Sequence[Read] = (),
    ) -> dict[str, Any]:
        """What the kernel's templates say.

        held: tensors whose tile a program loads; walked: those of which it loads tile after tile;
        stored: those of which it writes a tile. tensors, per_query: see `arguments_of`. reads:
        those of inputs whose gradients it adds to.
        """
        walk, printed, plan = self.walk, self.printed, self.plan
        inside = all_of(self.home_axes)
        operands = [self.operand(n) for n in walked]
        loops = [
            loop_of(kind, walk, printed, self.away_axes, operands, self.depth)
            for kind, visits in (("full", walk.full), ("partial", walk.partial))
            if visits.mode != "none"
        ]
        away_grid = self.away_grid
        known = [*printed.of(Stage.ONCE, *printed.roots), *printed.of(Stage.ROW, *printed.roots)]
        programs = "KV_HEADS" if self.shared else "HEADS"
        batch_heads = f"batch * {programs}.value"
        rising = self.spec.rising
        adds = added(reads, printed, inside and f"{self.home}_inside")
        texts = " ".join([printed.text, *(a.mask for a in adds)])
        arguments = arguments_of(
            self.spec.dtype, tensors, per_query, batch_heads, walk, self.arrays, texts
        )
        arguments += arguments_for(adds)
        roots = printed.roots
        return {
            "kernel": kernel,
            "home": self.home,
            "away": self.away,
            "shared": self.shared,
            "depth": self.depth,
            "batch_heads": batch_heads,
            "rows": "ROWS" if self.home == "q" else "COLUMNS",
            "rows_table": walk.table("rows"),
            "row": "member_row" if self.shared and walk.classes > 1 else "row",
            "classes": walk.classes,
            "in_order": walk.in_order,
            "even": walk.even,
            "order": _order(walk.even),
            "home_what": _NAMES[self.home],
            "walked": operands,
            "walked_what": " and ".join(_WORDS[n] for n in walked),
            "held": [self._placed(n, inside) for n in held],
            "stored": [self._placed(n, inside) for n in stored],
            "arguments": arguments,
            "added": adds,
            "tensors": list(tensors),
            "per_query": list(per_query),
            "once": printed.of(Stage.ONCE, *roots),
            "row_statements": printed.of(Stage.ROW, *roots),
            "home_axes": self.home_axes,
            "away_axes": self.away_axes,
            "home_token": token([a.name for a in self.home_axes], self.home_grid, "tl.int64"),
            "away_token": token([a.first_wrap for a in self.away_axes], away_grid, "tl.int64"),
            "away_lane_tokens": token([a.name for a in self.away_axes], away_grid, "tl.int64"),
            "lane_token": lane_token(self.away_axes, away_grid),
            "lane_span": lane_span(away_grid),
            "step": away_grid.tile.span[-1],
            "home_inside": inside,
            "head": self.head,
            "value": self.value,
            "folded": "score" not in roots and rising,
            "score": self._score(),
            "slope": roots["slope"].within(PRODUCT) if "slope" in roots else "",
            "precision": ', input_precision="ieee"' if self.spec.dtype == "float32" else "",
            "may_be_empty": not plan.proofs["no_empty_row"],
            "loops": loops,
            "offsets": any(not x.addresses for x in loops),
            "per_member": self.shared and any(re.search(r"\bhead\b", s.text) for s in known),
        }

    def operand(self, name: str) -> Operand:
        """A tensor as this kernel addresses it."""
        program = self.plan.program
        of_keys = name in ("k", "v", "dk", "dv")
        number = "kv_head" if of_keys and program.heads > program.kv_heads else "head"
        several = (program.kv_heads if of_keys else program.heads) > 1
        dim = self.value if name in ("v", "out", "do", "dv") else self.head
        head = f" + {number}.to(tl.int64) * {name}_strides[1]" if several else ""
        return Operand(name, *_TILES[name], dim, head)

    def _placed(self, name: str, inside: str) -> tuple[Operand, str]:
        """(operand, which elements of its home tile exist)"""
        x = self.operand(name)
        return x, mask_of(inside and f"{self.home}_inside", x.dim)

    def _score(self) -> str:
        """The logit in base 2, from the score's text."""
        text = self.printed.roots.get("score")
        if text is None:
            return ""
        scaled = f"{text.within(PRODUCT)} * LOG2E"
        if depends_on([self.roots["score"]], "logit"):
            return scaled
        return f"{_pairs(self.home)} + {scaled}"  # one logit for many pairs


_WORDS = {"q": "queries", "k": "keys", "v": "values", "do": "gradients of the output"}


def _pairs(home: str) -> str:
    """A tile of zeros, home tokens by away tokens."""
    return f"tl.zeros([BLOCK_{home.upper()}, BLOCK_{_AWAY[home].upper()}], tl.float32)"


def _order(even: bool) -> str:
    if even:
        return "one head after the other"
    return "the longest rows first, for as many heads as the L2 cache holds"
