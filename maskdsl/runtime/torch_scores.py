"""Score clauses on logits, their slopes, and the gradients of the float inputs they read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

import torch

from maskdsl.ir import floats, logic
from maskdsl.ir.differentiate import ZERO, derivative, variables
from maskdsl.ir.evaluate import evaluate_all
from maskdsl.ir.nodes import Node, postorder
from maskdsl.ir.program import Program
from maskdsl.runtime import native_scores
from maskdsl.runtime.boundary import Call
from maskdsl.runtime.native_scores import Shapes
from maskdsl.runtime.torch_pairs import Pairs, evaluated
from maskdsl.runtime.torch_space import TorchSpace


class Score:
    """The score of one pair of segments.

    added: what it adds to the logit, where that is all it does. alike: whether it is the same for
    pairs that differ by one translation of both sides.
    """

    def __init__(self, root: Node) -> None:
        self.root = root
        self.logit = next((n for n in postorder(root) if n.op == "logit"), None)
        self.added = None if self.logit is None else _added(root, self.logit)
        self.loads = [n for n in variables(root) if n.op == "load"]
        self.alike = _relative(root)

    @cached_property
    def slope(self) -> Node:
        """By the logit."""
        return ZERO if self.logit is None else derivative(self.root, self.logit)


class Scores:
    """The scores of a program. only_add: whether all they do is to add to the logit."""

    def __init__(self, program: Program) -> None:
        self.of = [
            [None if b.score is None else Score(b.score) for b in row] for row in program.blocks
        ]
        given = [s for row in self.of for s in row if s is not None]
        self.any = bool(given)
        self.only_add = all(s.added is not None for s in given)
        self.alike = all(s.alike for s in given)
        self._given = given
        self._pairs = program.heads * program.query_tokens * program.key_tokens

    @cached_property
    def shapes(self) -> Shapes | None:
        """What the compiled part makes of them, None where it does not serve."""
        if self.only_add:
            added = {s.root: s.added for s in self._given}
            return native_scores.adding({r: x for r, x in added.items() if x is not None})
        if self._pairs < native_scores.LEAST_PAIRS:
            return None
        return native_scores.printed({s.root: s.slope for s in self._given})

    def added(self, pairs: Pairs, space: TorchSpace) -> list[tuple[slice, torch.Tensor]]:
        """(columns, what to add to their logits), where all scores only add."""
        found = []
        for number, block, columns in pairs.blocks():
            score = self.of[pairs.group.query_segment][number]
            if score is not None and score.added is not None:
                leaves = pairs.leaves(block, columns)
                found.append((columns, evaluated(score.added, leaves, pairs.call.inputs, space)))
        return found

    def shape(self, s: torch.Tensor, pairs: Pairs, space: TorchSpace) -> torch.Tensor:
        """The scores of logits over pairs."""
        shaped = s.clone()
        for number, block, columns in pairs.blocks():
            score = self.of[pairs.group.query_segment][number]
            if score is not None:
                leaves = pairs.leaves(block, columns) | {"logit": s[..., columns]}
                value = evaluated(score.root, leaves, pairs.call.inputs, space)
                shaped[..., columns] = value
        return shaped

    def backward(
        self,
        gradient: torch.Tensor,
        s: torch.Tensor | None,
        pairs: Pairs,
        space: TorchSpace,
        found: InputGradients,
        clean: Callable[[torch.Tensor], None],
    ) -> torch.Tensor:
        """The gradient of logits from that of scores, and those of inputs added to `found`.

        s: the logits over pairs, where not all scores only add. clean: sets gradients of
        forbidden pairs to zero.
        """
        result = gradient if self.only_add else gradient.clone()
        for number, block, columns in pairs.blocks():
            score = self.of[pairs.group.query_segment][number]
            if score is None:
                continue
            leaves = pairs.leaves(block, columns)
            if s is not None:
                leaves["logit"] = s[..., columns]

            def weighted(
                slope: Node, leaves: Mapping[Any, Any] = leaves, columns: slice = columns
            ) -> torch.Tensor:
                full = torch.zeros_like(gradient)
                value = evaluated(slope, leaves, pairs.call.inputs, space)
                torch.mul(gradient[..., columns], value, out=full[..., columns])
                clean(full)
                return full[..., columns]

            for load in score.loads:
                if load.value.name in found.wanted:
                    found.add(load, leaves, weighted(derivative(score.root, load)))
            if score.logit is None:
                result[..., columns] = 0
            elif score.added is None:
                result[..., columns] = weighted(score.slope)
        return result


class InputGradients:
    """Gradients of the float inputs that scores and the sink read."""

    def __init__(self, call: Call, wanted: tuple[str, ...], dtype: torch.dtype) -> None:
        self.wanted = wanted
        self._call = call
        self.found = {n: torch.zeros_like(call.inputs[n], dtype=dtype) for n in wanted}

    def of(self, name: str) -> torch.Tensor | None:
        """The gradient of an input, in its type, or None where it is not wanted."""
        found = self.found.get(name)
        return None if found is None else found.to(self._call.inputs[name].dtype)

    def add_all(self, root: Node, leaves: Mapping[Any, Any], gradient: torch.Tensor) -> None:
        """Add the gradient of an expression's value at every pair to what it reads."""
        space = TorchSpace(gradient.device, gradient.dtype)
        for load in variables(root):
            if load.op == "load" and load.value.name in self.wanted:
                slope = evaluated(derivative(root, load), leaves, self._call.inputs, space)
                self.add(load, leaves, gradient * slope)

    def add(self, load: Node, leaves: Mapping[Any, Any], gradient: torch.Tensor) -> None:
        """Add the gradient of an element read at every pair to that element."""
        total = self.found[load.value.name]
        space = TorchSpace(gradient.device, torch.float64)
        indices = [
            torch.as_tensor(i, device=gradient.device)
            for i in evaluate_all(load.args, leaves, self._call.inputs, space)
        ]
        if not indices:
            total += gradient.sum()
            return
        shape = torch.broadcast_shapes(*(i.shape for i in indices))  # type: ignore[no-untyped-call]
        shape = (1,) * (gradient.ndim - len(shape)) + tuple(shape)
        same = [d for d in range(gradient.ndim) if shape[d] == 1 and gradient.shape[d] > 1]
        if same:
            gradient = gradient.sum(same, keepdim=True)
        place = torch.zeros(shape, dtype=torch.int64, device=gradient.device)
        inside = torch.ones(shape, dtype=torch.bool, device=gradient.device)
        for index, extent in zip(indices, total.shape, strict=True):
            inside &= (index >= 0) & (index < extent)
            place = place * extent + index
        places = place.where(inside, 0).expand(gradient.shape)
        gradient = gradient.where(inside, 0)
        total.view(-1).index_add_(0, places.reshape(-1), gradient.reshape(-1))


def _added(root: Node, logit: Node) -> Node | None:
    """What an expression adds to the logit, or None where it does anything else with it."""
    if root == logit:
        return ZERO
    reads = [logit in postorder(a) for a in root.args]
    if root.op in ("add", "sub") and reads == [True, False]:
        inner = _added(root.args[0], logit)
        build = floats.add if root.op == "add" else floats.sub
        return None if inner is None else build(inner, root.args[1])
    if root.op == "add" and reads == [False, True]:
        inner = _added(root.args[1], logit)
        return None if inner is None else floats.add(root.args[0], inner)
    if root.op == "select" and reads == [False, True, True]:
        first, second = (_added(a, logit) for a in root.args[1:])
        if first is not None and second is not None:
            return logic.select(root.args[0], first, second)
    return None


def _relative(root: Node) -> bool:
    """Whether coordinates are read only as differences of queries and keys on an axis."""
    for node in postorder(root):
        if node.op == "linear":
            totals: dict[str, int] = {}
            for c, a in zip(node.value[1], node.args, strict=True):
                if a.op == "coord":
                    totals[a.value[1]] = totals.get(a.value[1], 0) + c
            if any(totals.values()):
                return False
        elif any(a.op == "coord" for a in node.args):
            return False
    return root.op != "coord"
