"""Expressions as functions of index tensors: traced once to torch operations, which `vmap`,
`torch.compile` and plain calls all take.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.fx import Graph, GraphModule
from torch.fx.experimental.proxy_tensor import make_fx

from maskdsl.ir.evaluate import evaluate
from maskdsl.ir.nodes import Node, postorder
from maskdsl.runtime.torch_space import TorchSpace

DTYPES = {"int": torch.int64, "float": torch.float64, "bool": torch.bool}


class _Space(TorchSpace):
    """Operations that a trace holds as they are: numbers become fills instead of captured tensors,
    tables are those given.
    """

    def __init__(
        self, device: torch.device, float_dtype: torch.dtype, tables: Mapping[int, torch.Tensor]
    ) -> None:
        super().__init__(device, float_dtype)
        self.tables = dict(tables)

    def _tensor(self, x: Any) -> torch.Tensor:
        if isinstance(x, torch.Tensor):
            return x
        type_ = "bool" if isinstance(x, bool) else "int" if isinstance(x, int) else "float"
        dtype = self.float_dtype if type_ == "float" else DTYPES[type_]
        return torch.full((), x, dtype=dtype, device=self.device)

    def where(self, test: Any, a: Any, b: Any) -> Any:
        return torch.where(self._tensor(test), self._tensor(a), self._tensor(b))

    def table(self, array: Any) -> torch.Tensor:
        return self.tables[id(array)]

    def gather(self, array: torch.Tensor, indices: list[Any]) -> torch.Tensor:
        at = [self._tensor(i) for i in indices]
        return torch.ops.aten.index(array, at) if at else array


def traced(
    root: Node,
    leaves: tuple[Any, ...],
    inputs: Mapping[str, torch.Tensor],
    device: torch.device,
    float_dtype: torch.dtype,
) -> tuple[Callable[..., torch.Tensor], tuple[torch.Tensor, ...]]:
    """(function, tensors): `function(*values, *tensors)` is the root's value, elementwise.

    leaves: what the values stand for, as keys of `ir.evaluate`; all but "logit" are int64, "logit"
    is of `float_dtype`. tensors: the inputs and tables that are read, on the device.
    """
    loads = [n.value for n in postorder(root) if n.op == "load"]
    arrays = {id(a.data): torch.from_numpy(a.data.copy()) for a in loads if a.data is not None}
    tables = {key: table.to(device) for key, table in arrays.items()}
    read = {a.name: inputs[a.name] for a in loads if a.is_input}

    def run(*args: torch.Tensor) -> torch.Tensor:
        values, given = args[: len(leaves)], args[len(leaves) :]
        space = _Space(device, float_dtype, dict(zip(tables, given, strict=False)))
        named = dict(zip(read, given[len(tables) :], strict=True))
        value = evaluate(root, dict(zip(leaves, values, strict=True)), named, space)
        dtype = float_dtype if root.type == "float" else DTYPES[root.type]
        return (
            value
            if isinstance(value, torch.Tensor)
            else values[-1].new_full((), value, dtype=dtype)
        )

    tensors = (*tables.values(), *read.values())
    examples = [
        torch.zeros((), dtype=float_dtype if leaf == "logit" else torch.int64, device=device)
        for leaf in leaves
    ]
    with torch.no_grad():
        graph = make_fx(run)(*examples, *(t.detach() for t in tensors)).graph
    return GraphModule({}, _indexed(graph)), tensors


def _indexed(graph: Graph) -> Graph:
    """The same graph with `array[i, j]` as users write it: torch has rules of its own for it inside
    score and mask functions, gradients included.
    """
    for node in graph.nodes:
        if node.target is torch.ops.aten.index.Tensor:
            array, indices = node.args
            node.target, node.args = operator.getitem, (array, tuple(indices))
    graph.lint()
    return graph
