"""What integrations share: patterns named in a line, patterns of distances alone, spans."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import maskdsl
from maskdsl.integrations.attend import attend
from maskdsl.integrations.named import named, value_of
from maskdsl.integrations.relative import farthest, relative
from maskdsl.integrations.sequences import Tokens, padded

RELATIVE = {
    "std/causal": 31,
    "std/full": 31,
    "std/sliding_window window=6": 5,
    "std/local left=4 right=2": 4,
    "std/local left=4 right=-1": 4,
    "std/dilated window=3 dilation=3": 9,
    "std/alibi": 31,
    "std/softcap cap=5.0": 31,
    "std/sink_logits window=9": 8,
    "pattern p over (n) keep 0 <= (q.n - k.n) // 4 < 2 + head": 19,  # head 3: less than 20
    "pattern p over (n) keep max(q.n, k.n + 3) <= k.n + min(7, 5)": 5,
    "pattern p over (n) keep q.n < k.n": -1,
}
ABSOLUTE = [
    "std/streaming sinks=2 window=4",
    "std/fixed stride=4 summary=1",
    "std/chunked size=5",
    "std/blocks size=4",
    "std/natten1d window=5",
    "pattern p over (n) keep q.n - k.n < n.size // 2",
    "pattern p over (n) keep causal(n) score logit + 0.1 * k.n",
    "pattern p over (n) input doc[n]: int keep doc[q.n] == doc[k.n]",
    "pattern p over (n) keep random(1, q.n, k.n) < 0.5",
    "pattern p over (n) keep max(q.n, 5) <= k.n",
    "pattern p over (y, x) keep q.y - k.y < 2",
    "pattern p over a(n) then b(m)",
]


@pytest.mark.parametrize("line", RELATIVE)
def test_patterns_of_distances_alone(line: str) -> None:
    asked = named(line)
    mask = asked.bind(4, 2)
    assert relative(mask.program)
    inputs: dict[str, Any] = {name: np.ones(4) for name in asked.pattern.inputs}
    back = -1
    for head in range(4):
        long, short = (mask.bind(n=n).dense(head=head, **inputs) for n in (32, 21))
        assert np.array_equal(long[7:28, 7:28], short)
        seen = np.flatnonzero(long[-1])
        back = max(back, 31 - seen[0] if seen.size else -1)
    assert farthest(asked, 4, 2, 32) == back == RELATIVE[line]


@pytest.mark.parametrize("line", ABSOLUTE)
def test_other_patterns_are_not_taken_for_them(line: str) -> None:
    assert not relative(named(line).bind(2, 2).program)


def test_farthest_asks_for_patterns_that_no_input_decides() -> None:
    text = "pattern p over (n) input far[heads]: int keep q.n - k.n < far[head]"
    assert relative(named(text).bind(2, 2).program)
    with pytest.raises(maskdsl.BindError, match="its inputs decide which keys are seen"):
        farthest(named(text), 2, 2, 8)


def test_a_line_names_a_pattern_as_the_command_line_does() -> None:
    asked = named("std/spatial_head --name spatial_head_text width=1.5  anchor=true round=4")
    assert asked.pattern.name == "spatial_head_text"
    assert asked.values == {"width": 1.5, "anchor": True, "round": 4}
    spaced = named("std/sliding_tile window=[[1, 1, 3], [3, 1, 1]] tile=[2, 2, 2]")
    assert spaced.values == {"window": [[1, 1, 3], [3, 1, 1]], "tile": [2, 2, 2]}
    assert value_of("[true, false]", "x") == [True, False]
    for text in ("", "few", "1 +", "__import__('os')", "[" * 1000):
        with pytest.raises(maskdsl.BindError, match="x: '.*' is not a number"):
            value_of(text, "x")


def test_extents_follow_from_the_tokens() -> None:
    grid = named("std/natten2d y=4 window=[3,3] stride=[1,1] dilation=[1,1] causal=[false,false]")
    assert grid.extents(28) == {"x": 7}
    text = named("pattern p over a(n) then b(m) then c(n)")
    with pytest.raises(maskdsl.BindError, match="leaves n, m open"):
        text.extents(9)
    shared = maskdsl.integrations.named.Named(text.pattern, {"m": 3})
    assert shared.extents(9) == {"n": 3}
    for wrong in (8, 3, 2):
        with pytest.raises(maskdsl.BindError, match=f"{wrong} tokens do not fit"):
            shared.extents(wrong)
    closed = maskdsl.integrations.named.Named(text.pattern, {"n": 2, "m": 3})
    assert closed.extents(7) == {}
    with pytest.raises(maskdsl.BindError, match="8 tokens do not fit"):
        closed.extents(8)


def test_spans_of_padding() -> None:
    mask = torch.tensor([[1, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0], [1, 1, 1, 1]])
    assert padded(mask) == [(0, 3), (1, 3), None, (0, 4)]
    assert padded(mask[3:]) is None
    with pytest.raises(maskdsl.BindError, match="padding inside a sequence"):
        padded(torch.tensor([[1, 0, 1]]))
    with pytest.raises(maskdsl.BindError, match="not \\(1, 1, 2, 2\\)"):
        padded(torch.ones(1, 1, 2, 2))


def test_packed_rows() -> None:
    positions = torch.tensor([[0, 1, 2, 0, 1], [3, 4, 5, 6, 7]])
    tokens = Tokens(0, 0, None, packable=True)
    assert tokens.packed(positions) == [[(0, 3), (3, 5)], [(0, 5)]]
    assert tokens.packed(positions) is tokens.packed(positions)  # worked out once
    assert tokens.packed(positions[1:]) is None
    assert tokens.packed(None) is None
    assert tokens.packed(positions, torch.tensor([0, 2, 5])) == [[(0, 2), (2, 5)]]
    assert Tokens(3, 0, None, packable=False).packed(positions) is None


def expected(mask: maskdsl.Mask, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """One sequence by the definition, (heads, queries, head_dim), in float64; the last query stands
    at the last key. What is not seen is cut out, not multiplied by zero.
    """
    out = torch.zeros(len(q), q.shape[1], v.shape[2], dtype=torch.float64)
    group = len(q) // len(k)
    for h in range(len(q)):
        for i, row in enumerate(torch.from_numpy(mask.dense(head=h, queries=q.shape[1]))):
            keys, values = (x[h // group, row].double() for x in (k, v))
            out[h, i] = (keys @ q[h, i].double() * 0.5).softmax(0) @ values
    return out


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("line", ["std/sliding_window window=4", "std/streaming sinks=2 window=3"])
def test_sequences_of_a_batch_by_the_definition(line: str, seed: int) -> None:
    """Padding, packing, caches that forgot, slots not filled yet; what none holds is huge."""
    g = torch.Generator().manual_seed(seed)

    def below(low: int, high: int) -> int:
        return int(torch.randint(low, high, (1,), generator=g))

    slots, end = 24, below(12, 25)
    prefill = seed % 3 == 0
    first_query = 0 if prefill else below(end - 3, end)
    forgot = not prefill and line.startswith("std/sliding")
    first_key = max(0, first_query - 3 - below(0, 3)) if forgot else 0
    spans = [(below(0, 6), end), None, (0, end), (below(0, 9), end - below(0, 2) * prefill)]
    packed = [[(0, 5), (5, 6), (6, end)]] if seed == 3 else None
    tokens = Tokens(first_query, first_key, spans, packable=False)
    q = torch.randint(-2, 3, (4, 4, end - first_query, 8), generator=g).float()
    k = torch.randint(-2, 3, (4, 2, slots, 8), generator=g).float()
    v = torch.randint(-2, 3, (4, 2, slots, 8), generator=g).float()
    rows = packed * 4 if packed else [[] if span is None else [span] for span in spans]
    wanted = torch.zeros(q.shape, dtype=torch.float64)
    huge = torch.ones(4, 1, slots, 1, dtype=torch.bool)
    for b, row in enumerate(rows):
        for low, high in row:
            first = max(low, first_query)
            mask = named(line).bind(4, 2).bind(n=high - low)
            part = slice(first - first_query, high - first_query)
            own = (x[b, :, low:high] for x in (k, v))
            wanted[b, :, part] = expected(mask, q[b, :, part], *own)
            huge[b, :, max(low, first_key) : high] = False
    k, v = k.masked_fill(huge, 1e30), v.masked_fill(huge, 3e38)
    k, v = k[:, :, first_key:], v[:, :, first_key:]
    with torch.no_grad():
        found = attend(named(line), q, k, v, tokens, {}, 0.5, packed)
    assert (found - wanted).abs().max() <= 1e-6
