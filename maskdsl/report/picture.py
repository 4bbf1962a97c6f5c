"""What the page draws: the relation itself as JavaScript, and the kinds of tiles."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from maskdsl.codegen.lowered import lower
from maskdsl.errors import CompileError, MaskError
from maskdsl.ir.nodes import depends_on
from maskdsl.ir.program import Program, Segment
from maskdsl.pattern import Mask
from maskdsl.pictures import tile_kinds
from maskdsl.planner import Plan, Tile, make_plan
from maskdsl.planner.flattened import flattened
from maskdsl.planner.tiles import MAX_LANES
from maskdsl.report.js_text import Tables, js_function

CELLS = 256  # of a side, in the picture of all pairs
LAYOUT_CELLS = 192  # of a side, in those of tiles
MAX_CLASSES = 8  # of heads that are drawn
MAX_TABLES = 400_000  # bytes that the page holds of tables and inputs

Finder = Callable[[], Plan]


class Drawn:
    """Everything that the page's script needs, as plain data, and functions as text.

    data: see `page.js`. left_out: kinds of heads that are not drawn. functions: of each pair of
    segments, or "null". inexact: why the script cannot tell single pairs, or "".
    """

    def __init__(
        self, mask: Mask, plan: Plan, layouts: Sequence[tuple[str, Finder]],
        inputs: Mapping[str, np.ndarray],
    ) -> None:  # fmt: skip
        self.mask, self.plan = mask, plan
        program = mask.closed()
        self.inexact = ""
        tables = Tables(inputs)
        try:
            self.functions = _functions(plan, tables)
            if sum(x.nbytes for x in tables.arrays) > MAX_TABLES:
                raise CompileError("its tables are too large for the page")
        except CompileError as e:
            self.inexact = e.message
            self.functions = "null"
            tables.arrays.clear()
        shown = _shown_heads(plan, _reads_heads(program))
        self.left_out = max(len(plan.head_classes) - MAX_CLASSES, 0)
        self.data: dict[str, Any] = {
            "name": plan.name,
            "queries": program.query_tokens,
            "keys": program.key_tokens,
            "heads": program.heads,
            "shown": [{"head": h, "label": label} for h, label in shown],
            "batches": _batches(program, inputs),
            "sides": {"q": _segments(program.queries), "k": _segments(program.keys)},
            "shared": program.shared,
            "tables": [_table(x) for x in tables.arrays],
            "overview": _overview(mask, [h for h, _ in shown]),
            "layouts": [_layout(label, find, [h for h, _ in shown]) for label, find in layouts],
        }


def _functions(plan: Plan, tables: Tables) -> str:
    """A list per segment of queries of a list per segment of keys."""
    keeps = lower(plan).keeps
    rows = [", ".join(js_function(keep, tables) for keep in row) for row in keeps]
    return "[" + ",\n".join(f"[{row}]" for row in rows) + "]"


def _reads_heads(program: Program) -> bool:
    return depends_on((b.keep for b in program.all_blocks), "head")


def _shown_heads(plan: Plan, differ: bool) -> list[tuple[int, str]]:
    """(head, label) of one head of each class."""
    if len(plan.head_classes) == 1 and not differ:
        return [(0, "all heads")]
    found = []
    for c in plan.head_classes[:MAX_CLASSES]:
        more = f" and {len(c.heads) - 1} like it" if len(c.heads) > 1 else ""
        found.append((c.heads[0], f"head {c.heads[0]}{more}"))
    return found


def _batches(program: Program, inputs: Mapping[str, np.ndarray]) -> int:
    """Batch entries that the given inputs have."""
    found = [
        inputs[a.name].shape[a.dims.index("batch")]
        for a in program.inputs
        if a.name in inputs and "batch" in a.dims
    ]
    return min(found, default=1)


def _segments(segments: Sequence[Segment]) -> list[dict[str, Any]]:
    return [
        {"name": s.name or "", "offset": s.offset, "tokens": s.tokens, "axes": list(s.axes)}
        for s in segments
    ]


def _table(data: np.ndarray) -> dict[str, Any]:
    """An array's type, shape and bytes."""
    kind = {"b": "int8", "f": "float64"}.get(data.dtype.kind)
    if kind is None:
        small = not data.size or np.abs(data).max() < 2**31
        kind = "int32" if small else "float64"  # ints below 2 ** 53
    content = np.ascontiguousarray(data, dtype=f"<{np.dtype(kind).str[1:]}").tobytes()
    return {
        "type": kind,
        "truth": data.dtype.kind == "b",
        "shape": list(data.shape),
        "bytes": base64.b64encode(content).decode(),
    }


def _overview(mask: Mask, heads: Sequence[int]) -> dict[str, Any] | None:
    """Kinds of blocks of flattened tokens; None where the planner cannot tell them."""
    program = flattened(mask.closed())
    most = max(program.query_tokens, program.key_tokens)
    block = 1
    while block < MAX_LANES and block * CELLS < most:
        block *= 2
    try:
        plan = make_plan(program, mask.pattern.source, Tile((block,)), Tile((block,)))
        found = [_packed(tile_kinds(plan, h, CELLS)) for h in heads]
    except MaskError:
        return None
    return {
        "block": block,
        "rows": min(plan.q_tiles, CELLS),
        "columns": min(plan.kv_tiles, CELLS),
        "tiles": [plan.q_tiles, plan.kv_tiles],
        "kinds": found,
    }


def _layout(label: str, find: Finder, heads: Sequence[int]) -> dict[str, Any]:
    """One choice of tiles; with `failed`, why it cannot be."""
    try:
        plan = find()
        kinds = [_packed(tile_kinds(plan, h, LAYOUT_CELLS)) for h in heads]
    except MaskError as e:
        return {"label": label, "failed": str(e).splitlines()[0]}
    counts = plan.tiles
    return {
        "label": label,
        "q": ", ".join(str(g.tile) for g in plan.q_grids),
        "k": ", ".join(str(g.tile) for g in plan.kv_grids),
        "lanes": [max(g.tile.lanes for g in x) for x in (plan.q_grids, plan.kv_grids)],
        "tiles": [plan.q_tiles, plan.kv_tiles],
        "rows": min(plan.q_tiles, LAYOUT_CELLS),
        "columns": min(plan.kv_tiles, LAYOUT_CELLS),
        "full": counts.full,
        "partial": counts.partial,
        "empty": counts.empty,
        "visited": plan.density,
        "kinds": kinds,
    }


def _packed(kinds: np.ndarray) -> str:
    """Four kinds a byte, row after row."""
    flat = kinds.reshape(-1).astype(np.uint8)
    fours = np.pad(flat, (0, -len(flat) % 4)).reshape(-1, 4)
    packed = (fours << np.array([0, 2, 4, 6], dtype=np.uint8)).sum(1).astype(np.uint8)
    return base64.b64encode(packed.tobytes()).decode()
