"""What a plan says of itself, in words."""

from __future__ import annotations

from typing import TYPE_CHECKING

from maskdsl.planner.layout import PARTIAL_COST, Layout
from maskdsl.planner.tiles import Grid

if TYPE_CHECKING:
    from maskdsl.planner.plan import HeadClass, Plan

WALK_LINE = 300  # characters, of a walk with many choices at ragged ends


def explain(plan: Plan) -> str:
    """What was proved, how each row is walked, and why."""
    counts = plan.tiles
    heads, queries, keys = plan.mask_shape
    pairs = "(inputs decide)" if plan.pairs is None else f"{plan.pairs:,}"
    lines = [
        f"{plan.name}: {heads} head(s), {queries:,} queries, {keys:,} keys, {pairs} pairs kept",
        f"query tiles: {_tile_text(plan.q_grids)}",
        f"key tiles: {_tile_text(plan.kv_grids)}",
        f"tile pairs: {counts.full:,} full, {counts.partial:,} partial, {counts.empty:,} "
        f"empty; {plan.density:.2%} are visited",
    ]
    for layout in plan.layouts:
        lines += _searched(layout)
    for c in plan.head_classes:
        lines.append(f"heads {_ranges(c.heads)}: {_rows_text(c)}")
        lines += _walked(plan, c)
    proved = [name for name, holds in plan.proofs.items() if holds]
    lines.append("proved: " + (", ".join(proved) or "nothing"))
    return "\n".join(lines)


def _rows_text(head_class: HeadClass) -> str:
    if not head_class.few_runs:
        return f"{head_class.row_starts[-1]:,} rows, too many runs to list"
    full, partial = head_class.runs.counts()
    work = full + partial
    return (
        f"{len(head_class.runs.first):,} runs; tiles per row {work.min()} to {work.max()}, "
        f"mean {work.mean():.1f}"
    )


def _walked(plan: Plan, head_class: HeadClass) -> list[str]:
    """How the rows are walked, per pair of segments, and why."""
    lines = []
    for block, walk in zip(plan.program.all_blocks, head_class.walks, strict=True):
        pair = f"{block.queries.name} -> {block.keys.name}: " if plan.program.segmented else ""
        how = f"stored runs; {walk}" if isinstance(walk, str) else f"closed form; {walk.text()}"
        line = f"  {pair}{how}"
        lines.append(line if len(line) <= WALK_LINE else line[: WALK_LINE - 3] + "...")
    return lines


def _searched(layout: Layout) -> list[str]:
    """What the layout search looked at, and why its choice won."""
    if not layout.tried:
        return ["layout: nothing in the pattern speaks for other tiles than the plain ones"]
    best = layout.tried[0]
    lines = [
        f"layout: {layout.proposed:,} choices of tiles looked at, {len(layout.tried)} of them "
        f"{'classified' if best.counted else 'sampled, for the pattern is irregular'}:"
    ]
    for c in layout.tried:
        ratio = (c.full + PARTIAL_COST * c.partial) / max(
            best.full + PARTIAL_COST * best.partial, 1
        )
        verdict = "chosen" if c is best else f"{ratio * c.area / best.area:.2f} times its work"
        lines.append(
            f"  {c.q_tile} by {c.kv_tile}: {c.full:,.0f} full, {c.partial:,.0f} partial a head; "
            f"{verdict}"
        )
    return lines


def _tile_text(grids: tuple[Grid, ...]) -> str:
    return ", ".join(f"{g.count:,} of {g.tile}" for g in grids)


def _ranges(numbers: tuple[int, ...]) -> str:
    """`0-3, 7`"""
    text: list[str] = []
    start = previous = numbers[0]
    for n in (*numbers[1:], None):
        if n is None or n != previous + 1:
            text.append(str(start) if start == previous else f"{start}-{previous}")
            start = n if n is not None else start
        previous = n if n is not None else previous
    return ", ".join(text)
