"""A whole pattern as plain torch source text: which pairs it keeps, their scores, its sink."""

from __future__ import annotations

import re
from typing import Any

from maskdsl.codegen.torch_text import HELPERS, TorchText
from maskdsl.ir.nodes import Node
from maskdsl.ir.program import Block, Segment
from maskdsl.planner import Plan


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
