"""One plan to the standalone Triton modules of its gradients: of queries over rows of query tiles,
and of keys and values over rows of key tiles, each with tiles and launch settings of its own.

Two passes without atomics: q, k and v have the same gradients, to the last bit, every time.
"""

from __future__ import annotations

from collections.abc import Iterable

from maskdsl.codegen.emit import Module
from maskdsl.codegen.frame import Frame
from maskdsl.codegen.input_gradients import Read, reads_of
from maskdsl.codegen.opened import Opened
from maskdsl.codegen.spec import Spec
from maskdsl.ir.differentiate import ONE, ZERO, derivative
from maskdsl.ir.nodes import Node, postorder
from maskdsl.planner import Plan

# home side; tensors held, walked, stored, all of them; those per query
_Kernel = tuple[str, list[str], list[str], list[str], list[str], list[str]]
_KERNELS: dict[str, _Kernel] = {
    "dq": (
        "q", ["q", "do", "out"], ["k", "v"], ["dq"], ["q", "k", "v", "out", "do", "dq"],
        ["lse", "grad_lse", "delta"],
    ),
    "dkv": (
        "k", ["k", "v"], ["q", "do"], ["dk", "dv"], ["q", "k", "v", "do", "dk", "dv"],
        ["lse", "delta"],
    ),
}  # fmt: skip
_TITLES = {"dq": "Gradients of queries", "dkv": "Gradients of keys and values"}


class GradientEmission(Module):
    """The module of one of the backward kernels: "dq", which runs first, or "dkv". inputs: names of
    float inputs whose gradients it also gives, as far as scores read them and it is its part.
    Raises CompileError where the plan or the pattern is beyond kernels.
    """

    def __init__(
        self, kernel: str, plan: Plan, spec: Spec, inputs: Iterable[str] = (),
        opened: Opened | None = None,
    ) -> None:  # fmt: skip
        super().__init__(plan, spec, opened)
        self.template = f"{kernel}.py.j2"
        self.kernel = f"{self.name}_{kernel}"
        self.direction = kernel
        home, held, walked, stored, tensors, per_query = _KERNELS[kernel]
        program = plan.program
        own, other = program.queries, program.keys
        if home == "k":
            own, other = other, own
        reads = self._reads(home, tuple(inputs))
        numbers: dict[str, int] = {}
        self.frames, contexts = [], []
        for number in range(len(own)):
            blocks = [(number, a) if home == "q" else (a, number) for a in range(len(other))]
            mine = [reads[at] for at in blocks]
            roots = [
                _with_reads(_roots(self.lowered.scores[i][j]), r)
                for (i, j), r in zip(blocks, mine, strict=True)
            ]
            frame = Frame(plan, spec, self.lowered, home, number, roots, numbers, opened)
            self.frames.append(frame)
            name = self.kernel + frame.suffix
            contexts.append(frame.context(name, held, walked, stored, tensors, per_query, mine))
        self.context = {
            **self.shared_context(contexts),
            "title": f"{_TITLES[kernel]} for the pattern `{plan.name}`, emitted by MaskDSL.",
            "read_inputs": sorted({r.load.value.name for x in reads.values() for r in x}),
        }

    def _reads(self, home: str, inputs: tuple[str, ...]) -> dict[tuple[int, int], list[Read]]:
        """Those that this kernel adds to, of each pair of segments, numbered through."""
        found: dict[tuple[int, int], list[Read]] = {}
        count = 0
        for i, row in enumerate(self.lowered.scores):
            for j, score in enumerate(row):
                every = reads_of(score, inputs, count)
                found[i, j] = [r for r in every if r.side == home]
                count += len(every)
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
