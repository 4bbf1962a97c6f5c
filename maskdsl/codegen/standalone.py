"""A plan's kernels as one Python file that needs torch and triton alone: forward and backward as a
differentiable function, its tables, and a comparison with the definition in plain torch.

Where a call's inputs decide which tiles are visited, the file by itself visits every tile that some
inputs would leave: right for all of them, but it skips nothing for those at hand. Its function
`visits_for` works out what these leave, by the definition, for calls that share them.
"""

from __future__ import annotations

import base64
import re
import textwrap
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from maskdsl.codegen.arguments import data_of
from maskdsl.codegen.emit import Emission, Module
from maskdsl.codegen.gradients import GradientEmission
from maskdsl.codegen.header import comment_lines, facts
from maskdsl.codegen.rendering import render
from maskdsl.codegen.spec import Spec
from maskdsl.codegen.together import join
from maskdsl.codegen.torch_text import HELPERS, TorchText
from maskdsl.codegen.visits import Packing
from maskdsl.codegen.walk import crossing
from maskdsl.errors import CompileError
from maskdsl.ir.nodes import Node, postorder
from maskdsl.ir.program import Block, Segment
from maskdsl.planner import Grid, HeadClass, Plan
from maskdsl.planner.transpose import transposed

MAX_BYTES = 4 << 20  # of all tables, as the file holds them
SHORT = 12  # entries that are written out
LINE_WIDTH = 96
FACT_WIDTH = 84

_RENAMED = {
    "dq": {"gradients": "gradients_of_queries"},
    "dkv": {"gradients": "gradients_of_keys"},
}


def standalone(
    plan: Plan,
    plan_of: Callable[[str], Plan],
    spec: Spec,
    scale: float,
    version: str,
    input_gradients: bool = True,
) -> str:
    """The text of the file.

    plan_of: gives the plans of "dq" and "dkv". scale: the default one of the products, positive.
    version: of what emits it. input_gradients: whether float inputs that scores or the sink read
    get gradients. Raises CompileError where a kernel is beyond templates, or the tables are larger
    than MAX_BYTES.
    """
    program = plan.program
    if not spec.rising:
        raise CompileError("a standalone file needs a positive scale")
    scored = _float_inputs([b.score for b in program.all_blocks if b.score is not None])
    sunk = _float_inputs([program.sink] if program.sink is not None else [])
    asked = scored if input_gradients else ()
    modules: dict[str, Module] = {"forward": Emission(plan, spec)}
    for name in ("dq", "dkv"):
        modules[name] = GradientEmission(name, plan_of(name), spec, asked)
    together = join({n: m.render() for n, m in modules.items()}, _RENAMED)
    definition = Definition(plan)
    store = Store()
    walks = {n: _walk(m, store) for n, m in modules.items()}
    tables = {
        name: store.put(data_of(a)) + (".bool()" if a.type == "bool" else "")
        for name, a in definition.text.arrays.items()
    }
    merged = {x.merged for x in modules.values()} - {None}
    both = tuple(dict.fromkeys((*scored, *sunk)))
    context = {
        "pattern": comment_lines(plan.source, plan.name),
        "name": plan.name,
        "version": version,
        "facts": _facts(modules),
        "together": together,
        "heads": program.heads,
        "kv_heads": program.kv_heads,
        "queries": program.query_tokens,
        "keys": program.key_tokens,
        "head_dim": spec.head_dim,
        "value_dim": spec.value_dim,
        "dtypes": ("float32",) if spec.dtype == "float32" else ("bfloat16", "float16"),
        "scale": scale,
        "programs": max(plan.q_tiles * program.heads, plan.kv_tiles * program.kv_heads),
        "visits": plan.tiles.full + plan.tiles.partial,
        "inputs": [(a.name, a.type, a.dims) for a in program.inputs],
        "differentiable": both if input_gradients else (),
        "refused": () if input_gradients else both,
        "sunk": [n for n in sunk if input_gradients],
        "asks": modules["forward"].asks_inputs,
        "merged": merged.pop() if len(merged) == 1 else bool(merged),
        "described": any(m.merged is not None for m in modules.values()),
        "kernels": modules["forward"].kernels,
        "walks": walks,
        "tiles": {n: _tiles(m, store) for n, m in modules.items() if m.asks_inputs},
        "classes": [c.heads[0] for c in plan.head_classes],
        "tables": tables,
        "stored": store.lines(),
        "packed": store.packed,
        "definition": definition,
    }
    return render("standalone.py.j2", context)


def _float_inputs(roots: list[Node]) -> tuple[str, ...]:
    """Names of the float inputs that expressions read."""
    reads = [n.value for n in postorder(*roots) if n.op == "load" and n.value.is_input]
    return tuple(dict.fromkeys(a.name for a in reads if a.type == "float"))


def _facts(modules: Mapping[str, Module]) -> list[tuple[str, str]]:
    """(word, text): of the problem once, of each kernel's tiles, walk and settings."""
    found: dict[str, str] = {}
    for name, m in modules.items():
        settings = m.spec.settings(*m.lanes, m.direction)
        own = dict(facts(m.plan, m.spec, [f.walk for f in m.frames], settings))
        found.setdefault("problem", own["problem"])
        found[name] = f"{own['tiles']}; {own['pairs']}"
        found[f"{name} walk"] = own["walk"]
        found[f"{name} for"] = own["target"]
        found.setdefault("proved", own["proved"])
    order = ["problem", "proved", *(n for n in found if n not in ("problem", "proved"))]
    return [
        (name if not i else "", line)
        for name in order
        for i, line in enumerate(textwrap.wrap(found[name], FACT_WIDTH))
    ]


def _walk(module: Module, store: Store) -> dict[str, str]:
    """Names in the store of a module's constant arguments."""
    tables = dict(module.tables)
    if module.asks_inputs:
        tables |= _possible(module.plan, "k" if module.direction == "dkv" else "q")
    return {name: store.put(data) for name, data in tables.items()}


def _tiles(module: Module, store: Store) -> dict[str, str]:
    """Names in the store of what deciding a kernel's tiles reads: the tokens of its own tiles and
    of those it walks, and of the latter how the kernel is told them and whether it may take them
    for full.
    """
    own, other = module.plan.q_grid_, module.plan.kv_grid_
    if module.direction == "dkv":
        own, other = other, own
    packing = Packing.of(other, len(other.shape))
    tables = {
        "own": own.tokens(np.arange(own.count)).astype(np.int32),
        "other": other.tokens(np.arange(other.count)).astype(np.int32),
        "packed": packing.pack(other, np.arange(other.count)),
        "crossing": crossing(other).astype(np.int8),
    }
    return {name: store.put(data) for name, data in tables.items()}


def _possible(plan: Plan, home: str) -> dict[str, np.ndarray]:
    """The lists that a call's inputs would decide, with every tile that any inputs may leave: see
    InputWalk.
    """
    own, grid = plan.q_grid_, plan.kv_grid_
    if home == "k":
        own, grid = grid, own
    packing = Packing.of(grid, len(grid.shape))
    packed = packing.pack(grid, np.arange(grid.count))
    parts = [_possible_of(plan, c, home, own.count, grid) for c in plan.head_classes]
    widest = max(tiles.shape[1] for tiles, _ in parts)
    lists = np.zeros((1, len(parts), own.count, max(widest, 1)), dtype=packed.dtype)
    for number, (tiles, _) in enumerate(parts):
        lists[0, number, :, : tiles.shape[1]] = packed[tiles]
    prefix = "" if home == "q" else "key_"
    counts = np.stack([counts for _, counts in parts])[None].astype(np.int32)
    return {f"{prefix}input_tiles": lists, f"{prefix}input_counts": counts}


def _possible_of(
    plan: Plan, c: HeadClass, home: str, rows: int, grid: Grid
) -> tuple[np.ndarray, np.ndarray]:
    """(tiles, (partial, full) counts) of each row of one head class, partial tiles first."""
    runs = c.runs
    if home == "k":
        runs = transposed(runs, plan.kv_grid_.count, plan.q_grid_.shape[-1])
    row = np.repeat(runs.row_of(), runs.count)
    first = np.repeat(runs.first - (np.cumsum(runs.count) - runs.count), runs.count)
    tile = first + np.arange(len(row))
    # a loop over full tiles masks nothing, not even lanes past the edge
    full = np.repeat(runs.full, runs.count) & ~crossing(grid)[tile]
    order = np.lexsort((tile, full, row))
    row, tile, full = row[order], tile[order], full[order]
    total = np.bincount(row, minlength=rows)
    counts = np.stack([np.bincount(row[full == kind], minlength=rows) for kind in (0, 1)], 1)
    tiles = np.zeros((rows, int(total.max(initial=0))), dtype=np.int64)
    tiles[row, np.arange(len(row)) - np.repeat(np.cumsum(total) - total, total)] = tile
    return tiles, counts


class Store:
    """Tables as the file writes them: short ones plainly, others compressed; equal ones once."""

    def __init__(self) -> None:
        self._names: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self._lines: list[list[str]] = []
        self._size = 0
        self.packed = False

    def put(self, data: np.ndarray) -> str:
        """The name of a table. Raises CompileError past MAX_BYTES."""
        key = (data.dtype.name, data.shape, data.tobytes())
        if key not in self._names:
            self._names[key] = name = f"T{len(self._names)}"
            self._lines.append(self._written(name, np.ascontiguousarray(data)))
        return self._names[key]

    def lines(self) -> list[str]:
        return [line for lines in self._lines for line in lines]

    def _written(self, name: str, data: np.ndarray) -> list[str]:
        shape = tuple(int(n) for n in data.shape)
        if data.size <= SHORT:
            values = data.reshape(-1).tolist()
            reshape = f".view{shape}" if len(shape) != 1 else ""
            tensor = f"torch.tensor({values}, dtype=torch.{data.dtype.name}){reshape}"
            return [f"{name} = {tensor}"]
        whole = data.dtype.kind == "i"
        flat = data.reshape(-1)
        # neighbours are alike: differences compress better
        flat = np.diff(flat, prepend=flat.dtype.type(0)) if whole else flat
        packed = base64.b85encode(zlib.compress(flat.tobytes(), 9)).decode()
        self._size += len(packed)
        if self._size > MAX_BYTES:
            raise CompileError(
                f"the tables of this plan take more than {MAX_BYTES >> 20} MiB in a standalone "
                "file: take larger tiles, or a shorter sequence"
            )
        self.packed = True
        texts = [packed[i : i + LINE_WIDTH] for i in range(0, len(packed), LINE_WIDTH)]
        head = f'{name} = unpacked("{data.dtype.name}", {shape}, """'
        return [head, *texts, '""")']


class Definition:
    """The pattern in plain torch. functions: (name, arguments, comment, lines) of each pair of
    segments; sink: lines, or nothing. helpers: texts of the functions used.
    """

    def __init__(self, plan: Plan) -> None:
        program = plan.program
        self.text = TorchText()
        self.segmented = program.segmented
        self.blocks = [self._block(b, number) for number, b in enumerate(program.all_blocks)]
        self.sink: list[str] = []
        if program.sink is not None:
            self.text.forget()
            result = self.text.write(program.sink)
            self.sink = [*self.text.lines, f"return {result.text}"]
        self.helpers = [HELPERS[n].strip() for n in HELPERS if n in self.text.helpers]

    def _block(self, block: Block, number: int) -> dict[str, Any]:
        text = self.text
        text.forget()
        keep = text.write(block.keep)
        scored = Node("logit", "float") if block.score is None else block.score
        score = text.write(scored)
        body = " ".join([*text.lines, keep.text, score.text])
        lines = [
            *_coordinates("q", block.queries, "rows[:, None]", body),
            *_coordinates("k", block.keys, "columns[None, :]", body),
            *text.lines,
            f"keep = {keep.text}",
            f"return keep, {score.text}",
        ]
        names = [s.name or "tokens" for s in (block.queries, block.keys)]
        return {
            "function": f"pairs{number}" if self.segmented else "pairs",
            "what": f"Queries of {names[0]} and keys of {names[1]}" if self.segmented else "",
            "lines": lines,
            "queries": (block.queries.offset, block.queries.offset + block.queries.tokens),
            "keys": (block.keys.offset, block.keys.offset + block.keys.tokens),
        }


def _coordinates(side: str, segment: Segment, source: str, body: str) -> list[str]:
    """Lines that set the coordinates that a text reads, from positions in the segment."""
    found, step = [], 1
    for i, (name, extent) in reversed(list(enumerate(segment.axes))):
        text = f"{source} // {step}" if step > 1 else source
        text = f"{text} % {extent}" if i and step * (extent or 1) <= segment.tokens else text
        step *= extent or 1
        if re.search(rf"\b{side}_{name}\b", body):
            found.append(f"{side}_{name} = {text}")
    return found[::-1]
