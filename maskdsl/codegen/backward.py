"""One plan to one standalone Triton module for gradients: of queries over rows of query tiles, then
of keys and values over rows of key tiles.

Two passes without atomics: q, k and v have the same gradients, to the last bit, every time.
"""

from __future__ import annotations

from collections.abc import Iterable

from maskdsl.codegen.emit import Module
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
        roots = _roots(self.lowered.score)
        numbers: dict[str, int] = {}
        reads = {s: [r for r in reads_of(self.lowered.score, inputs) if r.side == s] for s in "qk"}
        self.frames = [
            Frame(plan, spec, self.lowered, s, _with_reads(roots, reads[s]), numbers) for s in "qk"
        ]
        q_lanes, k_lanes = plan.q_grid_.tile.lanes, plan.kv_grid_.tile.lanes
        settings = spec.backward_settings(q_lanes, k_lanes)
        q, k = self.frames
        contexts = {
            "dq": q.context(
                f"{self.name}_dq", ["q", "do", "out"], ["k", "v"], ["dq"],
                ["q", "k", "v", "out", "do", "dq"], ["lse", "grad_lse", "delta"], reads["q"],
            ),
            "dkv": k.context(
                f"{self.name}_dkv", ["k", "v"], ["q", "do"], ["dk", "dv"],
                ["q", "k", "v", "do", "dk", "dv"], ["lse", "delta"], reads["k"],
            ),
        }  # fmt: skip
        arguments = [a for f in contexts.values() for a in f["arguments"] if a.type]
        self.context = {
            **self.shared_context(),
            "title": f"Gradients of attention for the pattern `{plan.name}`, emitted by MaskDSL.",
            "facts": facts(plan, spec, q.walk, settings),
            "backward": True,
            "read_inputs": sorted({r.load.value.name for x in reads.values() for r in x}),
            "pointers": list({a.name: a.type for a in arguments}.items()),
            **contexts,
            "options": self.options(*settings),
        }


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
