"""A second forward module for Hopper GPUs, in Gluon: exponentials overlapped with matrix products.

Plain Triton waits for a tile's products of queries and keys before it goes on, so that the tensor
cores idle while a warpgroup takes their exponentials. Gluon lets a kernel say when it waits: it
takes them while the values of the tile before are summed, in the order of FlashAttention-3 (arXiv
2407.08608, section 3.2).

The key tiles of a row pass through one pipeline, the full ones first. Tiles are copied some steps
ahead, so they are found by their number: listed one by one, or counted where the walk is closed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from maskdsl.codegen.away import Away
from maskdsl.codegen.closed import Closed
from maskdsl.codegen.emit import Module, plan_lanes
from maskdsl.codegen.expressions import LINE
from maskdsl.codegen.frame import Frame
from maskdsl.codegen.loops import Loop
from maskdsl.codegen.lowered import Lowered
from maskdsl.codegen.rendering import pack
from maskdsl.codegen.spec import Spec, padded
from maskdsl.codegen.text import PRODUCT
from maskdsl.codegen.visits import MANY, Packing, Visits
from maskdsl.errors import CompileError
from maskdsl.planner import Grid, Plan

TARGET = "sm_90"
DTYPES = ("float16", "bfloat16")
LANES = (64, 128)  # of tiles and of dimensions
ROWS_OF_WARP = 16  # of the scores, in one instruction
_PLACES = ("batch", "head", "kv_head", "batch_head")


@dataclass(frozen=True)
class Visiting:
    """How a kernel finds the key tiles of its row by number.

    setup: lines that set `tiles`, how many there are, and `full` where they are of both kinds.
    given: (name in `key_tile`, value) of what it needs to know besides. lines: its body. found: the
    coordinates it gives.
    """

    setup: tuple[str, ...]
    given: tuple[tuple[str, str], ...]
    lines: tuple[str, ...]
    found: str


@dataclass(frozen=True)
class Known:
    """What a mask reads that is known before the loops: names, passed as a tuple."""

    names: tuple[str, ...]

    @property
    def given(self) -> list[str]:
        """The tuple is made."""
        one = "," if len(self.names) == 1 else ""
        return _within_line(f"known = ({', '.join(self.names)}{one})", "known = (", self.names, ")")

    @property
    def taken(self) -> list[str]:
        """The tuple is taken apart."""
        text = ", ".join(self.names)
        text = f"({text},)" if len(self.names) == 1 else text
        return _within_line(f"{text} = known", "(", self.names, ") = known")


def _within_line(line: str, opening: str, names: tuple[str, ...], closing: str) -> list[str]:
    if not names:
        return []
    if 4 + len(line) <= LINE:
        return [line]
    return [
        opening,
        *(" " * 4 + x for x in pack(names, 4, 4).split("\n" + " " * 4)),
        f"{closing}  # fmt: skip",
    ]


class TableFrame(Frame):
    """A frame that walks every tile that some input could fill."""

    def _asks_inputs(self) -> bool:
        return False


class OverlapEmission(Module):
    """The forward module of a plan in Gluon, called as the plain one is. Raises CompileError where
    it does not apply.
    """

    template = "overlap.py.j2"
    direction = "forward"

    def __init__(self, plan: Plan, spec: Spec) -> None:
        _check_spec(spec)
        super().__init__(plan, spec)
        low = self.lowered
        queries, keys = plan_lanes(plan)
        _check_plan(plan, low, queries, keys)
        # as many warps as the scores have rows for: with fewer, registers do not hold the scores
        self.spec = spec = replace(spec, num_warps=queries // ROWS_OF_WARP)
        self.stages = spec.settings(queries, keys)[1]
        if self.stages < 2:
            raise _refusal("copies tiles ahead, which takes two stages of shared memory")
        self.kernel = f"{self.name}_forward"
        sink = {} if low.sink is None else {"sink": low.sink}
        frame = TableFrame(plan, spec, low, "q", 0, [sink], {})
        if not frame.describes:
            raise _refusal("takes tiles that are boxes of a tensor")
        away = frame.aways[0]
        if frame.closed is None:
            kinds = frame.walk.visits[0].items()
            listed_kinds = {kind: listed(visits, away.grid) for kind, visits in kinds}
            frame.walk = replace(frame.walk, visits=(listed_kinds,))
        self.frames = [frame]
        context = frame.context(
            self.kernel, ["q"], ["k", "v"], ["out"], ["q", "k", "v", "out"], ["lse"]
        )
        loops = {x.kind: x for x in context["aways"][0]["loops"]}
        if not loops:
            raise _refusal("takes patterns that keep something")
        masked = loops.get("partial")
        text = away.printed.roots.get("sink")
        context |= {
            "sink": "" if text is None else text.within(PRODUCT),
            "query": context["held"][0][0],
            "held": [],  # the template copies it
            "places": tuple(
                n for n in _PLACES if re.search(rf"\b{n}\b", context["aways"][0]["walked"][0].at)
            ),
            "masked": masked,
            "known": _known(context, masked),
            "kinds": tuple(loops),
            "visits": visiting(frame, away, tuple(loops)),
        }
        self.context = {
            **self.shared_context([context]),
            "title": f"Forward attention for the pattern `{plan.name}`, emitted by MaskDSL.",
            "sink": text is not None,
            "warps": spec.num_warps,
            "element": spec.dtype,
            "key_lanes": keys,
        }
        self.context["types"] = [_swizzled(x) for x in self.context["types"]]
        self.context["constants"].append(("STAGES", self.stages, "tiles of keys in shared memory"))

    def render(self) -> str:
        """The module's text, in Gluon's words."""
        return in_gluon(super().render())

    def _options(self, warps: int, stages: int) -> str:
        """Launch options: the stages are the module's own."""
        return super()._options(warps, stages).replace(f', "num_stages": {stages}', "")


def _known(context: Mapping[str, Any], masked: Loop | None) -> Known:
    """What a mask reads that is known before the loops."""
    if masked is None:
        return Known(())
    statements = [*context["once"], *context["row_statements"]]
    names = [s.name for s in statements] + [a.name for a in context["axes"]]
    names += [*_PLACES, *(a.name for a in context["arguments"])]
    lines = [*masked.coordinates, *masked.keep, *(s.text for s in masked.key + masked.pair)]
    read = set(re.findall(r"\b[a-zA-Z_]\w*", " ".join(lines)))
    found = [n for n in dict.fromkeys(names) if n in read]
    return Known(tuple(found))


def _swizzled(type_: str) -> str:
    """A descriptor's type with the layout of its boxes."""
    found = re.fullmatch(r'(.*: )"(tensordesc<\w+\[([^\]]*)\])>"', type_)
    if found is None:
        return type_
    rank = found[3].count(",") + 1
    return f'{found[1]}"{found[2]},NVMMASharedLayout(128, 16, rank={rank})>"'


def _refusal(why: str) -> CompileError:
    return CompileError(f"the overlap template {why}: use the plain template")


def _check_spec(spec: Spec) -> None:
    dims = {padded(spec.head_dim), padded(spec.value_dim)}
    if spec.target != TARGET:
        raise _refusal(f"is for {TARGET}, not {spec.target}")
    if spec.dtype not in DTYPES:
        raise _refusal(f"takes {' and '.join(DTYPES)}, not {spec.dtype}")
    if len(dims) > 1 or not dims <= {*LANES}:
        dim = f"{spec.head_dim} and {spec.value_dim}"
        raise _refusal(f"takes head and value dimensions of 33 to 128 in as many lanes, not {dim}")
    if not spec.rising:
        raise _refusal("takes positive scales")


def _check_plan(plan: Plan, low: Lowered, queries: int, keys: int) -> None:
    if plan.program.segmented:
        raise _refusal("takes spaces of one segment")
    if any(score is not None for row in low.scores for score in row):
        raise _refusal("takes patterns without score clauses")
    if queries not in LANES or keys not in LANES:
        raise _refusal(f"takes tiles of 64 or 128 lanes, not {queries} queries by {keys} keys")


def visiting(frame: Frame, away: Away, kinds: tuple[str, ...]) -> Visiting:
    """Of a walk that is closed, or listed tile by tile. kinds: "full", "partial" or both."""
    names = [a.first_name for a in away.axes]
    if frame.closed is not None:
        return _counted(frame.closed, names[0], away.grid.tile.span[0], kinds)
    visits = frame.walk.visits[0][kinds[0]]
    lists = {kind: frame.walk.table(f"{kind}_tiles", 0) for kind in kinds}
    setup: list[str] = []
    for kind in kinds:
        starts = frame.walk.table(f"{kind}_starts", 0)
        setup += [f"{kind}_start = tl.load({starts} + row)"]
        name = "tiles" if len(kinds) == 1 else kind
        setup += [f"{name} = tl.load({starts} + row + 1) - {kind}_start"]
        setup += [f"{lists[kind]} += {kind}_start"]
    lines, address = [], f"{lists[kinds[0]]} + number"
    if len(kinds) == 2:
        full, partial = lists.values()
        setup += [f"{partial} -= full", "tiles = full + partial"]
        lines, address = [f"at = tl.where(number < full, {full}, {partial}) + number"], "at"
    names_given = [*(["full"] if len(kinds) == 2 else []), *lists.values()]
    source = f"tl.load({address}, mask=number < tiles, other=0)"
    lines += visits.packing.lines(names, source, "k_first")
    return Visiting(
        tuple(setup), tuple((n, n) for n in names_given), tuple(lines), ", ".join(names)
    )


def _counted(closed: Closed, name: str, span: int, kinds: tuple[str, ...]) -> Visiting:
    """Of a closed walk: from the first full tile up to the last, then what lies before it."""
    ends = {n: x if x.isidentifier() or x.isdigit() else f"({x})" for n, x in closed.ends.items()}
    first, full_first, full_last, last = (
        ends[n] for n in ("first", "full_first", "full_last", "last")
    )

    def less(high: str, low: str) -> str:
        return high if low == "0" else f"{high} - {low}"

    setup = [f"tiles = {less(last, first)}"]
    if len(kinds) == 2:
        setup = [f"full = {less(full_last, full_first)}", *setup]
    start = full_first if "full" in kinds else first
    place = "number" if start == "0" else "start + number"
    given = [] if start == "0" else [("start", start)]
    if closed.left and "full" in kinds:
        given += [("last", last)]
        lines = [f"tile = {place}", "tile = tl.where(tile < last, tile, tile - tiles)"]
        return Visiting(tuple(setup), tuple(given), (*lines, f"{name} = tile * {span}"), name)
    place = f"({place})" if " " in place else place
    return Visiting(tuple(setup), tuple(given), (f"{name} = {place} * {span}",), name)


def listed(visits: Visits, grid: Grid) -> Visits:
    """Runs of tiles as a list of them. Raises CompileError for more than MANY."""
    if visits.entries is None or visits.mode == "list":
        return visits
    if visits.tiles > MANY:
        raise _refusal(f"lists tiles one by one, up to {MANY:,} of them")
    entries, span = visits.entries.astype(np.int64), grid.tile.span[-1]
    low, high = entries[:, -2], entries[:, -1]
    count = (high - low) // span
    ends = np.concatenate([[0], np.cumsum(count)])
    run = np.repeat(np.arange(len(count)), count)
    packing = Packing.of(grid, len(grid.shape))
    packed = low[run] - grid.starts[-1] + (np.arange(ends[-1]) - ends[run]) * span
    if visits.packing.fields:
        packed |= entries[run, 0] << packing.fields[-1][1]
    starts = ends if visits.starts is None else ends[visits.starts]
    packed = packed if packing.wide else packed.astype(np.int32)
    return Visits("list", starts.astype(np.int32), packed, visits.tiles, packing)


_TILE = re.compile(r"\bgl\.(arange\(0, |zeros\(\[)BLOCK_([QK])(\], gl\.\w+)?\)")


def in_gluon(source: str) -> str:
    """Triton's text in Gluon's words: vectors over a tile's lanes are laid out like the scores."""

    def placed(found: re.Match[str]) -> str:
        layout = {"Q": "OF_QUERIES", "K": "OF_KEYS"}[found[2]]
        return f"{found[0][:-1]}, layout={layout})"

    lines = []
    for line in source.split("\n"):
        if not line.startswith("#"):
            line = re.sub(r"\btl\.", "gl.", line).replace("@triton.jit", "@gluon.jit")
            line = _TILE.sub(placed, line)
        lines.append(line)
    return "\n".join(lines)
