"""`compile`: a mask, a head size and a device kind to a kernel that is called like an attention
function.
"""

from __future__ import annotations

import torch

from maskdsl.errors import BindError, CompileError, nearest
from maskdsl.language.binding import real, whole
from maskdsl.pattern import Mask, Pattern
from maskdsl.planner import TilesLike
from maskdsl.runtime.boundary import DTYPES
from maskdsl.runtime.choices import Choices
from maskdsl.runtime.kernel import Kernel
from maskdsl.runtime.open_kernel import OpenKernel
from maskdsl.runtime.triton_backend import FORWARD

BACKENDS = ("auto", "triton", "torch", "reference")
LAYOUTS = ("bhnd", "bnhd")


def compile(  # noqa: A001 (the public name)
    mask: Mask | Pattern,
    head_dim: int,
    dtype: torch.dtype = torch.float32,
    *,
    value_dim: int | None = None,
    backend: str = "auto",
    target: str | None = None,
    scale: float | None = None,
    layout: str = "bhnd",
    q_tile: TilesLike | None = None,
    kv_tile: TilesLike | None = None,
    tune: bool = False,
    template: str = "plain",
    precision: str = "ieee",
) -> Kernel:
    """A kernel for one mask.

    head_dim: of queries and keys; value_dim: of values and output (default head_dim).
    backend: "auto" (triton on a GPU, torch elsewhere), "triton", "torch" or "reference" (dense).
    target: what triton compiles for, such as "sm_90"; default the GPU at hand.
    scale: of the products (default head_dim ** -0.5). layout: "bhnd" or "bnhd" of q, k, v and out.
    tune: whether the forward kernel's settings are measured at its first call on a GPU, and the
    best remembered on disk for this device; otherwise a rule chooses them.
    template: of triton's forward kernel: "plain", or "overlap", for sm_90, which takes exponentials
    while the tensor cores multiply.
    precision: of triton's float32 products, "ieee" or "tf32" (tensor cores, 10 bits of mantissa).
    Raises BindError for arguments that do not fit, PlanError and CompileError.
    """
    if isinstance(mask, Pattern):
        mask = mask.bind()
    if not isinstance(mask, Mask):
        raise BindError(f"compile takes a mask, not {type(mask).__name__}")
    if backend not in BACKENDS:
        hint = nearest(str(backend), BACKENDS)
        raise BindError(f"backend is one of {', '.join(BACKENDS)}, not {backend!r}{hint}")
    if layout not in LAYOUTS:
        raise BindError(f"layout is one of {', '.join(LAYOUTS)}, not {layout!r}")
    if not isinstance(dtype, torch.dtype) or dtype not in DTYPES:
        raise BindError(f"dtype is one of {', '.join(map(str, DTYPES))}, not {dtype}")
    if template not in FORWARD:
        raise BindError(f"template is one of {', '.join(FORWARD)}, not {template!r}")
    head_dim = whole("head_dim", head_dim, least=1)
    value_dim = head_dim if value_dim is None else whole("value_dim", value_dim, least=1)
    scale = head_dim**-0.5 if scale is None else real("scale", scale)
    anywhere = backend == "auto"
    if backend == "auto":
        on_gpu = torch.cuda.is_available() and dtype != torch.float64
        backend = "triton" if on_gpu else "torch"
    if backend == "triton" and dtype == torch.float64:
        raise BindError("triton kernels have no float64: use backend='torch'")
    if tune and backend != "triton":
        raise BindError(f"tune measures triton kernels, and the backend is {backend}")
    if template != "plain" and backend != "triton":
        raise CompileError(f"the {template} template is for the triton backend, not {backend}")
    if precision != "ieee" and backend != "triton":
        raise BindError(f"precision is for triton kernels, and the backend is {backend}")
    choices = Choices(
        head_dim, value_dim, dtype, backend, target or _target_at_hand(), scale, layout,
        q_tile, kv_tile, tune, template, precision, anywhere,
    )  # fmt: skip
    return OpenKernel(mask, choices) if mask.open else Kernel(mask, choices)


def _target_at_hand() -> str:
    """What Triton calls the GPU of this machine; a Hopper GPU where there is none."""
    if not torch.cuda.is_available():
        return "sm_90"
    if torch.version.hip:
        return str(torch.cuda.get_device_properties().gcnArchName).split(":")[0]
    major, minor = torch.cuda.get_device_capability()
    return f"sm_{major}{minor}"
