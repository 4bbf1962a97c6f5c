"""Modules that serve every extent of an open mask, each emitted once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from typing import TypeVar

from maskdsl.codegen import Emission, GradientEmission, Spec
from maskdsl.codegen.decode import DecodeEmission
from maskdsl.codegen.opened import Opened
from maskdsl.errors import CompileError, MaskError
from maskdsl.pattern import Mask
from maskdsl.planner import Plan

TYPICAL = 2**16  # tokens of an open axis, of the plan from which a module is emitted

T = TypeVar("T", Emission, GradientEmission, DecodeEmission)


class OneForAll:
    """Emits the modules of an open mask for the tiles of plans of bound extents; None where the
    closed form of all extents is not that plan's walk. Raises CompileError where no module can
    serve all extents.
    """

    def __init__(self, mask: Mask) -> None:
        self.mask = mask
        self.opened = Opened(mask.program)
        self._plans: dict[Hashable, Plan] = {}
        self._emissions: dict[Hashable, Emission | GradientEmission | DecodeEmission | None] = {}
        self._lock = threading.Lock()

    @property
    def typical(self) -> Mask:
        """The mask of a likely extent. Raises CompileError where the pattern does not allow it."""
        try:
            return self.mask.bind(**dict.fromkeys(self.mask.open, TYPICAL))
        except MaskError as why:
            (first, *_) = str(why).splitlines()
            raise CompileError(f"extents of {TYPICAL} do not fit the pattern: {first}") from why

    def forward(self, plan: Plan, spec: Spec) -> Emission | None:
        return self._emission(plan, "q", (spec,), lambda p: Emission(p, spec, self.opened))

    def gradient(
        self, kernel: str, plan: Plan, spec: Spec, wanted: tuple[str, ...]
    ) -> GradientEmission | None:
        home = "q" if kernel == "dq" else "k"

        def make(plan: Plan) -> GradientEmission:
            return GradientEmission(kernel, plan, spec, wanted, self.opened)

        return self._emission(plan, home, (kernel, spec, wanted), make)

    def decode(self, plan: Plan, spec: Spec) -> DecodeEmission | None:
        return self._emission(
            plan, "q", ("decode", spec), lambda p: DecodeEmission(p, spec, self.opened)
        )

    def _emission(
        self, plan: Plan, home: str, what: tuple[Hashable, ...], make: Callable[[Plan], T]
    ) -> T | None:
        if not self.opened.serves(plan, [home]):
            return None
        tiles = plan.q_grid_.tile, plan.kv_grid_.tile
        key = (tiles, *what)
        with self._lock:
            if key not in self._emissions:
                if tiles not in self._plans:
                    self._plans[tiles] = self.typical.plan(*tiles)
                try:
                    self._emissions[key] = make(self._plans[tiles])
                except CompileError:
                    self._emissions[key] = None
            return self._emissions[key]  # type: ignore[return-value]
