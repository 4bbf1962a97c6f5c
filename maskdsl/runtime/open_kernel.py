"""`OpenKernel`: attention under a pattern of which some extents are open until a call."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence

import torch

from maskdsl.errors import BindError
from maskdsl.pattern import Mask
from maskdsl.planner import Plan
from maskdsl.runtime.call import Attention, Pair, Tensors
from maskdsl.runtime.choices import Choices
from maskdsl.runtime.extents import extents_of
from maskdsl.runtime.kernel import Kernel, handle_of

KEPT = 32  # plans, those used last


class OpenKernel(Kernel):
    """What `compile` gives for a pattern with open extents: a call's shapes tell them.

    Each set of extents gets a kernel of its own, with its plan; the last `KEPT` are kept.
    """

    def __init__(self, mask: Mask, choices: Choices) -> None:
        self._kernels: OrderedDict[tuple[int, ...], Kernel] = OrderedDict()
        self._lock = threading.Lock()
        Attention.__init__(self, mask, choices, handle_of(mask, choices))

    def bind(self, **extents: int) -> Kernel:
        """The kernel for these extents. Raises BindError, and what `compile` raises."""
        unknown = [a for a in extents if a not in self.mask.open]
        if unknown:
            raise BindError(
                f"{', '.join(unknown)}: not open in {self.mask!r} ({', '.join(self.mask.open)})"
            )
        lacking = [a for a in self.mask.open if a not in extents]
        if lacking:
            return OpenKernel(self.mask.bind(**extents), self.choices)
        key = tuple(extents[a] for a in self.mask.open)
        found = self._kept(key)
        if found is None:
            found = self._keep(key, Kernel(self.mask.bind(**extents), self.choices, plan_now=False))
        return found

    def _kept(self, key: tuple[int, ...]) -> Kernel | None:
        with self._lock:
            if key not in self._kernels:
                return None
            self._kernels.move_to_end(key)
            return self._kernels[key]

    def _keep(self, key: tuple[int, ...], made: Kernel) -> Kernel:
        with self._lock:
            found = self._kernels.setdefault(key, made)
            while len(self._kernels) > KEPT:
                self._kernels.popitem(last=False)
        return found

    def _at(self, q: torch.Tensor, k: torch.Tensor, inputs: Tensors) -> Kernel:
        for name, x in (("q", q), ("k", k)):
            if x.ndim != 4:
                raise BindError(f"{name} must have 4 dimensions, not shape {tuple(x.shape)}")
        tokens = 2 if self.choices.layout == "bhnd" else 1
        named = dict(zip((a.name for a in self._inputs), inputs, strict=True))
        extents = extents_of(self.mask.program, q.shape[tokens], k.shape[tokens], named)
        return self.bind(**extents)

    def forward(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, inputs: Tensors,
        q_offset: int | None,
    ) -> Pair:  # fmt: skip
        """(out, lse). Raises BindError, EvalError, PlanError, CompileError."""
        return self._at(q, k, inputs).forward(q, k, v, inputs, q_offset)

    def gradients(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, out: torch.Tensor,
        lse: torch.Tensor, do: torch.Tensor, grad_lse: torch.Tensor | None, inputs: Tensors,
        wanted: Sequence[bool],
    ) -> list[torch.Tensor]:  # fmt: skip
        """Those wanted of q, k, v and the inputs."""
        own = self._at(q, k, inputs)
        return own.gradients(q, k, v, out, lse, do, grad_lse, inputs, wanted)

    @property
    def plan(self) -> Plan:
        """Raises BindError: a plan is of bound extents, as `bind` gives."""
        raise BindError(
            f"{', '.join(self.mask.open)} stay open, and so does the plan: kernel.bind("
            f"{', '.join(f'{a}=...' for a in self.mask.open)}).plan is that of bound extents"
        )
