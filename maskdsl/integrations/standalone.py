"""`standalone`: a mask's kernels as one Python file that needs torch and triton alone."""

from __future__ import annotations

import torch

from maskdsl.codegen import Spec
from maskdsl.codegen.standalone import standalone as written
from maskdsl.errors import CompileError
from maskdsl.pattern import Mask
from maskdsl.planner import TilesLike
from maskdsl.runtime.boundary import DTYPES
from maskdsl.runtime.compile import compile as compile_mask


def standalone(
    mask: Mask,
    head_dim: int = 128,
    dtype: torch.dtype = torch.bfloat16,
    *,
    version: str,
    value_dim: int | None = None,
    target: str | None = None,
    scale: float | None = None,
    q_tile: TilesLike | None = None,
    kv_tile: TilesLike | None = None,
    precision: str = "ieee",
    descriptors: bool = True,
    input_gradients: bool = True,
) -> str:
    """The text of a file with `attention(q, k, v, inputs=None, scale=..., return_lse=False)`,
    differentiable, and a self-test that running it runs.

    Arguments are those of `compile`. version: of the package, which the file names. descriptors:
    whether tiles may be loaded by tensor descriptors (tensors that these do not see are copied);
    otherwise by pointers, whatever the strides. input_gradients: whether float inputs get
    gradients. Raises BindError, PlanError and CompileError, the last also where the plan's tables
    are too large for a file. Calls with fewer queries than keys (decoding) are not in the file.
    """
    mask.closed()
    target = target or "sm_90"
    kernel = compile_mask(
        mask, head_dim, dtype, value_dim=value_dim, backend="triton", target=target, scale=scale,
        q_tile=q_tile, kv_tile=kv_tile, precision=precision,
    )  # fmt: skip
    scale = head_dim**-0.5 if scale is None else scale
    if scale <= 0:
        raise CompileError(f"a standalone file needs a positive scale, not {scale}")
    spec = Spec(
        head_dim, value_dim or head_dim, DTYPES[dtype], target, descriptors=descriptors,
        precision=precision,
    )  # fmt: skip
    return written(
        kernel.plan, kernel.plan_of, spec, scale, version, input_gradients=input_gradients
    )
