"""Products of many pairs of matrices, by what is fastest for them on this device."""

from __future__ import annotations

import math

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
    if not one_by_one(a, rows * columns * inner) or not _dense(b):
        return torch.bmm(a, b.mT)
    if count == 1:
        return _linear(a[0], b[0])[None]
    out = a.new_empty((count, rows, columns))
    for i in range(count):
        out[i] = _linear(a[i], b[i])
    return out


def add_products(total: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> None:
    """Add `products(a, b)` to a tensor of their shape, whose matrices overlap in memory only where
    products are made one by one.
    """
    if one_by_one(a, a.shape[1] * b.shape[1] * a.shape[2]) and _dense(b):
        for i in range(len(a)):
            total[i] += _linear(a[i], b[i])
    else:
        total += torch.bmm(a, b.mT)


def add_kept_products(total: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> None:
    """Add `kept_products(a, b)` to a tensor of their shape, whose matrices may overlap."""
    for own, x in zip(total, kept_products(a, b), strict=True):
        own += x


def kept_products(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """`products`, where zeros of a leave out what they meet in b, be it infinite or NaN."""
    found = products(a, b.nan_to_num(nan=0, posinf=0, neginf=0))
    met = (a != 0).to(a.dtype)
    up, down, nan = (
        products(met, x.to(a.dtype)) > 0 for x in (b == math.inf, b == -math.inf, b.isnan())
    )
    found.masked_fill_(up, math.inf).masked_fill_(down, -math.inf)
    return found.masked_fill_(nan | (up & down), math.nan)


def one_by_one(x: torch.Tensor, multiplications: int) -> bool:
    """Whether products of so many multiplications each, of tensors like x, are made one by one."""
    return (
        multiplications >= LARGE
        and x.dtype == torch.float32
        and x.device.type == "cpu"
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


def _linear(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """a @ b.mT of two matrices."""
    found: torch.Tensor = torch.ops.mkldnn._linear_pointwise(a, b, None, "none", [], "")
    return found


def _dense(x: torch.Tensor) -> bool:
    """Whether each matrix lies in memory without gaps; oneDNN is slow with gaps."""
    rows, columns = x.shape[-2:]
    return x.stride()[-2:] in ((columns, 1), (1, rows))
