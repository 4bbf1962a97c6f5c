"""Machine code as text, from `nvdisasm -c` or LLVM's AMDGPU listing: its instructions, and the
innermost loops that multiply matrices.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

# HMMA, HGMMA, UTCHMMA and their like; AMD's v_mfma, v_smfmac and v_wmma
_PRODUCT = re.compile(r"[A-Z]+MMA|v_(?:mfma|smfmac|wmma)_\w+")
_SASS_LABEL = re.compile(r"(\.L\w+):")
_SASS = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(@!?U?P\w+\s+)?([A-Z][\w.]*)([^;]*)")
_AMD_LABEL = re.compile(r"(\.LBB\w+):")
_AMD = re.compile(r"\s+((?:v|s|ds|buffer|global|flat|scratch)_\w+)([^;]*)")
_TARGET = re.compile(r"\.L\w+")


@dataclass(frozen=True)
class Instruction:
    """opcode: as it is counted. to: the label it may jump to. stays: whether the next instruction
    may follow.
    """

    opcode: str
    to: str | None = None
    stays: bool = True


@dataclass(frozen=True)
class Code:
    """One kernel: its instructions in order of address, and labels as indices into them."""

    instructions: Sequence[Instruction]
    labels: Mapping[str, int]

    def counts(self) -> dict[str, int]:
        """Opcode to number of instructions."""
        return _counted(self.instructions)

    def loops(self) -> tuple[dict[str, int], ...]:
        """Innermost loops with matrix products, in order of address: opcode to number of
        instructions of one iteration, all its branches taken together.

        A loop is a natural one, of the graph of basic blocks: blocks out of its line, such as those
        that wait for a barrier, belong to it, and prologues do not. One that the compiler knows to
        run once is none.
        """
        graph = _Graph(self)
        found = []
        for first, blocks in graph.natural_loops():
            ops = [op for b in sorted(blocks) for op in graph.block(b)]
            if any(_PRODUCT.fullmatch(op.opcode) for op in ops):
                found.append((first, blocks, _counted(ops)))
        inner = [
            (first, counts)
            for first, blocks, counts in found
            if not any(other < blocks for _, other, _ in found)
        ]
        return tuple(counts for _, counts in sorted(inner, key=lambda x: x[0]))


def read_sass(text: str) -> Code:
    """What `nvdisasm -c` prints of a cubin with one kernel. `MUFU` is counted by function."""
    instructions: list[Instruction] = []
    labels: dict[str, int] = {}
    for line in text.splitlines():
        if label := _SASS_LABEL.match(line):
            labels[label[1]] = len(instructions)
        elif found := _SASS.search(line):
            guard, name, operands = found.groups()
            kind = name.split(".")[0]
            opcode = ".".join(name.split(".")[: 2 if kind == "MUFU" else 1])
            to = _TARGET.search(operands) if kind == "BRA" else None
            # a guard, or a predicate among the operands: `@P0 BRA`, `BRA.U UP0, `
            sure = guard is None and not re.search(r"\bU?P[T\d]", operands.split(".L")[0])
            ends = kind in ("BRA", "BRX", "JMP", "EXIT", "RET") and sure
            instructions.append(Instruction(opcode, to[0] if to else None, not ends))
    return Code(instructions, labels)


def read_amdgcn(text: str) -> Code:
    """LLVM's listing of one kernel."""
    instructions: list[Instruction] = []
    labels: dict[str, int] = {}
    for line in text.splitlines():
        if label := _AMD_LABEL.match(line):
            labels[label[1]] = len(instructions)
        elif found := _AMD.match(line):
            opcode, operands = found.groups()
            branch = opcode.startswith(("s_branch", "s_cbranch"))
            to = _TARGET.search(operands) if branch else None
            ends = opcode in ("s_branch", "s_endpgm", "s_setpc_b64")
            instructions.append(Instruction(opcode, to[0] if to else None, not ends))
    return Code(instructions, labels)


class _Graph:
    """Basic blocks, by number in order of address, and the steps between them."""

    def __init__(self, code: Code) -> None:
        ops = code.instructions
        jumps = {i + 1 for i, op in enumerate(ops) if op.to or not op.stays}
        starts = sorted(n for n in {0, *code.labels.values(), *jumps} if n < len(ops))
        self._ops = ops
        self._starts = [*starts, len(ops)]
        at = {start: b for b, start in enumerate(starts)}
        self.next: list[list[int]] = []
        for b in range(len(starts)):
            last = ops[self._starts[b + 1] - 1]
            places = [code.labels.get(last.to, len(ops))] if last.to else []
            places += [self._starts[b + 1]] if last.stays else []
            self.next.append([at[p] for p in dict.fromkeys(places) if p in at])

    def block(self, number: int) -> Sequence[Instruction]:
        return self._ops[self._starts[number] : self._starts[number + 1]]

    def natural_loops(self) -> Iterator[tuple[int, set[int]]]:
        """(first block, all blocks) of each loop: a loop starts at a block that every way to one
        of its ends has passed, and holds what reaches that end without passing it again.
        """
        before: dict[int, list[int]] = {b: [] for b in range(len(self.next))}
        for b, following in enumerate(self.next):
            for other in following:
                before[other].append(b)
        passed = self._dominators(before)
        for first in range(len(self.next)):
            waiting = [b for b in before[first] if first in passed.get(b, ())]
            if not waiting:
                continue
            blocks = {first}
            while waiting:
                b = waiting.pop()
                if b not in blocks:
                    blocks.add(b)
                    waiting += [other for other in before[b] if other in passed]
            yield first, blocks

    def _dominators(self, before: Mapping[int, Sequence[int]]) -> dict[int, set[int]]:
        """By reachable block: the blocks on every way to it, itself included."""
        order: list[int] = []
        seen, waiting = set(), [0] if self.next else []
        while waiting:
            b = waiting.pop()
            if b not in seen:
                seen.add(b)
                order.append(b)
                waiting += self.next[b]
        order.sort()  # addresses follow the flow but for loops
        passed = {b: set(order) if b else {0} for b in order}
        changed = True
        while changed:
            changed = False
            for b in order[1:]:
                ways = [passed[other] for other in before[b] if other in passed]
                now = set.intersection(*ways) | {b}
                changed |= now != passed[b]
                passed[b] = now
        return passed


def _counted(instructions: Sequence[Instruction]) -> dict[str, int]:
    return dict(sorted(Counter(op.opcode for op in instructions).items()))
