"""Video transformers of diffusers by patterns, against the same models whose product attention is
given `mask.dense()`: small random configurations.
"""

from __future__ import annotations

import copy
import runpy
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import maskdsl

diffusers = pytest.importorskip("diffusers")

from maskdsl.integrations import diffusers as integration  # noqa: E402
from maskdsl.integrations.diffusers import use  # noqa: E402

SDPA = torch.nn.functional.scaled_dot_product_attention
# Radial attention for frames of few tokens, as the pattern's text and as one joined by text.
RADIAL = maskdsl.load("std/radial").source.replace("128", "4").replace("= 1.0", "= 0.25")
RADIAL_TEXT = """# Radial attention inside the video, dense with the text.
def kept(t: axis, s: axis, decay: float)
let gap = abs(q.t - k.t)
let share = 2 ** bit_length(s.size) / 2 ** bit_length(gap)
let reach = if gap <= 1 then s.size else max(share * decay, 4)
let every = if share >= 4 then 1 else int(4 / share)
return abs(q.s - k.s) <= reach and gap % every == 0

pattern radial_text(decay: float = 0.25)
over video(t, s) then text(n)
keep video -> video: kept(t, s, decay)
keep any -> text, text -> any: true
"""


@pytest.fixture(scope="module")
def wan() -> Any:
    torch.manual_seed(0)
    return diffusers.WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=4,
        out_channels=4, text_dim=16, freq_dim=16, ffn_dim=32, num_layers=3, rope_max_seq_len=32,
    )  # fmt: skip


@pytest.fixture(scope="module")
def hunyuan() -> Any:
    torch.manual_seed(0)
    return diffusers.HunyuanVideoTransformer3DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=10, num_layers=1,
        num_single_layers=2, num_refiner_layers=1, patch_size=1, text_embed_dim=16,
        pooled_projection_dim=8, rope_axes_dim=(2, 4, 4),
    )  # fmt: skip


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def video(shape: tuple[int, int, int] = (6, 8, 10)) -> dict[str, Any]:
    """Arguments of Wan: a video of 6 x 4 x 5 tokens and a prompt for cross-attention."""
    return {
        "hidden_states": drawn(2, 4, *shape), "timestep": torch.tensor([3, 7]),
        "encoder_hidden_states": drawn(2, 7, 16),
    }  # fmt: skip


def video_and_text(padding: int = 3) -> dict[str, Any]:
    """Arguments of HunyuanVideo: 4 x 4 x 6 tokens and two prompts, one of them shorter."""
    prompt = torch.ones(2, 7)
    prompt[0, 7 - padding :] = 0
    return {
        "hidden_states": drawn(2, 4, 4, 4, 6), "timestep": torch.tensor([3, 7]),
        "encoder_hidden_states": drawn(2, 7, 16), "encoder_attention_mask": prompt,
        "pooled_projections": drawn(2, 8), "guidance": torch.tensor([6.0, 2.0]),
    }  # fmt: skip


def step(model: Any, given: dict[str, Any]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The output, and the gradients of the weights that have any."""
    model.zero_grad()
    out = model(**given).sample
    out.square().mean().backward()
    return out.detach(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def with_dense(
    monkeypatch: pytest.MonkeyPatch, masks: list[maskdsl.Mask | None], model: Any,
    given: dict[str, Any],
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:  # fmt: skip
    """The same with torch's own attention, the calls over so many tokens under these masks."""
    left = iter(masks)
    tokens = next(m for m in masks if m is not None).shape[1]

    def dense(q: Any, k: Any, v: Any, attn_mask: Any = None, **options: Any) -> torch.Tensor:
        if q.shape[2] == k.shape[2] == tokens and (mask := next(left)) is not None:
            keep = torch.from_numpy(np.array([mask.dense(head=h) for h in range(q.shape[1])]))
            attn_mask = keep if attn_mask is None else keep & attn_mask
        return SDPA(q, k, v, attn_mask=attn_mask, **options)

    with monkeypatch.context() as patch:
        patch.setattr(
            torch.nn.functional, "scaled_dot_product_attention",
            lambda query, key, value, **options: dense(query, key, value, **options),
        )  # fmt: skip
        found = step(model, given)
    assert next(left, "none") == "none"
    return found


def same(found: Any, wanted: Any) -> None:
    assert (found[0] - wanted[0]).abs().max() <= 1e-5
    assert found[1].keys() == wanted[1].keys() and len(found[1]) > 10
    for name, gradient in wanted[1].items():
        assert (found[1][name] - gradient).abs().max() <= 1e-5 * max(1, gradient.abs().max()), name


TILES = "tile=[2,2,2] window=[[1,1,3],[3,2,1]]"


def tiles(mask: Callable[..., maskdsl.Mask], **extents: int) -> maskdsl.Mask:
    return mask(tile=(2, 2, 2), window=((1, 1, 3), (3, 2, 1)), heads=2, **extents)


def test_wan_with_radial_and_sliding_tiles(wan: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    radial = maskdsl.parse(RADIAL).bind(t=6, s=20, heads=2)
    sliding = tiles(maskdsl.load("std/sliding_tile").bind, t=6, y=4, x=5)
    assert radial.density < 0.8 and sliding.density < 0.5
    plain = step(wan, video())
    wanted = with_dense(monkeypatch, [radial, sliding, None], wan, video())
    assert (plain[0] - wanted[0]).abs().max() > 1e-3
    use(wan, [RADIAL, f"std/sliding_tile {TILES}", None])
    same(step(wan, video()), wanted)
    half = video((3, 8, 10))
    assert step(wan, half)[0].shape == half["hidden_states"].shape  # extents follow the call
    use(wan, None)
    assert torch.equal(step(wan, video())[0], plain[0])


def test_hunyuan_joins_the_text(
    hunyuan: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    radial = maskdsl.parse(RADIAL_TEXT).bind(t=4, s=24, n=7, decay=0.5, heads=2)
    sliding = tiles(
        maskdsl.load("std/sliding_tile", name="sliding_tile_text").bind, t=4, y=4, x=6, p=7
    )
    full = maskdsl.load("std/full").bind(n=103, heads=2)
    file = tmp_path / "radial_text.mask"
    file.write_text(RADIAL_TEXT)
    lines = [
        f"{file} decay=0.5", f"std/sliding_tile --name sliding_tile_text {TILES}", "std/full",
    ]  # fmt: skip
    for padding in (3, 0):
        given = video_and_text(padding)
        use(hunyuan, None)
        wanted = with_dense(monkeypatch, [radial, sliding, full], hunyuan, given)
        assert (step(hunyuan, given)[0] - wanted[0]).abs().max() > 1e-3
        use(hunyuan, lines)
        same(step(hunyuan, given), wanted)


def test_padded_text_is_never_read(hunyuan: Any) -> None:
    use(hunyuan, f"std/sliding_tile --name sliding_tile_text {TILES}")
    given = video_and_text()
    with torch.no_grad():
        wanted = hunyuan(**given).sample
        given["encoder_hidden_states"][0, 4:] = 1e4
        assert torch.equal(hunyuan(**given).sample, wanted)


def test_a_copy_is_a_model_of_its_own(wan: Any) -> None:
    use(wan, f"std/sliding_tile {TILES}")
    other = copy.deepcopy(wan)
    with torch.no_grad():
        wanted = wan(**video()).sample
        use(wan, None)
        assert torch.equal(other(**video()).sample, wanted)
        other.blocks[0].attn1.to_q.weight *= 2
        assert (other(**video()).sample - wanted).abs().max() > 1e-4
        other.blocks[0].attn1.to_q.weight /= 2
        use(other, None)
        assert torch.equal(other(**video()).sample, wan(**video()).sample)


def test_what_does_not_fit_is_told_in_a_line(wan: Any, hunyuan: Any) -> None:
    text = "pattern p over a(t) then b(y) then c(x)"
    wrong: list[tuple[Any, Any, type[Exception], str]] = [
        (torch.nn.Linear(2, 2), None, maskdsl.BindError, "Linear is not one of WanTransformer3DM"),
        (wan, ["std/full"], maskdsl.BindError, "1 patterns for the model's 3 layers"),
        (wan, "std/radials", maskdsl.BindError, "did you mean 'std/radial'"),
        (wan, "std/documents", maskdsl.BindError, "has inputs"),
        (wan, RADIAL_TEXT, maskdsl.BindError, "a video's alone: over \\(t, y, x\\)"),
        (hunyuan, "std/radial", maskdsl.BindError, "over video\\(t, y, x\\) then text"),
        (hunyuan, text, maskdsl.BindError, "over video\\(t, y, x\\) then text"),
        (wan, "pattern p over (n) -> (m)", maskdsl.BindError, "must have one space"),
    ]
    for model, patterns, error, cause in wrong:
        with pytest.raises(error, match=cause) as caught:
            use(model, patterns)
        assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore:flex_attention called without")
def test_another_attention_backend_is_an_error(wan: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    use(wan, "std/full")
    processor = wan.blocks[0].attn1.processor
    flex = diffusers.models.attention_dispatch.AttentionBackendName.FLEX
    monkeypatch.setattr(processor, "_attention_backend", flex, raising=False)
    with torch.no_grad(), pytest.raises(maskdsl.CompileError, match="backend to 'native'"):
        wan(**video())
    x = drawn(1, 2, 3, 4)
    assert torch.equal(SDPA(x, x, x), torch.nn.functional.scaled_dot_product_attention(x, x, x))


def test_without_diffusers_the_error_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(maskdsl.CompileError, match=r"pip install 'maskdsl\[diffusers\]'"):
        runpy.run_path(str(integration.__file__))
