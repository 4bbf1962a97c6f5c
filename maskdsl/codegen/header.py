"""What a kernel's header says of it: the pattern, the plan, what was proved."""

from __future__ import annotations

import re

from maskdsl.codegen.spec import Spec
from maskdsl.codegen.walk import Visits, Walk
from maskdsl.planner import Plan

_PROOFS = {
    "divisible": "tiles divide the extents",
    "int32": "32 bits hold every int of the pattern",
    "no_empty_row": "every query keeps a key",
}


def facts(plan: Plan, spec: Spec, walk: Walk, settings: tuple[int, int]) -> list[tuple[str, str]]:
    """(word, text) of the header's lines."""
    program, counts = plan.program, plan.tiles
    heads = f"{program.heads} head(s)"
    if program.kv_heads != program.heads:
        heads += f" on {program.kv_heads} of keys"
    queries, keys = (_times(s) for s in (program.query_shape, program.key_shape))
    dims = f"head_dim {spec.head_dim}"
    dims += f", value_dim {spec.value_dim}" if spec.value_dim != spec.head_dim else ""
    proved = [text for name, text in _PROOFS.items() if plan.proofs[name]]
    classes = f"; {walk.classes} classes of heads" if walk.classes > 1 else ""
    return [
        ("problem", f"{heads}, {queries} queries, {keys} keys, {dims}, {spec.dtype}"),
        ("tiles", f"{plan.q_tile} queries by {plan.kv_tile} keys"),
        (
            "pairs",
            f"{counts.full:,} full, {counts.partial:,} partial, {counts.empty:,} empty tiles",
        ),
        ("walk", f"{_walked('full', walk.full)}; {_walked('partial', walk.partial)}{classes}"),
        ("proved", ", ".join(proved) or "nothing"),
        ("target", f"{spec.target}, {settings[0]} warps, {settings[1]} stages"),
    ]


def _walked(kind: str, visits: Visits) -> str:
    how = {"none": "no", "one": "one run a row of", "many": "runs of"}[visits.mode]
    return f"{how} {kind} tiles"


def _times(shape: tuple[int, ...]) -> str:
    return " x ".join(f"{n:,}" for n in shape)


def comment_lines(text: str) -> list[str]:
    """A pattern's text, fit for comments."""
    lines = re.split(r"\r\n|\r|\n", text.strip())
    return [
        "".join(c if c.isprintable() else "?" for c in x.replace("\t", "    ")).rstrip()
        for x in lines
    ]
