"""`MaskAttention`: attention under a mask as a module of a model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from maskdsl.errors import BindError
from maskdsl.pattern import Mask, Pattern
from maskdsl.runtime.boundary import tensor_of
from maskdsl.runtime.call import attend
from maskdsl.runtime.compile import compile  # noqa: A004
from maskdsl.runtime.kernel import Kernel


class MaskAttention(torch.nn.Module):
    """Attention under one mask, for tensors of any dtype: a kernel is compiled for each that comes.

    mask: extents may be open. inputs: tensors that calls need not name: those that are Parameters
    are trained with the model, others move with it. options: of `compile`. Raises what `compile`
    raises, and BindError for names that are no inputs.
    """

    def __init__(
        self, mask: Mask | Pattern, head_dim: int, inputs: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:  # fmt: skip
        super().__init__()
        self.mask = mask.bind() if isinstance(mask, Pattern) else mask
        self.head_dim, self.options = head_dim, options
        self._kernels: dict[torch.dtype, Kernel] = {}
        self._held: tuple[str, ...] = tuple(inputs or ())
        arrays = {a.name: a for a in self.mask.program.inputs}
        for name, x in (inputs or {}).items():
            if name not in self.mask.pattern.inputs:
                raise BindError(f"{self.mask.pattern.name} has no input '{name}' to hold")
            if isinstance(x, torch.nn.Parameter):
                self.register_parameter(f"input_{name}", x)
            else:
                if isinstance(x, np.ndarray):
                    x = tensor_of(arrays[name], x, torch.device("cpu"))
                self.register_buffer(f"input_{name}", torch.as_tensor(x), persistent=False)
        plain = options.get("template", "plain") == "plain"
        self.kernel(torch.float32 if plain else torch.bfloat16)  # what is no kernel fails here

    def kernel(self, dtype: torch.dtype) -> Kernel:
        """The kernel for tensors of this dtype."""
        if dtype not in self._kernels:
            self._kernels[dtype] = compile(self.mask, self.head_dim, dtype, **self.options)
        return self._kernels[dtype]

    @torch._dynamo.assume_constant_result  # type: ignore[untyped-decorator]
    def _handle(self, dtype: torch.dtype) -> str:
        return self.kernel(dtype).handle

    def forward(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, /, *, return_lse: bool = False,
        q_offset: int | None = None, **inputs: Any,
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
        """As a kernel is called; see `Kernel`. Under autocast in its dtype."""
        held = {n: getattr(self, f"input_{n}") for n in self._held}
        return attend(
            self.mask.program.inputs, self._handle(_dtype(q)), q, k, v, held | inputs,
            return_lse, q_offset,
        )  # fmt: skip

    def extra_repr(self) -> str:
        return f"{self.mask!r}, head_dim={self.head_dim}"


def _dtype(q: torch.Tensor) -> torch.dtype:
    kind = q.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else q.dtype
