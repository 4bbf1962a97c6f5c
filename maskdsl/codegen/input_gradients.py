"""Gradients of the float inputs that scores read: what each read adds, and where to.

What one read of a pair of tokens adds is summed in the program first: over everything where the
index reads no coordinate, over the other side where it reads one side. So each program has one sum
per read, or one per token; only where an index reads both sides, every pair is added apart.

Where an index reads no coordinate, sums are stored and added up after the kernel, always in the
same order. The others meet in float32 atomics: they are not the same to the last bit every time.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from maskdsl.codegen.arguments import Argument
from maskdsl.codegen.expressions import Printed
from maskdsl.codegen.memory import address_parts
from maskdsl.codegen.sides import Stage, stages
from maskdsl.codegen.text import PRODUCT, Text
from maskdsl.ir.differentiate import ONE, ZERO, derivative, variables
from maskdsl.ir.nodes import Node


@dataclass(frozen=True)
class Read:
    """One read of an input. number: of its own. slope: the score's derivative by what is read.
    side: "q" or "k", the kernel that adds to it; stage: of its index there.
    """

    number: int
    load: Node
    slope: Node
    side: str
    stage: Stage

    def roots(self) -> dict[str, Node]:
        """What a kernel needs to evaluate, by name."""
        indices = {f"at{self.number}_{i}": a for i, a in enumerate(self.load.args)}
        return {f"by{self.number}": self.slope, **indices}


@dataclass(frozen=True)
class Added:
    """Texts of one read.

    slope: its factor at each pair ("" for 1). sums: the variable that sums over the program's
    loops, of each token that it holds ("" where pairs are added apart). offset: where to in the
    gradient `pointer`; mask: whether it is inside the array. total: whether all tokens of a head
    add to one place.
    """

    number: int
    input: str
    pointer: str
    slope: str
    sums: str
    offset: str
    mask: str
    total: bool


def reads_of(score: Node | None, inputs: Iterable[str], count: int = 0) -> list[Read]:
    """The reads of these inputs whose gradients are not zero everywhere, numbered from `count`."""
    if score is None:
        return []
    found: list[Read] = []
    for load in variables(score):
        if load.op != "load" or load.value.name not in inputs:
            continue
        slope = derivative(score, load)
        if slope == ZERO:
            continue
        at = {side: _stage(load, side) for side in "qk"}
        side = "k" if at["k"] == Stage.ROW else "q"
        found.append(Read(count + len(found), load, slope, side, at[side]))
    return found


def _stage(load: Node, home: str) -> Stage:
    """Of all indices together."""
    stage = stages(list(load.args), "", home)
    own = {stage[a] for a in load.args} - {Stage.ONCE}
    return Stage.ONCE if not own else Stage.ROW if own == {Stage.ROW} else Stage.PAIR


def added(reads: Iterable[Read], printed: Printed, inside: str) -> list[Added]:
    """The reads that this kernel adds to. inside: the variable that says which of its tokens exist,
    or "".
    """
    found = []
    for read in reads:
        pairs = read.stage == Stage.PAIR
        source: Mapping[str, Text] = printed.roots if pairs else printed.plain
        indices = [source[f"at{read.number}_{i}"] for i in range(len(read.load.args))]
        array = read.load.value
        offsets, checks = address_parts(read.load, f"in_{array.name}", indices)
        pointer = f"grad_in_{array.name}"
        offsets = [o.replace(f"in_{array.name}_strides", f"{pointer}_strides") for o in offsets]
        if inside and read.stage != Stage.ONCE:
            checks.append(f"{inside}[:, None]" if pairs else inside)
        found.append(
            Added(
                number=read.number,
                input=array.name,
                pointer=pointer,
                slope=""
                if read.slope == ONE
                else printed.roots[f"by{read.number}"].within(PRODUCT),
                sums="" if pairs else f"sums{read.number}",
                offset=" + ".join(offsets) or "0",
                mask=" & ".join(f"({c})" if " " in c else c for c in checks),
                total=read.stage == Stage.ONCE,
            )
        )
    return found


def arguments_for(adds: Iterable[Added]) -> list[Argument]:
    """The kernel's arguments for what it adds."""
    found: dict[str, Argument] = {}
    for a in adds:
        gradient = f'grads["{a.input}"]'
        names = [(f"{a.pointer}_strides", f"{gradient}.stride()", "")]
        if a.total:
            names.append((f"parts{a.number}", f"parts{a.number}", "*fp32"))
            names.append((f"places{a.number}", f"places{a.number}", "*i64"))
        else:
            names.append((a.pointer, gradient, "*fp32"))
        found |= {name: Argument(name, value, type_) for name, value, type_ in names}
    return list(found.values())
