"""Patterns over flattened positions, and coarsened masks of several segments made of them."""

from __future__ import annotations

import numpy as np
import pytest
from random_patterns import random_case
from test_coarsen import by_hand
from test_segments import VIDEO_TEXT

import maskdsl
from maskdsl.ir.definition import dense, scores
from maskdsl.planner.flattened import flattened

BOUND = {"t": 3, "h": 5, "w": 7, "n": 11, "window": [3, 3, 5]}


@pytest.mark.parametrize("seed", range(5000, 5030))
def test_the_relation_is_the_same(seed: int) -> None:
    mask = random_case(seed).mask()
    program = flattened(mask.program)
    for head in range(mask.heads):
        got = dense(program, head, 0, 0, mask.shape[1], {})
        assert np.array_equal(got, mask.dense(head=head))


def test_segments_lie_end_to_end() -> None:
    scored = VIDEO_TEXT + " score video -> any: logit * 2.0 score text -> video: logit + k.index"
    mask = maskdsl.parse(scored).bind(**BOUND)
    program = flattened(mask.program)
    assert np.array_equal(dense(program, 0, 0, 0, mask.shape[1], {}), mask.dense())
    logits = np.random.default_rng(0).normal(size=mask.shape[1:])
    whole = scores(program, logits, 0, 0, 0, {})
    assert np.array_equal(whole, mask.scores(logits))


@pytest.mark.parametrize("rule", ["any", "all", maskdsl.Vote(1 / 3, 0.6)])
def test_coarsened_segments(rule: str | maskdsl.Vote) -> None:
    mask = maskdsl.parse(VIDEO_TEXT).bind(**BOUND)
    for block in (4, 16):
        coarse = mask.coarsen(block, rule)
        want = by_hand(mask.dense(), block, rule)
        assert np.array_equal(coarse.dense(), want)
        assert coarse.pairs == want.sum()


def test_coarsened_segments_keep_their_scores() -> None:
    mask = maskdsl.parse(VIDEO_TEXT + " score video -> text: logit * 2").bind(**BOUND)
    coarse = mask.coarsen(4)
    assert np.array_equal(coarse.dense(), by_hand(mask.dense(), 4, "any"))
    ones = np.ones(mask.shape[1:])
    assert np.array_equal(coarse.scores(ones), mask.scores(ones))
