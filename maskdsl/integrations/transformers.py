"""Attention of `transformers` models by patterns: importing this module registers the attention
implementation "maskdsl".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch

from maskdsl.errors import BindError, CompileError, nearest
from maskdsl.integrations.attend import attend
from maskdsl.integrations.named import Named, named
from maskdsl.integrations.sequences import Tokens, padded
from maskdsl.pattern import parse

try:
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import bidirectional_mask_function
except ImportError:
    raise CompileError(
        "transformers is not installed: pip install 'maskdsl[transformers]'"
    ) from None

NAME = "maskdsl"
SINKS = "model_sinks"  # the input that a model's own sinks are
Patterns = str | Sequence[str | None] | Mapping[str, str]


def use(model: Any, patterns: Patterns | None = None) -> None:
    """Run a model's self-attention by patterns from here on.

    patterns: a line such as "std/sliding_window window=4096" for all layers, a list with one per
    layer, or a dict by layer type ("full_attention", "sliding_attention"). Layers without one
    (None) keep the keys that the model's own config gives them. The model's soft cap and sinks
    stay, unless the pattern has score or sink clauses of its own; its inputs are arguments of the
    model's call or attributes of the attention module. Saved with the config, as
    `maskdsl_patterns`.

    Raises what a line's pattern raises, BindError for layers that do not exist.
    """
    config = model.config.get_text_config()
    _check(config, patterns)
    config.maskdsl_patterns = patterns
    model.set_attn_implementation(NAME)
    if model.config._attn_implementation != NAME:
        kind = type(model).__name__
        raise CompileError(f"{kind} has attention of its own that cannot be changed")


def _check(config: Any, patterns: Any) -> None:
    if isinstance(patterns, Mapping):
        known = set(getattr(config, "layer_types", None) or ())
        for kind in patterns:
            if kind not in known:
                raise BindError(f"the model has no layers of type '{kind}'{nearest(kind, known)}")
        lines = list(patterns.values())
    elif isinstance(patterns, Sequence) and not isinstance(patterns, str):
        layers = config.num_hidden_layers
        if len(patterns) != layers:
            raise BindError(f"{len(patterns)} patterns for the model's {layers} layers")
        lines = list(patterns)
    else:
        lines = [patterns]
    heads = config.num_attention_heads
    for line in lines:
        if line is not None:
            named(line).bind(heads, getattr(config, "num_key_value_heads", None) or heads)


def attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Tokens | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    is_causal: bool | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    position_ids: torch.Tensor | None = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    **given: Any,
) -> tuple[torch.Tensor, None]:
    """What transformers calls: query (batch, heads, tokens, head_dim), key and value (batch,
    kv_heads, slots, head_dim) to (batch, tokens, heads, head_dim).

    Every sequence is attended as if it stood alone: positions count from its own first token, after
    padding on the left, before padding on the right, and where several are packed into a row.
    Padding gets zeros. Raises MaskError for what patterns do not express.
    """
    if dropout and module.training:
        raise CompileError("attention dropout is not supported: set attention_dropout=0")
    for name in ("position_bias", "cache"):
        if given.get(name) is not None:
            raise CompileError(f"attention with a {name} is not supported")
    if given.get("output_attentions"):
        raise CompileError("attention weights are never made: leave out output_attentions")
    if attention_mask is None and query.shape[2] == key.shape[2]:
        attention_mask = Tokens(0, 0, None, packable=True)
    if not isinstance(attention_mask, Tokens):
        raise BindError("self-attention alone, with masks of padding (batch, tokens), is supported")
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    line = _line(module, bool(causal), sliding_window)
    asked = _scored(named(line), softcap, s_aux is not None)
    inputs: dict[str, Any] = {} if s_aux is None else {SINKS: s_aux}
    for name in asked.pattern.inputs:
        inputs.setdefault(name, given.get(name, getattr(module, name, None)))
        if inputs[name] is None:
            raise BindError(f"{line}: the input '{name}' is not an argument of the model's call")
    inputs = {name: inputs[name] for name in asked.pattern.inputs}
    packed = attention_mask.packed(position_ids, cu_seq_lens_q)
    out = attend(asked, query, key, value, attention_mask, inputs, scaling, packed)
    return out.transpose(1, 2).contiguous(), None


def _line(module: torch.nn.Module, causal: bool, sliding_window: int | None) -> str:
    """The pattern of a layer: the config's, or the one that the model itself stands for."""
    config: Any = getattr(module, "config", None)
    layer = getattr(module, "layer_idx", None)
    kinds = getattr(config, "layer_types", None)
    kind = kinds[layer] if kinds is not None and layer is not None else None
    patterns = getattr(config, "maskdsl_patterns", None)
    if isinstance(patterns, Mapping):
        patterns = patterns.get(kind)
    elif patterns is not None and not isinstance(patterns, str):
        if layer is None:
            name = type(module).__name__
            raise BindError(f"{name} does not know its layer's number: give one pattern for all")
        patterns = patterns[layer]
    if patterns is not None:
        return str(patterns)
    if kind not in (None, "full_attention", "sliding_attention"):
        raise BindError(f"name a pattern for layers of type '{kind}'")
    if sliding_window is None:
        return "std/causal" if causal else "std/full"
    if not causal:
        raise BindError("name a pattern for layers with a window to both sides")
    return f"std/sliding_window window={sliding_window}"


@lru_cache
def _scored(asked: Named, softcap: float | None, sinks: bool) -> Named:
    """The pattern with what the model itself does to scores, where it has no such clauses."""
    pattern = asked.pattern
    clauses = ""
    if softcap is not None and all(b.score is None for b in pattern.program.all_blocks):
        clauses += f" score {float(softcap)!r} * tanh(logit / {float(softcap)!r})"
    if sinks and pattern.program.sink is None:
        clauses += f" input {SINKS}[heads]: float sink {SINKS}[head]"
    if not clauses:
        return asked
    spaces = pattern.definition.keys or pattern.definition.queries
    at = spaces[-1].span.end
    text = pattern.source[:at] + clauses + pattern.source[at:]
    return Named(parse(text, pattern.name), asked.values)


def tokens(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int | torch.Tensor = 0,
    kv_offset: int = 0,
    mask_function: Callable[..., Any] | None = None,
    attention_mask: Any = None,
    use_vmap: bool = False,
    **_: Any,
) -> Tokens:
    """What transformers calls to make the mask of a kind of layers: here what the slots hold."""
    if isinstance(attention_mask, Tokens):
        return attention_mask
    if use_vmap or _overlaid(mask_function):
        raise CompileError("this model's masks are more than padding: they are not supported")
    if mask_function is bidirectional_mask_function and q_length != kv_length:
        raise CompileError("cross-attention is not supported: only self-attention is")
    spans = None if attention_mask is None else padded(attention_mask)
    packable = attention_mask is None and int(q_offset) == 0 and q_length == kv_length
    return Tokens(int(q_offset), int(kv_offset), spans, packable)


def _overlaid(function: Any) -> bool:
    """Whether a mask function adds blocks of tokens that see each other both ways."""
    todo, seen = [function], set()
    while todo:
        f = todo.pop()
        if isinstance(f, (tuple, list)):
            todo += f
        elif callable(f) and id(f) not in seen:
            seen.add(id(f))
            if getattr(f, "__qualname__", "").startswith("blockwise_overlay"):
                return True
            todo += [cell.cell_contents for cell in getattr(f, "__closure__", None) or ()]
    return False


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, tokens)
