"""One segment that a kernel walks, tile after tile: its expressions, coordinates and loops."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from maskdsl.codegen.boxes import axes_of, coordinate_name, first_token, lane_token, token
from maskdsl.codegen.expressions import print_roots
from maskdsl.codegen.implied import outside_is_left_out
from maskdsl.codegen.loops import Loop, Table, Walked, loop_of, opening_of
from maskdsl.codegen.operands import Operand
from maskdsl.codegen.sides import by_sides
from maskdsl.codegen.text import PRODUCT
from maskdsl.ir.logic import TRUE
from maskdsl.ir.nodes import Node, depends_on

if TYPE_CHECKING:
    from maskdsl.codegen.frame import Frame

_WORDS = {"q": "queries", "k": "keys", "v": "values", "do": "gradients of the output"}


class Away:
    """One segment that a kernel walks: its expressions, axes and loops."""

    def __init__(self, frame: Frame, number: int, roots: Mapping[str, Node]) -> None:
        self.frame, self.number, self.roots = frame, number, roots
        self.side = "k" if frame.home == "q" else "q"
        plan = frame.plan
        self.segment = frame.segments_of(self.side)[number]
        self.grid = (plan.kv_grids if self.side == "k" else plan.q_grids)[number]
        self.block = frame.block_name(self.side, number)
        names = tuple(n for n, _ in self.segment.axes)
        both = ((self.side, names), (frame.home, frame.names))
        coordinates = {(side, n): coordinate_name(side, n) for side, own in both for n in own}
        coordinates |= {("size", n): f"{n}_size" for _, own in both for n in own}
        keep = frame.lowered.keep(frame.home, frame.number, number)
        expressions = {n: (by_sides(x), False) for n, x in roots.items()}
        visits = frame.walk.visits[number]
        if keep != TRUE and visits["partial"].mode != "none":
            expressions = {"keep": (by_sides(keep), True), **expressions}
        self.printed = print_roots(
            expressions, coordinates, names[-1], frame.home, frame.numbers, frame.counts
        )
        indexing = self.side in self.printed.indexing
        opened = frame.opened
        size = opened.size(self.side) if opened else ""
        self.axes = axes_of(self.side, names, self.grid, False, indexing, self.block, size)
        # coordinates that index memory are moved inside, where the pattern may keep them
        self.implied = (
            not indexing
            and opened is None
            and outside_is_left_out(keep, self.side, names, self.grid, frame.own_sizes)
        )

    def context(self, walked: Sequence[str]) -> dict[str, Any]:
        frame = self.frame
        operands = [frame.operand(n, self) for n in walked]
        by_boxes = all(x.boxes for x in operands)
        loops = self._loops(operands, by_boxes)
        return {
            "side": self.side,
            "block": self.block,
            "axes": self.axes,
            "walked": operands,
            "what": " and ".join(_WORDS[n] for n in walked) + self._of_segment,
            "by_boxes": by_boxes,
            "token": first_token([a.first_wrap for a in self.axes], self.grid, self.segment.offset),
            "lane_tokens": token([a.name for a in self.axes], self.grid, "tl.int64",
                                 self.segment.offset),
            "lane_token": lane_token(self.axes, self.grid, by_boxes),
            "loops": loops,
            "offsets": any(not x.addresses for x in loops),
            "lanes_needed": self._lanes_needed(loops, by_boxes),
        }  # fmt: skip

    @property
    def _of_segment(self) -> str:
        return f" of {self.segment.name}" if self.frame.plan.program.segmented else ""

    def _lanes_needed(self, loops: Sequence[Loop], by_boxes: bool) -> bool:
        """Whether the loops read coordinates or addresses of lanes at all."""
        texts = " ".join(line for x in loops for line in (*x.opening, *x.coordinates))
        return not by_boxes or self.frame.home == "k" or f"{self.side}_lane" in texts

    def _loops(self, operands: list[Operand], by_boxes: bool) -> list[Loop]:
        frame = self.frame
        walked = Walked(
            self.side, self.axes, self.grid, operands, self.printed, by_boxes, self.implied,
            frame.home == "k", frame.home == "k" and bool(self.roots),
        )  # fmt: skip
        loops = []
        for kind, opening in self._openings():
            loops.append(loop_of(kind, walked, opening, self.score(), self.slope(), frame.depth))
        return loops

    def _openings(self) -> list[tuple[str, tuple[str, list[str], bool]]]:
        frame = self.frame
        if frame.closed is not None:
            return frame.closed.openings(self.axes[0].first_name, self.grid.tile.span[0])
        if frame.by_inputs is not None:
            return frame.by_inputs.openings([a.first_name for a in self.axes])
        found = []
        for kind, visits in frame.walk.visits[self.number].items():
            if visits.mode == "none":
                continue
            what = "tiles" if visits.mode == "list" else "runs"
            table = Table(
                frame.walk.table(f"{kind}_starts", self.number),
                frame.walk.table(f"{kind}_{what}", self.number),
                frame.row,
            )
            comment, lines, early = opening_of(kind, visits, table, self.axes, self.grid)
            found.append((kind, (f"{comment}{self._of_segment}", lines, early)))
        return found

    def score(self) -> str:
        """The logit in base 2, from the score's text."""
        text = self.printed.roots.get("score")
        if text is None:
            return ""
        scaled = f"{text.within(PRODUCT)} * LOG2E"
        if depends_on([self.roots["score"]], "logit"):
            return scaled
        home, away = self.frame.home_block, self.block
        return f"tl.zeros([{home}, {away}], tl.float32) + {scaled}"  # one logit for many pairs

    def slope(self) -> str:
        text = self.printed.roots.get("slope")
        return "" if text is None else text.within(PRODUCT)
