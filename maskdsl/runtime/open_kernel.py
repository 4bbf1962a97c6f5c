"""`OpenKernel`: attention under a pattern of which some extents are open until a call."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace

import torch

from maskdsl.codegen import Emission
from maskdsl.errors import BindError, CompileError
from maskdsl.language.binding import whole
from maskdsl.pattern import Mask
from maskdsl.planner import Plan
from maskdsl.runtime.boundary import Shapes
from maskdsl.runtime.call import Attention, Pair, Tensors
from maskdsl.runtime.choices import Choices
from maskdsl.runtime.extents import extents_of
from maskdsl.runtime.kernel import Kernel, handle_of
from maskdsl.runtime.one_for_all import OneForAll
from maskdsl.runtime.planned import Planned

KEPT = 32  # plans, those used last


class OpenKernel(Kernel):
    """What `compile` gives for a pattern with open extents: a call's shapes tell them.

    Each set of extents gets a plan of its own; the last `KEPT` are kept. The emitted module is the
    same for all of them where the walk has a closed form: `source`.
    """

    def __init__(self, mask: Mask, choices: Choices) -> None:
        self._kernels: OrderedDict[tuple[int, ...], Kernel] = OrderedDict()
        self._lock = threading.Lock()
        self._of_each = choices
        self._for_all: Emission | None = None
        self._one: OneForAll | None = None
        self._no_one = f"a {choices.backend} kernel's plan is made for bound extents"
        Planned.__init__(self, mask, choices)
        Attention.__init__(self, mask, choices, handle_of(mask, choices))
        if choices.backend == "triton":
            self._one_for_all()

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
        key = tuple(whole(a, extents[a], least=1) for a in self.mask.open)
        found = self._kept(key)
        if found is None:
            found = self._keep(key, self._bound(self.mask.bind(**extents)))
        return found

    def _bound(self, mask: Mask) -> Kernel:
        return Kernel(mask, self._of_each, plan_now=False, one=self._one)

    def _one_for_all(self) -> None:
        """The module of all extents, where there is one, and the tiles that all then share."""
        try:
            one = OneForAll(self.mask)
            typical = Planned(one.typical, self.choices)
            one.opened.walk(typical.plan, "q")
            self._for_all = one.forward(typical.plan, typical._spec)
        except CompileError as why:
            self._no_one = str(why)
            return
        if self._for_all is None:
            self._no_one = "the walk of a typical extent is not that of the closed form"
            return
        tiles = typical.plan.q_grid_.tile, typical.plan.kv_grid_.tile
        self._of_each = replace(self.choices, q_tile=tiles[0], kv_tile=tiles[1])
        self._one = one

    @property
    def source(self) -> str:
        """The emitted module of all extents. Raises CompileError where each has its own."""
        return self._of_all().render()

    @property
    def sources(self) -> dict[str, str]:
        """The emitted modules of all extents, as those of a Kernel. Raises CompileError."""
        found = {"forward": self.source}
        assert self._one is not None
        typical = Planned(self._one.typical, self._of_each)
        for name in ("dq", "dkv"):
            emission = self._one.gradient(name, typical.plan_of(name), typical._spec, ())
            if emission is None:
                raise CompileError(f"each extent has a {name} kernel of its own")
            found[name] = emission.render()
        return found

    @property
    def key(self) -> str:
        """What the module of all extents is cached under. Raises CompileError as `source`."""
        return self._of_all().key

    def _of_all(self) -> Emission:
        if self._one is None or self._for_all is None:
            raise CompileError(
                f"{self.mask.pattern.name} has a kernel for each extent ({self._no_one}): see "
                f"kernel.bind({', '.join(f'{a}=...' for a in self.mask.open)})"
            )
        return self._for_all

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

    def empty(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, inputs: Tensors,
        q_offset: int | None,
    ) -> Pair:  # fmt: skip
        """(out, lse) as `forward` lays them, for any extents."""
        return Attention.empty(self, q, k, v, inputs, q_offset)

    def gradients(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, out: torch.Tensor,
        lse: torch.Tensor, do: torch.Tensor, grad_lse: torch.Tensor | None, inputs: Tensors,
        wanted: Sequence[bool], q_offset: int | None,
    ) -> list[torch.Tensor]:  # fmt: skip
        """Those wanted of q, k, v and the inputs."""
        own = self._at(q, k, inputs)
        return own.gradients(q, k, v, out, lse, do, grad_lse, inputs, wanted, q_offset)

    @property
    def plan(self) -> Plan:
        """Raises BindError: a plan is of bound extents, as `bind` gives."""
        raise self._open("plan")

    @property
    def shapes(self) -> Shapes:
        """Raises BindError, as `plan`."""
        raise self._open("shapes")

    def _open(self, what: str) -> BindError:
        so = "so do" if what.endswith("s") else "so does"
        named = f"kernel.bind({', '.join(f'{a}=...' for a in self.mask.open)})"
        return BindError(
            f"{', '.join(self.mask.open)} stay open, and {so} the {what}: see {named}.{what}"
        )
