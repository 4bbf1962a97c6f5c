"""What a kernel's header says of it: the pattern, the plan, what was proved."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping, Sequence
from itertools import groupby

from maskdsl.codegen.spec import Spec
from maskdsl.codegen.walk import Walk
from maskdsl.ir.program import Segment
from maskdsl.planner import Grid, Plan

WIDTH = 94  # of the pattern's lines in a comment

_PROOFS = {
    "divisible": "tiles divide the extents",
    "int32": "32 bits hold every int of the pattern",
    "no_empty_row": "every query keeps a key",
}


def facts(
    plan: Plan, spec: Spec, walks: Sequence[Walk], settings: tuple[int, int],
    open_sizes: tuple[str, str], proofs: Mapping[str, bool],
) -> list[tuple[str, str]]:  # fmt: skip
    """(word, text) of the header's lines. open_sizes: variables with the numbers of queries and of
    keys, where they are told at a call. proofs: what was proved, by name.
    """
    program, counts = plan.program, plan.tiles
    heads = f"{program.heads} head(s)"
    if program.kv_heads != program.heads:
        heads += f" on {program.kv_heads} of keys"
    sides = zip((program.queries, program.keys), open_sizes, strict=True)
    queries, keys = (size or _side(s) for s, size in sides)
    pairs = f"{counts.full:,} full, {counts.partial:,} partial, {counts.empty:,} empty tiles"
    dims = f"head_dim {spec.head_dim}"
    dims += f", value_dim {spec.value_dim}" if spec.value_dim != spec.head_dim else ""
    dtype = spec.dtype + (" by tf32 products" if spec.precision == "tf32" else "")
    proved = [text for name, text in _PROOFS.items() if proofs.get(name)]
    classes = f"; {walks[0].classes} classes of heads" if walks[0].classes > 1 else ""
    return [
        ("problem", f"{heads}, {queries} queries, {keys} keys, {dims}, {dtype}"),
        ("tiles", f"{_tiles(plan.q_grids)} queries by {_tiles(plan.kv_grids)} keys"),
        ("pairs", "of any number of tokens" if any(open_sizes) else pairs),
        ("walk", f"{_walked(walks)}{classes}"),
        ("proved", ", ".join(proved) or "nothing"),
        ("target", f"{spec.target}, {settings[0]} warps, {settings[1]} stages"),
    ]


def _walked(walks: Sequence[Walk]) -> str:
    parts = {}
    for kind in ("full", "partial"):
        modes = {x[kind].mode for w in walks for x in w.visits} - {"none"}
        if modes:
            parts[kind] = " and ".join(_HOW[m] for m in _HOW if m in modes)
    if len(parts) == 2 and len({*parts.values()}) == 1:
        return f"full and partial tiles {parts['full']}"
    return "; ".join(f"{kind} tiles {how}" for kind, how in parts.items()) or "nothing is visited"


_HOW = {
    "inputs": "as the inputs decide at a call",
    "closed": "worked out from the tile's number",
    "run": "in one run a row",
    "runs": "run by run",
    "list": "from a list",
}


def _tiles(grids: Sequence[Grid]) -> str:
    return " and ".join(dict.fromkeys(str(g.tile) for g in grids))


def _side(segments: Sequence[Segment]) -> str:
    return " + ".join(_times(s.shape) for s in segments)


def _times(shape: tuple[int, ...]) -> str:
    return " x ".join(f"{n:,}" for n in shape)


def comment_lines(text: str, name: str = "") -> list[str]:
    """A pattern's text, fit for comments; of a text with several patterns, all but the others.

    name: of the pattern.
    """
    lines = re.split(r"\r\n|\r|\n", text.strip())
    lines = [
        "".join(c if c.isprintable() else "?" for c in x.replace("\t", "    ")).rstrip()
        for x in lines
    ]
    found: list[str] = []
    for part in _parts(lines):
        other = next((m[1] for x in part if (m := re.match(r"pattern\s+(\w+)", x))), name)
        if not name or other == name:
            found += _wrapped(part)
    return found if any(found) else lines


def _parts(lines: list[str]) -> list[list[str]]:
    """Lines with each pattern, and the comment before it, apart."""
    parts: list[list[str]] = [[]]
    comment: list[str] = []
    for line in lines:
        if line.startswith("#"):
            comment.append(line)
            continue
        if re.match(r"(pattern|def)\b", line):
            parts.append([])
        parts[-1] += [*comment, line]
        comment = []
    parts[-1] += comment
    return parts


def _wrapped(lines: list[str]) -> list[str]:
    """Lines, with the comments wrapped anew that have one too long."""
    found: list[str] = []
    for is_comment, group in groupby(lines, lambda x: x.startswith("# ")):
        own = list(group)
        if is_comment and max(map(len, own)) > WIDTH:
            text = " ".join(x[2:] for x in own)
            own = textwrap.wrap(text, WIDTH, initial_indent="# ", subsequent_indent="# ")
        found += own
    return found
