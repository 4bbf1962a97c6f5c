"""One plan to one standalone Triton module for gradients: of queries over rows of query tiles, then
of keys and values over rows of key tiles.

Two passes without atomics: q, k and v have the same gradients, to the last bit, every time.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from maskdsl.codegen.emit import Module, plan_lanes, types_of
from maskdsl.codegen.frame import Frame
from maskdsl.codegen.header import facts
from maskdsl.codegen.input_gradients import Read, reads_of
from maskdsl.codegen.spec import Spec
from maskdsl.ir.differentiate import ONE, ZERO, derivative
from maskdsl.ir.nodes import Node, postorder
from maskdsl.planner import Plan


class BackwardEmission(Module):
    """The module of the backward kernels. inputs: names of float inputs whose gradients it also
    gives, as far as scores read them. Raises CompileError where the plan or the pattern is beyond
    kernels.
    """

    template = "backward.py.j2"

    def __init__(self, plan: Plan, spec: Spec, inputs: Iterable[str] = ()) -> None:
        super().__init__(plan, spec)
        self.kernel = f"{self.name}_backward"
        numbers: dict[str, int] = {}
        program = plan.program
        reads = self._reads(tuple(inputs))
        self.frames = []
        contexts: dict[str, list[dict[str, Any]]] = {"q": [], "k": []}
        names = {
            "q": (
                "dq", ["q", "do", "out"], ["k", "v"], ["dq"],
                ["q", "k", "v", "out", "do", "dq"], ["lse", "grad_lse", "delta"],
            ),
            "k": (
                "dkv", ["k", "v"], ["q", "do"], ["dk", "dv"],
                ["q", "k", "v", "do", "dk", "dv"], ["lse", "delta"],
            ),
        }  # fmt: skip
        for home, own, other in (
            ("q", program.queries, program.keys), ("k", program.keys, program.queries)
        ):  # fmt: skip
            for number in range(len(own)):
                blocks = [(number, a) if home == "q" else (a, number) for a in range(len(other))]
                mine = [[r for r in reads[at] if r.side == home] for at in blocks]
                roots = [
                    _with_reads(_roots(self.lowered.scores[i][j]), r)
                    for (i, j), r in zip(blocks, mine, strict=True)
                ]
                frame = Frame(plan, spec, self.lowered, home, number, roots, numbers)
                self.frames.append(frame)
                kernel, *what = names[home]
                kernel = f"{self.name}_{kernel}{frame.suffix}"
                contexts[home].append(frame.context(kernel, *what, mine))
        settings = spec.backward_settings(*plan_lanes(plan))
        every = [r for x in reads.values() for r in x]
        self.context = {
            **self.shared_context(),
            "title": f"Gradients of attention for the pattern `{plan.name}`, emitted by MaskDSL.",
            "facts": facts(plan, spec, [f.walk for f in self.frames], settings),
            "backward": True,
            "read_inputs": sorted({r.load.value.name for r in every}),
            "types": types_of([*contexts["q"], *contexts["k"]]),
            "dq": contexts["q"],
            "dkv": contexts["k"],
            "options": self.options(*settings),
        }

    def _reads(self, inputs: tuple[str, ...]) -> dict[tuple[int, int], list[Read]]:
        """Of each pair of segments, numbered through."""
        found: dict[tuple[int, int], list[Read]] = {}
        count = 0
        for i, row in enumerate(self.lowered.scores):
            for j, score in enumerate(row):
                found[i, j] = reads_of(score, inputs, count)
                count += len(found[i, j])
        return found


def _roots(score: Node | None) -> dict[str, Node]:
    """The score, and its derivative by the logit unless that is 1."""
    if score is None:
        return {}
    logit = next((n for n in postorder(score) if n.op == "logit"), None)
    slope = ZERO if logit is None else derivative(score, logit)
    return {"score": score} if slope == ONE else {"score": score, "slope": slope}


def _with_reads(roots: dict[str, Node], reads: list[Read]) -> dict[str, Node]:
    found = dict(roots)
    for read in reads:
        found |= read.roots()
    return found
