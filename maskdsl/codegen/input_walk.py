"""Walks that a call's inputs decide: lists of tiles made at the call, and a loop over them."""

from __future__ import annotations

from dataclasses import dataclass

from maskdsl.codegen.arguments import Argument
from maskdsl.codegen.visits import Packing
from maskdsl.planner import Grid, Plan

MOST_PAIRS = 2**23  # possible tile pairs of a head class, past which inputs are not asked

Opening = tuple[str, list[str], bool]


@dataclass(frozen=True)
class InputWalk:
    """Lists of the tiles to visit, per batch entry, head class and home tile: first those that are
    partial, then those that are full.

    home: "q" or "k". rows: the constant that counts the home tiles. classes: of heads.
    """

    home: str
    rows: str
    classes: int
    grid: Grid

    @property
    def _names(self) -> tuple[str, str, str]:
        prefix = "" if self.home == "q" else "key_"
        return f"{prefix}input_tiles", f"{prefix}input_counts", "widest"

    def arguments(self) -> list[Argument]:
        tiles, counts, widest = self._names
        packing = Packing.of(self.grid, len(self.grid.shape))
        return [
            Argument(tiles, f'walk["{tiles}"]', "*i64" if packing.wide else "*i32"),
            Argument(counts, f'walk["{counts}"]', "*i32"),
            Argument(widest, f'walk["{tiles}"].shape[-1]'),
        ]

    def openings(self, names: list[str]) -> list[tuple[str, Opening]]:
        """Per kind (comment, the loop's head, False); names: of the first coordinates of a tile."""
        tiles, counts, widest = self._names
        line = f"batch * {self.rows} + tile"
        if self.classes > 1:
            line = f"(batch * {self.classes} + tl.load(head_class + head)) * {self.rows} + tile"
        lead = [
            f"line = {line}",
            f"line_start = line.to(tl.int64) * {widest}",
            f"partial_count = tl.load({counts} + 2 * line)",
            f"full_count = tl.load({counts} + 2 * line + 1)",
        ]
        packing = Packing.of(self.grid, len(self.grid.shape))
        inner = packing.lines(names, f"tl.load({tiles} + line_start + at)", f"{self._away}_first")
        full = ["for at in range(partial_count, partial_count + full_count):"]
        partial = ["for at in range(partial_count):"]
        body = [f"    {x}" for x in inner]
        comment = "tiles, as the inputs decide"
        return [
            ("full", (f"full {comment}: nothing to mask", [*lead, *full, *body], False)),
            ("partial", (f"partial {comment}", [*partial, *body], False)),
        ]

    @property
    def _away(self) -> str:
        return "k" if self.home == "q" else "q"


def asks_inputs(plan: Plan) -> bool:
    """Whether inputs decide which tiles of a plan are visited, and few enough to be asked."""
    if plan.program.segmented or not any(t.varies for c in plan.head_classes for t in c.all_trees):
        return False
    return all(int(c.runs.count.sum()) <= MOST_PAIRS for c in plan.head_classes)
