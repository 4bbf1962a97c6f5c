"""Products of many pairs of matrices, by what is fastest for them on this device."""

from __future__ import annotations

import torch

LARGE = 2**21  # multiplications of one product that are worth a call of their own


def products(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """a @ b.mT, (count, rows, columns), of (count, rows, inner) and (count, columns, inner)
    matrices, in their dtype. Rows of each matrix, or its columns, follow each other in memory.

    On a CPU torch multiplies float32 by MKL, which uses the widest instructions of one maker only;
    oneDNN, which torch has for its compiled linear layers, uses those of all.
    """
    count, rows, inner = a.shape
    columns = b.shape[1]
    if rows * columns * inner < LARGE or not _has_linear(a) or not _dense(b):
        return torch.bmm(a, b.mT)
    linear = torch.ops.mkldnn._linear_pointwise
    if count == 1:
        first: torch.Tensor = linear(a[0], b[0], None, "none", [], "")[None]
        return first
    out = a.new_empty((count, rows, columns))
    for i in range(count):
        out[i] = linear(a[i], b[i], None, "none", [], "")
    return out


def _has_linear(x: torch.Tensor) -> bool:
    return (
        x.dtype == torch.float32
        and x.device.type == "cpu"
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


def _dense(x: torch.Tensor) -> bool:
    """Whether each matrix lies in memory without gaps; oneDNN is slow with gaps."""
    rows, columns = x.shape[-2:]
    return x.stride()[-2:] in ((columns, 1), (1, rows))
