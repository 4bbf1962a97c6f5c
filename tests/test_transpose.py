"""Rows of key tiles against the kinds of all pairs of tiles."""

from __future__ import annotations

import pytest
from random_patterns import random_case

from maskdsl.planner import transpose
from maskdsl.planner.transpose import transposed


@pytest.mark.parametrize("chunk", [transpose.CHUNK, 7])
@pytest.mark.parametrize("seed", range(25))
def test_the_same_pairs_by_key_tile(seed: int, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transpose, "CHUNK", chunk)
    case = random_case(seed, odd=seed % 2 == 0)
    plan = case.mask().plan(case.q_tile, case.kv_tile)
    line = plan.q_grid_.shape[-1]
    for alike in plan.head_classes:
        head = alike.heads[0]
        found = transposed(alike.runs, plan.kv_tiles, line)
        want = {(q, k): kind for q, row in enumerate(plan.rows(head)) for k, kind in row}
        pairs = {}
        for k in range(found.rows):
            end = 0
            for i in range(found.offsets[k], found.offsets[k + 1]):
                first, kind = int(found.first[i]), "full" if found.full[i] else "partial"
                assert first >= end  # sorted, apart
                end = first + int(found.count[i])
                assert end > first
                assert first // line == (end - 1) // line
                pairs |= {(q, k): kind for q in range(first, end)}
        assert found.rows == plan.kv_tiles
        assert pairs == want


def test_a_run_ends_only_where_the_kind_changes_or_a_line_ends() -> None:
    case = random_case(3)
    plan = case.mask().plan(case.q_tile, case.kv_tile)
    line = plan.q_grid_.shape[-1]
    found = transposed(plan.head_classes[0].runs, plan.kv_tiles, line)
    for k in range(found.rows):
        low, high = found.offsets[k], found.offsets[k + 1]
        ends = found.first[low:high] + found.count[low:high]
        touching = (ends[:-1] == found.first[low + 1 : high]) & (ends[:-1] % line != 0)
        same = found.full[low : high - 1] == found.full[low + 1 : high]
        assert not (touching & same).any()
