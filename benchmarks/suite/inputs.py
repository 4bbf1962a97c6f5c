"""Inputs of workloads, made from a few numbers and a seed."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from maskdsl import tables

if TYPE_CHECKING:
    from benchmarks.suite.workloads import Workload


def documents(workload: Workload, mean: int, seed: int) -> np.ndarray:
    """Documents of `mean` tokens on average, cut at random places: int64 (batch, n)."""
    n = workload.bind["n"]
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(workload.batch):
        cuts = np.sort(rng.choice(np.arange(1, n), n // mean - 1, replace=False))
        rows.append(tables.documents(np.diff([0, *cuts, n])))
    return np.stack(rows)


def alibi_slopes(workload: Workload) -> np.ndarray:
    """float32 (heads,)"""
    return tables.alibi_slopes(workload.heads).astype(np.float32)


MAKERS: dict[str, Callable[..., np.ndarray]] = {
    "documents": documents,
    "alibi_slopes": alibi_slopes,
}


def make_input(workload: Workload, make: str, **how: int) -> np.ndarray:
    """The array that one of MAKERS gives."""
    return MAKERS[make](workload, **how)
