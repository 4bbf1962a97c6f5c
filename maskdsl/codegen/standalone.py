"""A plan's kernels as one Python file that needs torch and triton alone: forward and backward as a
differentiable function, its tables, and a comparison with the definition in plain torch.

Where a call's inputs decide which tiles are visited, the file by itself visits every tile that some
inputs would leave: right for all of them, but it skips nothing for those at hand. Its function
`visits_for` works out what these leave, by the definition, for calls that share them.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping

import numpy as np

from maskdsl.codegen.arguments import data_of
from maskdsl.codegen.emit import Emission, Module
from maskdsl.codegen.gradients import GradientEmission
from maskdsl.codegen.header import comment_lines
from maskdsl.codegen.rendering import render
from maskdsl.codegen.spec import Spec
from maskdsl.codegen.table_text import Store
from maskdsl.codegen.together import join
from maskdsl.codegen.torch_definition import Definition
from maskdsl.codegen.visits import Packing
from maskdsl.codegen.walk import crossing
from maskdsl.errors import CompileError
from maskdsl.ir.nodes import Node, postorder
from maskdsl.planner import Grid, HeadClass, Plan
from maskdsl.planner.transpose import transposed

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
    than a file should hold.
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
        own = dict(m.context["facts"])
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
