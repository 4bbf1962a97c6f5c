"""Attention of `diffusers` video transformers by patterns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from maskdsl.errors import BindError, CompileError
from maskdsl.integrations.attend import attend
from maskdsl.integrations.named import Named, named
from maskdsl.integrations.sequences import Tokens, padded

try:
    import diffusers  # noqa: F401 (what the models below are of)
except ImportError:
    raise CompileError("diffusers is not installed: pip install 'maskdsl[diffusers]'") from None

Patterns = str | Sequence[str | None] | None
Grid = tuple[int, int, int]


@dataclass(frozen=True)
class Kind:
    """What is known of a class of models: its self-attention, what of the latent video makes a
    token, and whether text tokens follow those of the video.
    """

    layers: Callable[[Any], list[torch.nn.Module]]
    patch: Callable[[Any], Grid]
    text: bool


KINDS: Mapping[str, Kind] = {
    "WanTransformer3DModel": Kind(
        lambda model: [block.attn1 for block in model.blocks],
        lambda config: tuple(config.patch_size),
        text=False,
    ),
    "HunyuanVideoTransformer3DModel": Kind(
        lambda model: [
            block.attn for block in (*model.transformer_blocks, *model.single_transformer_blocks)
        ],
        lambda config: (config.patch_size_t, config.patch_size, config.patch_size),
        text=True,
    ),
}


def use(model: Any, patterns: Patterns) -> None:
    """Run the self-attention of a Wan or HunyuanVideo transformer by patterns from here on.

    patterns: a line such as "std/radial decay=0.5" for all layers, or a list with one per layer, in
    HunyuanVideo those of the single-stream blocks last; None: a layer's own dense attention. A
    pattern is over the video's tokens, (t, y, x), (frame, token of the frame) or (token); in
    HunyuanVideo a second segment, of one axis, is the text. Extents follow from each call. Padded
    text sees nothing and is not seen.

    Raises BindError for other models and layers that do not exist, and what a line's pattern
    raises; calls raise it for attention other than torch's scaled_dot_product_attention.
    """
    kind = next((KINDS[c.__name__] for c in type(model).__mro__ if c.__name__ in KINDS), None)
    if kind is None:
        raise BindError(f"{type(model).__name__} is not one of {', '.join(KINDS)}")
    layers = kind.layers(model)
    lines = [patterns] * len(layers) if isinstance(patterns, str) or patterns is None else patterns
    if len(lines) != len(layers):
        raise BindError(f"{len(lines)} patterns for the model's {len(layers)} layers")
    asked = [None if line is None else _checked(named(line), kind) for line in lines]
    for module in (model, *layers):
        for handle in module.__dict__.pop(HOOKS, ()):
            handle.remove()
    video = Video(kind.patch(model.config))
    _hook(model, video)
    for layer, pattern in zip(layers, asked, strict=True):
        if pattern is not None:
            _hook(layer, Layer(pattern, video))


HOOKS = "maskdsl_hooks"  # the attribute of a module that holds the handles of its hooks


def _hook(module: torch.nn.Module, on: Video | Layer) -> None:
    handles = [module.register_forward_pre_hook(on.before, with_kwargs=True)]
    if isinstance(on, Layer):
        handles.append(module.register_forward_hook(on.after, always_call=True))
    module.__dict__[HOOKS] = handles


def _checked(asked: Named, kind: Kind) -> Named:
    program = asked.pattern.program
    name = asked.pattern.name
    if asked.pattern.inputs:
        raise BindError(f"{name} has inputs, which a video transformer does not give")
    if not program.shared:
        raise BindError(f"{name}: queries and keys must have one space")
    axes = [len(segment.axes) for segment in program.queries]
    if kind.text and axes != [1] and not (len(axes) == 2 and axes[0] <= 3 and axes[1] == 1):
        raise BindError(f"{name}: the text follows the video: over video(t, y, x) then text(n)")
    if not kind.text and not (len(axes) == 1 and axes[0] <= 3):
        raise BindError(f"{name}: the tokens are a video's alone: over (t, y, x) or over (t, s)")
    return asked


@dataclass
class Video:
    """How many tokens the video of the call that is running has, in time, height and width."""

    patch: Grid
    grid: Grid = (0, 0, 0)

    def before(self, _: torch.nn.Module, args: Any, kwargs: Any) -> None:
        latent = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
        t, y, x = (n // p for n, p in zip(latent.shape[2:], self.patch, strict=True))
        self.grid = t, y, x

    def extents(self, asked: Named) -> dict[str, int]:
        """Extents of the axes of the pattern's video."""
        t, y, x = self.grid
        axes = [name for name, _ in asked.pattern.program.queries[0].axes]
        sizes = {3: (t, y, x), 2: (t, y * x), 1: (t * y * x,)}[len(axes)]
        return dict(zip(axes, sizes, strict=True))


class Layer(TorchFunctionMode):
    """Runs the product attention inside a module's forward pass by a pattern."""

    def __init__(self, asked: Named, video: Video) -> None:
        super().__init__()
        self.asked, self.video, self.calls = asked, video, 0

    def before(self, *_: Any) -> None:
        self.calls = 0
        self.__enter__()  # type: ignore[no-untyped-call]

    def after(self, module: torch.nn.Module, _: Any, output: Any) -> None:
        self.__exit__(None, None, None)  # type: ignore[no-untyped-call]
        if output is not None and self.calls != 1:
            raise CompileError(
                f"{type(module).__name__} called torch's scaled_dot_product_attention "
                f"{self.calls} times instead of once: set diffusers' attention backend to 'native'"
            )

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not torch.nn.functional.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        self.calls += 1
        return self._attend(*args, **(kwargs or {}))

    def _attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attn_mask: torch.Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> torch.Tensor:
        """As torch's function, with the pattern; a mask may say which keys are padding."""
        if dropout_p or is_causal or query.shape[2] != key.shape[2]:
            raise CompileError("patterns are for self-attention without dropout")
        spans = None
        if attn_mask is not None:
            if attn_mask.dtype != torch.bool or attn_mask.shape[1:3] != (1, 1):
                shape = tuple(attn_mask.shape)
                raise CompileError(f"a mask of padding is bool (batch, 1, 1, tokens), not {shape}")
            spans = padded(attn_mask[:, 0, 0].expand(len(query), -1))
        asked = self.asked
        if len(asked.pattern.axes) > 1 or len(asked.pattern.program.queries) > 1:
            asked = Named(asked.pattern, {**asked.values, **self.video.extents(asked)})
        return attend(asked, query, key, value, Tokens(0, 0, spans, False), {}, scale)
