"""Products of many pairs of matrices, by what is fastest for them on this device."""

from __future__ import annotations

from collections.abc import Sequence

import torch

LARGE = 2**21  # multiplications of one product that are worth a call of their own
STRETCH = 16  # terms of a careful sum
PIECE = 320  # keys whose values a careful sum adds at once


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


def stretches(x: torch.Tensor) -> torch.Tensor:
    """(stretches, ..., rows, a stretch): (..., rows, inner) cut along the inner dimension, with
    zeros at its end.
    """
    short = -x.shape[-1] % STRETCH
    x = torch.nn.functional.pad(x, (0, short)) if short else x
    return x.unflatten(-1, (-1, STRETCH)).movedim(-2, 0).contiguous()


def careful_products(a: Sequence[torch.Tensor], b: Sequence[torch.Tensor]) -> torch.Tensor:
    """The sum of `products` of each two, with small rounding errors: those of one long sum grow
    with its length, so the inner dimension comes in stretches that are summed pairwise.
    """
    if len(a) > 2:
        half = (len(a) + 1) // 4 * 2
        found = careful_products(a[:half], b[:half])
        return found.add_(careful_products(a[half:], b[half:]))
    return _one_by_one_sum(a, b)


def careful_values(p: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """p @ v, (count, queries, value_dim), of weights (count, queries, keys) and values (count,
    keys, value_dim), keys summed piece by piece.
    """
    keys = p.shape[2]
    piece = -(-keys // -(-keys // PIECE))
    return _one_by_one_sum(p.split(piece, 2), [x.mT for x in v.split(piece, 1)])


def _one_by_one_sum(a: Sequence[torch.Tensor], b: Sequence[torch.Tensor]) -> torch.Tensor:
    """The sum of `products` of each two, added in their order."""
    count, rows, inner = a[0].shape
    if count == 1 and _dense(b[0]) and one_by_one(a[0], rows * b[0].shape[1] * inner):
        found = _linear(a[0][0], b[0][0])
        for x, y in zip(a[1:], b[1:], strict=True):
            found = _linear_plus(x[0], y[0], found)
        return found[None]
    found = torch.bmm(a[0], b[0].mT)
    for x, y in zip(a[1:], b[1:], strict=True):
        found.baddbmm_(x, y.mT)
    return found


def add_products(total: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> None:
    """Add `products(a, b)` to a tensor of their shape, whose matrices overlap in memory only where
    products are made one by one.
    """
    if one_by_one(a, a.shape[1] * b.shape[1] * a.shape[2]) and _dense(b):
        for i in range(len(a)):
            total[i] += _linear(a[i], b[i])
    else:
        total += torch.bmm(a, b.mT)


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


def _linear_plus(a: torch.Tensor, b: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
    """a @ b.mT + c"""
    found: torch.Tensor = torch.ops.mkldnn._linear_pointwise.binary(a, c, b, None, "add")
    return found


def _dense(x: torch.Tensor) -> bool:
    """Whether each matrix lies in memory without gaps; oneDNN is slow with gaps."""
    rows, columns = x.shape[-2:]
    return x.stride()[-2:] in ((columns, 1), (1, rows))
