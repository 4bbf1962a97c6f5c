"""Helpers for tables: whatever they are given, they answer or say in one line what is wrong."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch

from maskdsl import tables
from maskdsl.errors import BindError

ODD: list[Any] = [
    None, 3, -1, 0, 2**40, 1.5, True, 1j, "ab", "", b"x", {}, {0: 1}, object(), int,
    [1], [[0]], [[0], [1]], [[0, [1]]], [None], ["a"], [1.5], [True], [2**70], [-(2**70)], [2**63],
    np.array(3), np.zeros((2, 2)), np.array([2**63], dtype=np.uint64), np.array(["a"]),
    torch.tensor(3), torch.tensor([[0]]), torch.ones(2, requires_grad=True),
    torch.zeros(2).to_sparse(), torch.tensor([0]).to("meta"), float("nan"), memoryview(b"ab"),
]  # fmt: skip


def answer(function: Any, *arguments: Any) -> Any:
    """What it gives, or None for a BindError of one line."""
    try:
        return function(*arguments)
    except BindError as error:
        told = str(error)
    assert len(told.splitlines()) == 1
    return None


def test_odd_arguments_are_told() -> None:
    answered = 0
    for x in ODD:
        for function in (tables.tree, tables.documents):
            answered += answer(function, x) is not None
        if x != 2**40 if isinstance(x, int) else True:
            answered += answer(tables.alibi_slopes, x) is not None
    for x, n in itertools.product(ODD, [None, 0, 3, -1, "a", 1.5, True, np.array(3), [1]]):
        answered += answer(tables.tree, x, n) is not None
        answered += answer(tables.vertical_slash, x, x, n) is not None
        answered += answer(tables.vertical_slash, [[0]], x, n) is not None
    assert 5 < answered < 60


@pytest.mark.parametrize("places", [torch.tensor([[0, 2]]), np.array([[0, 2]]), [{0, 2}], [(0, 2)]])
def test_positions_may_be_in_any_container(places: Any) -> None:
    vertical, slash = tables.vertical_slash(places, [[1]], 3)
    assert vertical.tolist() == [[True, False, True]]
    assert slash.tolist() == [[False, True, False]]
