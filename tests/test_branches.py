"""Patterns joined by `or`, taken apart: disjoint, together the whole, cheaper, merged exactly."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import maskdsl
from maskdsl import BindError


def work(mask: maskdsl.Mask) -> float:
    tiles = mask.plan().tiles
    return (tiles.full + 1.5 * tiles.partial) * 64 * 64


TEXTS = {
    "far columns": "keep causal(n) and (block(n, 64) or k.n % 64 >= 60)",
    "strided": "keep q.n - k.n in 0 .. 64 or (causal(n) and (q.n - k.n) % 64 == 0)",
    "heads": "keep near(n, 20) or (q.n + head) % 32 == k.n % 32",
    "scores": "keep near(n, 20) or q.n % 32 == k.n % 32\nscore logit - 0.01 * abs(q.n - k.n)",
}


@pytest.mark.parametrize("name", TEXTS)
def test_branches_are_disjoint_cheaper_and_the_whole(name: str) -> None:
    mask = maskdsl.parse(f"pattern f over (n) {TEXTS[name]}").bind(n=1024, heads=2)
    parts = mask.branches()
    assert len(parts) == 2
    for head in range(2):
        count = sum(p.dense(head=head).astype(int) for p in parts)
        assert np.array_equal(count, mask.dense(head=head).astype(int))
    assert sum(map(work, parts)) < 0.9 * work(mask)
    assert sum(p.pairs for p in parts) == mask.pairs


@pytest.mark.parametrize(
    "text", ["keep causal(n)", "keep near(n, 9) or k.n < 4", "keep near(n, 9) and k.n > 3"]
)
def test_one_plan_where_branches_gain_nothing(text: str) -> None:
    mask = maskdsl.parse(f"pattern f over (n) {text}").bind(n=512)
    assert mask.branches() == (mask,)


def test_sparse_transformer_fixed() -> None:
    """The tiles of both branches, counted by hand: 64 blocks of 64 on the diagonal, and columns of
    residues 60 to 63, of which each query tile i sees the key tiles that hold blocks before i.
    """
    mask = maskdsl.parse(f"pattern f over (n) {TEXTS['far columns']}").bind(n=4096)
    plans = [p.plan() for p in mask.branches()]
    visited = [p.tiles.full + p.tiles.partial for p in plans]
    assert sorted(visited) == [64, 4 * 63]
    whole = mask.plan().tiles
    assert whole.full + whole.partial == 64 * 65 // 2


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("layout", ["bhnd", "bnhd"])
def test_merged_kernels_attend_to_the_whole(name: str, layout: str) -> None:
    text = f"pattern f over (n) {TEXTS[name]}\nsink 0.5 + head"
    mask = maskdsl.parse(text).bind(n=1024, heads=2)
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 2, 1024, 16) for _ in range(3))
    given = [x.transpose(1, 2) if layout == "bnhd" else x for x in (q, k, v)]
    run = (maskdsl.compile(m, 16, layout=layout) for m in (mask, *mask.branches()))
    (out, lse), *parts = (kernel(*given, return_lse=True) for kernel in run)
    merged, merged_lse = maskdsl.merge(parts, layout=layout)
    torch.testing.assert_close(merged, out, atol=2e-6, rtol=2e-6)
    torch.testing.assert_close(merged_lse, lse, atol=2e-6, rtol=2e-6)
    assert len(parts) == 2


def test_merge_of_any_key_sets_and_its_gradients() -> None:
    torch.manual_seed(1)
    s, v = torch.randn(2, 3, 5, 12, dtype=torch.float64), torch.randn(2, 3, 12, 4).double()
    seen = torch.rand(5, 12) < 0.5
    seen[0], seen[1, :6] = False, False  # no key at all, none in the first part
    s.requires_grad_()
    v.requires_grad_()

    def attend(low: int, high: int) -> tuple[torch.Tensor, torch.Tensor]:
        at = s[..., low:high].masked_fill(~seen[:, low:high], -math.inf)
        none = (at == -math.inf).all(-1, keepdim=True)
        weights = torch.softmax(at.masked_fill(none, 0), -1).masked_fill(none, 0)
        lse = torch.logsumexp(at.masked_fill(none, 0), -1).masked_fill(none[..., 0], -math.inf)
        return weights @ v[..., low:high, :], lse

    want, want_lse = attend(0, 12)
    out, lse = maskdsl.merge([attend(0, 6), attend(6, 7), attend(7, 12)])
    torch.testing.assert_close(out, want)
    torch.testing.assert_close(lse, want_lse)
    assert (out[:, :, 0] == 0).all() and (lse[:, :, 0] == -math.inf).all()
    up = torch.randn_like(out)
    for x in (s, v):
        (one,) = torch.autograd.grad(out, x, up, retain_graph=True)
        (other,) = torch.autograd.grad(want, x, up, retain_graph=True)
        torch.testing.assert_close(one, other)
        assert not one.isnan().any()


def test_merge_refuses_what_does_not_fit() -> None:
    out, lse = torch.zeros(1, 2, 3, 4), torch.zeros(1, 2, 3)
    wrong = [[], [(out, lse), (out[..., :2], lse)], [(out, lse[..., 0])], [(out,)], 3]
    wrong += [[(out.long(), lse)], [(out.numpy(), lse)], {0: (out, lse)}]
    for parts in wrong:
        with pytest.raises(BindError, match="merge takes|every part"):
            maskdsl.merge(parts)  # type: ignore[arg-type]
    with pytest.raises(BindError, match="a layout is"):
        maskdsl.merge([(out, lse)], layout="nbhd")
