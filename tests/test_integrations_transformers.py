"""Models of transformers by patterns, against the same models with their own masks: small random
configurations, in float64 and float32, with gradients, padding, packing, caches.
"""

from __future__ import annotations

import copy
import runpy
import sys
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import maskdsl

transformers = pytest.importorskip("transformers")

from maskdsl.integrations import attend  # noqa: E402
from maskdsl.integrations import transformers as integration  # noqa: E402
from maskdsl.integrations.transformers import use  # noqa: E402

SHAPE = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "initializer_range": 0.2, "sliding_window": 7,
    "pad_token_id": 0, "eos_token_id": None, "bos_token_id": 1,
}  # fmt: skip
GEMMA = {"query_pre_attn_scalar": 8, "attn_logit_softcapping": 3.0}
KINDS = {
    "mistral": ("Mistral", "Mistral", {"num_hidden_layers": 2}),
    "gemma3": (
        "Gemma3", "Gemma3Text",
        {**GEMMA, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
         "num_hidden_layers": 3},
    ),
    "gemma2": ("Gemma2", "Gemma2", {**GEMMA, "num_hidden_layers": 2}),
    "gpt_oss": (
        "GptOss", "GptOss",
        {"num_hidden_layers": 2, "num_local_experts": 2, "num_experts_per_tok": 1},
    ),
}  # fmt: skip
TOKENS = 37  # more than five windows


@cache
def _made(kind: str) -> Any:
    model, config, own = KINDS[kind]
    made = getattr(transformers, f"{config}Config")(**SHAPE, **own)
    made._attn_implementation = "eager"
    torch.manual_seed(0)
    return getattr(transformers, f"{model}ForCausalLM")(made).eval()


def make(kind: str, **config: Any) -> Any:
    """A model of its own, with its eager attention and these settings."""
    model = copy.deepcopy(_made(kind))
    for name, value in config.items():
        setattr(model.config, name, value)
    return model


def ids(rows: int = 2, tokens: int = TOKENS) -> torch.Tensor:
    return torch.randint(3, 64, (rows, tokens), generator=torch.Generator().manual_seed(1))


LEFT = torch.ones(2, TOKENS, dtype=torch.long)
LEFT[0, :9] = 0
RIGHT = LEFT.flip(1)


def step(model: Any, **given: Any) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Logits of real tokens, and the gradients of every weight."""
    model.zero_grad()
    logits = model(ids(), **given).logits
    real = given.get("attention_mask", torch.ones(2, TOKENS)).bool()
    logits[real].square().mean().backward()
    return logits.detach()[real], [p.grad for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("mask", [None, LEFT, RIGHT], ids=["whole", "left", "right"])
@pytest.mark.parametrize("kind", KINDS)
def test_logits_and_gradients_are_those_of_eager_masks(kind: str, mask: Any) -> None:
    given = {} if mask is None else {"attention_mask": mask}
    eager, ours = make(kind), make(kind)
    use(ours)
    dtypes = [(torch.float32, 1e-5), (torch.float64, 1e-6)]  # norms stay in float32
    if mask is not None or kind == "gpt_oss":  # in float64 eager masks make NaN, experts fail
        dtypes.pop()
    for dtype, least in dtypes:
        wanted, wanted_gradients = step(eager.to(dtype), **given)
        found, gradients = step(ours.to(dtype), **given)
        assert (found - wanted).abs().max() <= least * max(1, wanted.abs().max())
        assert len(gradients) == len(wanted_gradients) > 10
        for a, b in zip(gradients, wanted_gradients, strict=True):
            assert (a - b).abs().max() <= least * max(1, b.abs().max())


@pytest.mark.parametrize("cache", [None, "static"])
@pytest.mark.parametrize("kind", KINDS)
def test_generation_with_a_cache_is_that_of_eager_masks(kind: str, cache: str | None) -> None:
    eager, ours = make(kind), make(kind)
    use(ours)
    settings = {
        "max_new_tokens": 9, "do_sample": False, "return_dict_in_generate": True,
        "output_logits": True, "cache_implementation": cache,
    }  # fmt: skip
    for mask in (torch.ones_like(LEFT), LEFT):
        wanted = eager.generate(ids(), attention_mask=mask, **settings)
        found = ours.generate(ids(), attention_mask=mask, **settings)
        assert torch.equal(found.sequences, wanted.sequences)
        assert found.sequences.shape == (2, TOKENS + 9)
        for a, b in zip(found.logits, wanted.logits, strict=True):
            assert (a - b).abs().max() <= 1e-5 * max(1, b.abs().max())


def test_triton_kernels_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make("gpt_oss")
    use(model)
    given = {"attention_mask": LEFT, "max_new_tokens": 3, "do_sample": False}
    with torch.no_grad():
        wanted = model(ids(), attention_mask=LEFT).logits
    tokens = model.generate(ids(), **given)
    monkeypatch.setattr(attend, "kernel_for", partial(attend.kernel_for, backend="triton"))
    with torch.no_grad():
        found = model(ids(), attention_mask=LEFT).logits
    assert (found - wanted).abs().max() <= 1e-5
    assert torch.equal(model.generate(ids(), **given), tokens)


def dense(mask: maskdsl.Mask, **inputs: Any) -> torch.Tensor:
    """(1, heads, tokens, tokens), added to logits."""
    keep = torch.from_numpy(np.array([mask.dense(head=h, **inputs) for h in range(mask.heads)]))
    return torch.zeros(keep.shape).masked_fill(~keep, torch.finfo(torch.float32).min)[None]


HEADS = """pattern per_head(reach: int = 3) over (n)
    keep causal(n) and (q.n - k.n < reach * (head + 1) or k.n % 8 == 0)"""


@pytest.mark.parametrize(
    "line", ["std/streaming sinks=2 window=5", "std/strided stride=6", HEADS], ids=str
)
def test_any_pattern_gives_the_logits_of_its_dense_mask(line: str, tmp_path: Path) -> None:
    if line == HEADS:
        file = tmp_path / "heads.mask"
        file.write_text(HEADS)
        pattern, line = maskdsl.parse(HEADS), f"{file} reach=2"
        mask = pattern.bind(n=TOKENS, reach=2, heads=4)
    else:
        name, *values = line.split()
        bound = {k: int(v) for k, v in (x.split("=") for x in values)}
        mask = maskdsl.load(name).bind(n=TOKENS, heads=4, **bound)
    model = make("mistral", sliding_window=None)
    with torch.no_grad():
        wanted = model(ids(), attention_mask=dense(mask)).logits
        use(model, line)
        assert (model(ids()).logits - wanted).abs().max() <= 1e-5


def test_layers_have_patterns_of_their_own() -> None:
    lines = ["std/sliding_window window=3", None]
    model = make("gpt_oss")
    sliding, full = (m.self_attn for m in model.model.layers)
    eager = make("gpt_oss", sliding_window=3)
    with torch.no_grad():
        wanted = eager(ids()).logits
        for given in (lines, {"sliding_attention": lines[0]}):
            use(model, given)
            assert (model(ids()).logits - wanted).abs().max() <= 1e-5
        use(model, ["std/sliding_window window=3", "std/sink_logits window=9"])
        assert (model(ids()).logits - wanted).abs().max() > 1e-3
    assert sliding.config is full.config is model.config


def test_a_config_names_the_patterns(tmp_path: Path) -> None:
    model = make("mistral")
    use(model, ["std/sliding_window window=3", "std/causal"])
    model.save_pretrained(tmp_path)
    again = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, attn_implementation="maskdsl"
    )
    assert again.config.maskdsl_patterns == model.config.maskdsl_patterns
    with torch.no_grad():
        assert torch.equal(again(ids()).logits, model(ids()).logits)
        again.config.maskdsl_patterns = None
        assert not torch.equal(again(ids()).logits, model(ids()).logits)


PACKED = torch.tensor([[*range(12), *range(20), *range(5)], [*range(37)]])


def test_packed_sequences_are_those_of_eager_masks() -> None:
    eager, ours = make("mistral"), make("mistral")
    use(ours)
    wanted, wanted_gradients = step(eager, position_ids=PACKED, use_cache=False)
    found, gradients = step(ours, position_ids=PACKED, use_cache=False)
    assert (found - wanted).abs().max() <= 1e-5
    for a, b in zip(gradients, wanted_gradients, strict=True):
        assert (a - b).abs().max() <= 1e-5 * max(1, b.abs().max())


def test_every_sequence_is_attended_as_if_alone() -> None:
    """Patterns that count from the start: packed, padded on either side, or alone."""
    model = make("mistral", sliding_window=None)
    use(model, "std/streaming sinks=2 window=4")
    alone = ids()[:1, :12]
    with torch.no_grad():
        wanted = model(alone).logits[0]
        packed = model(ids()[:1], position_ids=PACKED[:1]).logits[0, :12]
        bounds = torch.tensor([0, 12, 32, 37], dtype=torch.int32)
        told = model(ids()[:1], position_ids=PACKED[:1], cu_seq_lens_q=bounds).logits[0, :12]
        mask = torch.zeros(2, 20, dtype=torch.long)
        mask[0, 8:], mask[1, :12] = 1, 1
        rows = torch.zeros(2, 20, dtype=torch.long)
        rows[0, 8:], rows[1, :12] = alone[0], alone[0]
        padded = model(rows, attention_mask=mask).logits
    for found in (packed, told, padded[0, 8:], padded[1, :12]):
        assert (found - wanted).abs().max() <= 1e-5
    kwargs = {"max_new_tokens": 6, "do_sample": False}
    found = model.generate(rows[:1], attention_mask=mask[:1], **kwargs)[0, 20:]
    assert torch.equal(found, model.generate(alone, **kwargs)[0, 12:])


def test_padding_is_never_read() -> None:
    """Huge and not-a-number embeddings of padding leave real tokens as they were."""
    model = make("mistral")
    use(model)
    table = model.get_input_embeddings()
    rows = ids().masked_fill(LEFT == 0, 0)
    with torch.no_grad():
        table.weight[0] = 0
        wanted = model(rows, attention_mask=LEFT).logits[LEFT.bool()]
        table.weight[0] = torch.nan
        model.lm_head.weight[0] = 0
        found = model(rows, attention_mask=LEFT).logits[LEFT.bool()]
    assert torch.equal(found[:, 1:], wanted[:, 1:])


@pytest.mark.parametrize(
    ("line", "cause"),
    [
        ("std/causal", "causal sees keys 63 tokens back, of which the layer's cache keeps 6"),
        ("std/sliding_window window=8", "sees keys 7 tokens back"),
        ("std/streaming sinks=2 window=4", "depends on where a sequence starts"),
    ],
)
def test_a_cache_that_drops_what_a_pattern_sees_is_an_error(line: str, cause: str) -> None:
    model = make("mistral")
    use(model, line)
    with pytest.raises(maskdsl.BindError, match=cause) as caught:
        model.generate(ids(), max_new_tokens=3, do_sample=False)
    assert "\n" not in str(caught.value)
    use(model, "std/sliding_window window=6")  # reaches less far than the cache
    shorter = make("mistral", sliding_window=6)
    found, wanted = (m.generate(ids(), max_new_tokens=3, do_sample=False) for m in (model, shorter))
    assert torch.equal(found, wanted)


def test_encoders_see_both_ways() -> None:
    config = transformers.BertConfig(
        vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=48, attn_implementation="eager", attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    model = transformers.BertModel(config).eval()
    with torch.no_grad():
        for mask in (LEFT, RIGHT):
            model.set_attn_implementation("eager")
            wanted = model(ids(), attention_mask=mask).last_hidden_state[mask.bool()]
            use(model)
            found = model(ids(), attention_mask=mask).last_hidden_state[mask.bool()]
            assert (found - wanted).abs().max() <= 1e-5
            use(model, "std/local left=2 right=2")
            found = model(ids(), attention_mask=mask).last_hidden_state[mask.bool()]
            assert (found - wanted).abs().max() > 1e-2


def test_inputs_are_arguments_of_the_model_s_call() -> None:
    model = make("mistral", sliding_window=None)
    slopes = torch.tensor([0.5, 0.25, 0.125, 0.0])
    mask = maskdsl.load("std/alibi").bind(n=TOKENS, heads=4)
    place = torch.arange(TOKENS)
    bias = -slopes[:, None, None] * (place[:, None] - place)
    with torch.no_grad():
        wanted = model(ids(), attention_mask=dense(mask, slope=slopes) + bias).logits
        use(model, "std/alibi")
        assert (model(ids(), slope=slopes).logits - wanted).abs().max() <= 1e-5
        with pytest.raises(maskdsl.BindError, match="the input 'slope' is not an argument"):
            model(ids())


HOLE = LEFT.clone()
HOLE[1, 20] = 0


def test_what_patterns_do_not_express_is_told_in_a_line() -> None:
    model = make("mistral")
    wrong: list[tuple[Any, type[Exception], str]] = [
        ("std/sliding_windows", maskdsl.BindError, "did you mean 'std/sliding_window'"),
        ("std/sliding_window", maskdsl.BindError, "lacks window"),
        ("std/sliding_window window=few", maskdsl.BindError, "'few' is not a number"),
        ("std/sliding_window windows=3", maskdsl.BindError, "did you mean 'window'"),
        (["std/causal"], maskdsl.BindError, "1 patterns for the model's 2 layers"),
        ([3, None], maskdsl.BindError, "named by a line of text"),
        ({"full_attention": "std/causal"}, maskdsl.BindError, "no layers of type 'full_attention'"),
    ]
    for patterns, error, cause in wrong:
        with pytest.raises(error, match=cause) as caught:
            use(model, patterns)
        assert "\n" not in str(caught.value)
    use(model, "std/natten2d window=[3,3] stride=[1,1] dilation=[1,1] causal=[true,true]")
    with pytest.raises(maskdsl.BindError, match="leaves y, x open: give all extents but one"):
        model(ids())
    use(model, "std/natten2d y=5 window=[3,3] stride=[1,1] dilation=[1,1] causal=[true,true]")
    with pytest.raises(maskdsl.BindError, match="37 tokens do not fit its extents"):
        model(ids())
    use(model)
    with pytest.raises(maskdsl.BindError, match="padding inside a sequence"):
        model(ids(), attention_mask=HOLE)
    with pytest.raises(maskdsl.BindError, match="masks of padding"):
        model(ids(), attention_mask=torch.zeros(2, 1, TOKENS, TOKENS))
    model.config.attention_dropout = model.model.layers[0].self_attn.attention_dropout = 0.1
    with pytest.raises(maskdsl.CompileError, match="set attention_dropout=0"):
        model.train()(ids())


def test_masks_and_layers_of_other_models_are_told_in_a_line() -> None:
    from transformers import masking_utils as masks

    blocks = masks.blockwise_overlay(torch.zeros(2, 5, dtype=torch.long))
    both = masks.or_masks(masks.causal_mask_function, blocks)
    with pytest.raises(maskdsl.CompileError, match="masks are more than padding"):
        integration.tokens(2, 5, 5, mask_function=masks.and_masks(both))
    with pytest.raises(maskdsl.CompileError, match="masks are more than padding"):
        integration.tokens(2, 5, 5, use_vmap=True)
    with pytest.raises(maskdsl.CompileError, match="cross-attention is not supported"):
        integration.tokens(2, 5, 9, mask_function=masks.bidirectional_mask_function)
    plain = masks.sliding_window_causal_mask_function(3)
    assert integration.tokens(2, 5, 5, mask_function=plain).packable

    layer = torch.nn.Module()
    layer.config = SimpleNamespace(layer_types=["chunked_attention"] * 2)
    layer.layer_idx, layer.is_causal = 1, True
    x = torch.ones(1, 4, 5, 8)
    wrong = [
        ({}, "name a pattern for layers of type 'chunked_attention'"),
        ({"output_attentions": True}, "weights are never made"),
        ({"position_bias": x}, "attention with a position_bias is not supported"),
        ({"attention_mask": None, "key": x[:, :, :3]}, "self-attention alone"),
    ]
    for given, cause in wrong:
        call = {"query": x, "key": x, "value": x, "attention_mask": None, **given}
        with pytest.raises(maskdsl.MaskError, match=cause):
            integration.attention(layer, **call)
    layer.config.layer_types = ["sliding_attention"] * 2
    with pytest.raises(maskdsl.BindError, match="a window to both sides"):
        integration.attention(layer, x, x, x, None, is_causal=False, sliding_window=3)
    del layer.layer_idx
    layer.config.maskdsl_patterns = ["std/full", "std/causal"]
    with pytest.raises(maskdsl.BindError, match="does not know its layer's number"):
        integration.attention(layer, x, x, x, None)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["gpt_oss", "gemma2"])
def test_half_precision_is_as_near_as_eager_attention(kind: str, dtype: torch.dtype) -> None:
    exact, eager, ours = make(kind), make(kind), make(kind)
    use(ours)
    with torch.no_grad():
        wanted = exact(ids()).logits
        own = (eager.to(dtype)(ids()).logits.float() - wanted).square().mean()
        found = (ours.to(dtype)(ids()).logits.float() - wanted).square().mean()
    assert 0 < found <= 1.5 * own


def test_without_transformers_the_error_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(maskdsl.CompileError, match=r"pip install 'maskdsl\[transformers\]'"):
        runpy.run_path(str(integration.__file__))
