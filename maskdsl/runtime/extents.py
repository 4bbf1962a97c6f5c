"""Extents that a mask leaves open, from the shapes of a call."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch

from maskdsl.errors import BindError
from maskdsl.ir.program import Program, Segment


def extents_of(
    program: Program, queries: int, keys: int, inputs: Mapping[str, torch.Tensor]
) -> dict[str, int]:
    """By axis, for so many tokens. A space with one open axis tells it, and so does an input that
    has an open axis for a dimension. Raises BindError where the shapes do not fit or do not tell.
    """
    spaces = [("keys", program.keys, keys)]
    if not program.shared:  # else there may be fewer queries than keys
        spaces.append(("queries", program.queries, queries))
    found = dict(_of_inputs(program, inputs))
    lacking = set(_open(program.queries)) | set(_open(program.keys))
    for what, segments, tokens in spaces * 2:  # one may tell what the other lacks
        axes = [a for a in dict.fromkeys(_open(segments)) if a not in found]
        if len(axes) == 1:
            found[axes[0]] = _solve(what, segments, tokens, axes[0], found)
    lacking -= set(found)
    if lacking:
        several = ", ".join(sorted(lacking))
        raise BindError(
            f"{keys} tokens do not tell the extents of {several}: "
            f"name them, kernel.bind({', '.join(f'{a}=...' for a in sorted(lacking))})(q, k, v)"
        )
    return found


def _open(segments: Sequence[Segment]) -> Iterator[str]:
    return (name for s in segments for name, extent in s.axes if extent is None)


def _of_inputs(program: Program, inputs: Mapping[str, torch.Tensor]) -> Iterator[tuple[str, int]]:
    axes = {*_open(program.queries), *_open(program.keys)}
    for array in program.inputs:
        shape = inputs[array.name].shape
        if len(shape) == len(array.dims):
            yield from ((d, n) for d, n in zip(array.dims, shape, strict=True) if d in axes and n)


def _solve(
    what: str, segments: Sequence[Segment], tokens: int, axis: str, known: Mapping[str, int]
) -> int:
    """The extent of the only axis that is not known, in which the number of tokens is linear."""
    fixed = each = 0
    for segment in segments:
        size = 1
        for name, extent in segment.axes:
            size *= 1 if name == axis else extent or known[name]
        if any(name == axis for name, _ in segment.axes):
            each += size
        else:
            fixed += size
    extent, rest = divmod(tokens - fixed, each)
    if rest or extent < 1:
        besides = f" besides {fixed}" if fixed else ""
        raise BindError(f"{tokens} {what} are no whole number of {axis}, {each} each{besides}")
    return extent
