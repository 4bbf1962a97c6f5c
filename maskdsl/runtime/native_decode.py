"""Few queries against many keys by the compiled part of the torch backend."""

from __future__ import annotations

import math

import numpy as np
import torch

from maskdsl.ir.program import Program
from maskdsl.runtime import native_attention
from maskdsl.runtime.boundary import Call
from maskdsl.runtime.groups import Group
from maskdsl.runtime.native_strips import Piece, Strips
from maskdsl.runtime.tile_truths import SEEN
from maskdsl.runtime.torch_scores import Scores
from maskdsl.runtime.torch_strips import Strip, Tokens
from maskdsl.runtime.torch_walk import Walk


def serves(program: Program, call: Call, scores: Scores) -> bool:
    """Whether a call can run compiled: what its scores do depends on logits alone."""
    if scores.shapes is None or scores.shapes.planes or (scores.any and program.segmented):
        return False
    return native_attention.serves(call.q, scores)


def attend(
    walk: Walk, rows: slice, keep: np.ndarray, sink: torch.Tensor | None, out: torch.Tensor,
    lse: torch.Tensor,
) -> None:  # fmt: skip
    """Write some queries of a walk of all heads, which all keep the same keys.

    keep: bool (rows, keys). sink: the sink's logit of each head, (heads,). out: (heads, queries,
    value_dim); lse: (heads, queries).
    """
    if not keep.any():
        out[:, rows] = 0
        lse[:, rows] = -math.inf if sink is None else sink[:, None]
        return
    strips = Strips([Piece(*_row(keep, rows), even=True)])
    own_sink = None if sink is None else sink[walk.heads.heads]
    native_attention.attend(
        walk, strips, own_sink, walk.heads.queries(out), walk.heads.queries(lse)
    )


def _row(keep: np.ndarray, rows: slice) -> tuple[Group, Strip]:
    """All that any of the rows sees, as one row of a plan. Keys and rows are places in tensors."""
    seen = np.flatnonzero(keep.any(0))
    count, masked = len(keep), not keep[:, seen].all()
    group = Group(
        query_segment=0,
        queries=np.array([rows.start]),
        query_offsets=np.arange(count),
        segments=(0,),
        keys=np.zeros((1, 1), dtype=np.int64),
        key_offsets=seen,
        key_segment=np.zeros(len(seen), dtype=np.int64),
        columns=np.arange(len(seen)) if masked else np.full(len(seen), SEEN),
        lanes=np.arange(count),
        truths=keep[:, seen].T,
        partial=(slice(0, len(seen)),) if masked else (),
    )
    queries = Tokens.of(np.arange(rows.start, rows.start + count))
    return group, Strip(queries, Tokens.of(seen), rows=1, step=0, length=len(seen))
