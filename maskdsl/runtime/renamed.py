"""Ids by other names: where each first stands, and which of them the other side has."""

from __future__ import annotations

import torch


def first_positions(ids: torch.Tensor) -> torch.Tensor:
    """Where each id of a row first stands: int64 (rows, tokens) of the same."""
    ordered, order = torch.sort(ids, dim=1, stable=True)
    places = torch.arange(1, ids.shape[1], device=ids.device)
    begins = torch.where(ordered[:, 1:] != ordered[:, :-1], places, 0)
    starts = torch.nn.functional.pad(begins, (1, 0)).cummax(1).values
    return torch.zeros_like(order).scatter(1, order, order.gather(1, starts))


def among(
    names: torch.Tensor, others: torch.Tensor, which: torch.Tensor | None, total: int
) -> torch.Tensor:
    """Whether each name, int64 (rows, tokens), is one of the others that matter."""
    rows = max(names.shape[0], 1 if which is None else which.shape[0])
    held = torch.zeros((rows, total + 1), dtype=torch.bool, device=names.device)
    at = others if which is None else torch.where(which, others, total)
    held = held.scatter(1, at.expand(rows, -1), True)
    return held.gather(1, names.expand(rows, -1))
