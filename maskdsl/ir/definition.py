"""The definition of a mask: every pair evaluated in numpy. Planner, backends and exports are held
against it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from maskdsl.errors import BindError, EvalError, nearest
from maskdsl.ir.evaluate import NumpySpace, evaluate, evaluate_all
from maskdsl.ir.logic import FALSE
from maskdsl.ir.nodes import INT_MAX, Array, Node, postorder
from maskdsl.ir.program import Block, Program, Segment

CHUNK = 2**21  # pairs evaluated at a time

_KINDS = {"int": "iu", "float": "f", "bool": "b"}


def arrays_of(
    inputs: tuple[Array, ...], given: Mapping[str, Any], batch: int
) -> dict[str, np.ndarray]:
    """Inputs as numpy arrays, checked: names, element types, dimensions, fixed extents, and that
    they hold this batch.
    """
    found = {}
    for array, value in match_inputs(inputs, given):
        data = host_array(f"the input '{array.name}'", value)
        check_range(array, data)
        check_input(array, data.shape, data.dtype.kind, str(data.dtype))
        for at, dim in enumerate(array.dims):
            if dim == "batch" and batch >= data.shape[at]:
                raise BindError(f"the input '{array.name}' has no batch {batch}: {data.shape}")
        found[array.name] = data
    return found


def host_array(name: str, value: Any) -> np.ndarray:
    """An array or tensor, wherever it lies, as a numpy array. Raises BindError."""
    try:
        if hasattr(value, "detach"):
            host = value.detach().cpu().resolve_neg()
            value = host.float().numpy() if str(host.dtype) == "torch.bfloat16" else host.numpy()
        return np.asarray(value)
    except (TypeError, ValueError, RuntimeError, NotImplementedError) as e:
        reason = str(e).splitlines()[0][:120] if str(e) else type(e).__name__
        raise BindError(f"{name} cannot be read as an array: {reason}") from None


def check_range(array: Array, data: np.ndarray) -> None:
    """Raises BindError where unsigned ints do not fit 64 bits with a sign."""
    if data.dtype.kind == "u" and data.size and data.max() > INT_MAX:
        raise BindError(f"the input '{array.name}' does not fit in 64 bits")


def match_inputs(
    inputs: tuple[Array, ...], given: Mapping[str, Any]
) -> Iterator[tuple[Array, Any]]:
    """Inputs with what is given for them. Raises BindError for those missing and unknown names."""
    known = {a.name: a for a in inputs}
    for name in given:
        if name not in known:
            raise BindError(f"there is no input '{name}'{nearest(name, known)}")
    for name, array in known.items():
        if name not in given:
            raise BindError(f"the input '{name}' is missing")
        yield array, given[name]


def check_input(array: Array, shape: tuple[int, ...], kind: str, dtype: str) -> None:
    """Raises BindError where a tensor of this shape and numpy kind cannot be the input."""
    if kind not in _KINDS[array.type]:
        raise BindError(f"the input '{array.name}' must be of {array.type}, not {dtype}")
    wanted = array.dims
    if len(wanted) != len(shape) or any(
        isinstance(w, int) and w != n for w, n in zip(wanted, shape, strict=True)
    ):
        text = ", ".join("any" if w is None else str(w) for w in wanted)
        raise BindError(f"the input '{array.name}' must have shape ({text}), not {tuple(shape)}")


def positions(segment: Segment, side: str, flat: np.ndarray) -> dict[tuple[str, str], np.ndarray]:
    """Coordinates, by (side, axis), of positions counted from the segment's first token."""
    coordinates = np.unravel_index(flat, segment.shape)
    return {
        (side, name): c.astype(np.int64)
        for (name, _), c in zip(segment.axes, coordinates, strict=True)
    }


@dataclass(frozen=True)
class Part:
    """Some pairs of one block: rows and columns of the whole, and what to evaluate them with."""

    block: Block
    rows: slice
    columns: slice
    leaves: dict[Any, Any]


def parts(program: Program, head: int, batch: int, first: int, count: int) -> Iterator[Part]:
    """The pairs of `count` queries from flattened position `first`, a few queries of a block at a
    time.
    """
    for row in program.blocks:
        segment = row[0].queries
        low = max(segment.offset, first)
        high = min(segment.offset + segment.tokens, first + count)
        for block in row:
            keys = block.keys
            k = positions(keys, "k", np.arange(keys.tokens))
            columns = slice(keys.offset, keys.offset + keys.tokens)
            step = max(1, CHUNK // keys.tokens)
            for start in range(low, high, step):
                stop = min(start + step, high)
                q = positions(segment, "q", np.arange(start, stop) - segment.offset)
                leaves: dict[Any, Any] = {n: x[:, None] for n, x in q.items()}
                leaves |= {n: x[None, :] for n, x in k.items()}
                leaves |= {"head": np.int64(head), "batch": np.int64(batch)}
                yield Part(block, slice(start - first, stop - first), columns, leaves)


def dense(
    program: Program, head: int, batch: int, first: int, count: int, arrays: Mapping[str, Any]
) -> np.ndarray:
    """Which keys the queries at flattened positions `first ...` see: bool (count, keys).

    Raises EvalError.
    """
    out = np.zeros((count, program.key_tokens), dtype=bool)
    for part in parts(program, head, batch, first, count):
        roots = (part.block.keep, part.block.error)
        keep, error = evaluate_all(roots, part.leaves, arrays)
        raise_where(program, part.block.error, error, part.leaves, arrays)
        out[part.rows, part.columns] = keep
    return out


def scores(
    program: Program,
    logits: np.ndarray,
    head: int,
    batch: int,
    first: int,
    arrays: Mapping[str, Any],
) -> np.ndarray:
    """The score clauses applied to logits (count, keys), in their float type.

    Raises EvalError where kept.
    """
    out = logits.copy()
    for part in parts(program, head, batch, first, len(logits)):
        block = part.block
        if block.score is None:
            continue
        leaves = part.leaves | {"logit": logits[part.rows, part.columns]}
        if block.score_error != FALSE:
            failed = evaluate(block.score_error, leaves, arrays)
            raise_where(program, block.score_error, failed, leaves, arrays)
        space = NumpySpace(logits.dtype.type)
        out[part.rows, part.columns] = evaluate(block.score, leaves, arrays, space)
    return out


def raise_where(
    program: Program, condition: Node, failed: Any, leaves: Mapping[Any, Any], arrays: Any
) -> None:
    """EvalError at the place of the text that has no value at the first failing pair, if there is
    one.
    """
    if not np.any(failed):
        return
    shape = np.broadcast_shapes(*(np.shape(v) for v in leaves.values()), np.shape(failed))
    at = np.unravel_index(int(np.argmax(np.broadcast_to(failed, shape))), shape)
    one = {k: np.broadcast_to(v, shape)[at] for k, v in leaves.items()}
    nodes = postorder(condition)
    holds = dict(zip(nodes, evaluate_all(tuple(nodes), one, arrays), strict=True))
    placed: set[Node] = set()  # what has a place somewhere inside
    for node in nodes:
        if node in program.sites or any(a in placed for a in node.args):
            placed.add(node)
    node = condition
    while node not in program.sites and node.op in ("or", "and"):
        if node.op == "or":
            node = next(a for a in node.args if holds[a])
        else:
            node = next((a for a in node.args if a in placed), node.args[-1])
    site = program.sites.get(node)
    pair = ", ".join(
        f"{s}.{a}={int(one[s, a])}" for s, a in (k for k in one if isinstance(k, tuple))
    )
    if site is None:
        raise EvalError(f"the pattern {program.name} has no value at {pair}")
    raise EvalError(f"{site.message} (at {pair})", site.span)
