"""`maskdsl.natten` against NATTEN: outputs of its own functions, gradients of dense attention under
its own mask.
"""

from __future__ import annotations

import inspect
import math
import warnings
from typing import Any

import pytest
import torch
from natten_oracle import Configuration, natten_mask, random_configurations

import maskdsl
from maskdsl.integrations.kernels import _compiled
from maskdsl.natten import na1d, na2d, na3d

natten = pytest.importorskip("natten")

OURS = {1: na1d, 2: na2d, 3: na3d}


def whole(generator: torch.Generator, *shape: int, low: int = -2, high: int = 3) -> torch.Tensor:
    return torch.randint(low, high, shape, generator=generator).float()


def drawn(
    config: Configuration, seed: int, batch: int = 2, heads: int = 4, kv_heads: int = 2
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """(query, key, value), (additional keys, additional values); no float of the scores is rounded
    before the softmax.
    """
    g = torch.Generator().manual_seed(seed)
    shape = config.shape
    qkv = [whole(g, batch, *shape, n, 8) for n in (heads, kv_heads, kv_heads)]
    return qkv, [whole(g, batch, 3, kv_heads, 8) for _ in range(2)]


def of_natten(config: Configuration, qkv: list[torch.Tensor], **more: Any) -> Any:
    function = getattr(natten, f"na{len(config.shape)}d")
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return function(
            *qkv, *config[1:], **more, backend="flex-fna",
            attention_kwargs={"backend": "flex-fmha"}, return_lse=True,
        )  # fmt: skip


def of_ours(config: Configuration, qkv: list[torch.Tensor], **more: Any) -> Any:
    return OURS[len(config.shape)](*qkv, *config[1:], **more)


def is_plain_causal(config: Configuration) -> bool:
    """NATTEN hands this case to a kernel that has no CPU version."""
    return len(config.shape) == 1 and config.window == config.shape and config.causal[0]


CASES = [c for c in random_configurations(seed=31, count=24) if not is_plain_causal(c)]


@pytest.mark.parametrize("config", CASES[:6], ids=str)  # a second each, of NATTEN's
def test_outputs_are_those_of_natten(config: Configuration) -> None:
    qkv, (keys, values) = drawn(config, seed=len(str(config)))
    more = {} if config.shape[0] % 2 else {"additional_keys": keys, "additional_values": values}
    scale = None if config.shape[-1] % 2 else 0.25
    out, lse = of_ours(config, qkv, **more, scale=scale, return_lse=True)
    wanted, wanted_lse = of_natten(config, qkv, **more, scale=scale)
    assert out.shape == wanted.shape and lse.shape == wanted_lse.shape
    assert torch.allclose(out, wanted, rtol=0, atol=1e-5)
    assert torch.allclose(lse, wanted_lse, rtol=0, atol=1e-5)


def dense(
    config: Configuration, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor,
    more: list[torch.Tensor],
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """(out, lse) in the tensors' precision, with NATTEN's mask."""
    rank = len(config.shape)
    mask = torch.from_numpy(natten_mask(*config))
    q, k, v = (x.flatten(1, rank).transpose(1, 2) for x in (q, k, v))
    if more:
        k, v = (torch.cat([x, y.transpose(1, 2)], 2) for x, y in zip((k, v), more, strict=True))
        mask = torch.cat([mask, torch.ones(len(mask), more[0].shape[1], dtype=torch.bool)], 1)
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    logits = (q @ k.mT / math.sqrt(q.shape[-1])).masked_fill(~mask, -math.inf)
    out, lse = logits.softmax(-1) @ v, logits.logsumexp(-1)
    out, lse = (x.transpose(1, 2).unflatten(1, config.shape) for x in (out, lse))
    return out, lse


@pytest.mark.parametrize("config", CASES, ids=str)
def test_outputs_and_gradients_are_those_of_its_dense_mask(config: Configuration) -> None:
    qkv, more = drawn(config, seed=1)
    more = more if config.shape[0] % 2 else []
    tensors = [x.requires_grad_() for x in (*qkv, *more)]
    named = dict(zip(("additional_keys", "additional_values"), more, strict=False))
    found = of_ours(config, qkv, **named, return_lse=True)
    exact = [x.detach().double().requires_grad_() for x in tensors]
    wanted = dense(config, *exact[:3], exact[3:])
    g = torch.Generator().manual_seed(2)
    flow = [whole(g, *x.shape, high=2) for x in found]
    ours = torch.autograd.grad(found, tensors, flow)
    theirs = torch.autograd.grad(wanted, exact, [x.double() for x in flow])
    for a, b in zip((*found, *ours), (*wanted, *theirs), strict=True):
        assert (a - b).abs().max() <= 1e-5 * max(1, b.abs().max())


def test_keys_outside_the_neighborhood_are_never_multiplied_in() -> None:
    q, k, v = (torch.ones(1, 6, 9, 1, 8) for _ in range(3))
    k[:, :, 5:], v[:, :, 5:] = 1e30, 3e38
    out = na2d(q, k, v, kernel_size=(3, 3), is_causal=(False, True))
    assert isinstance(out, torch.Tensor) and (out[:, :, :5] == 1).all()


def test_kernels_are_kept_per_shape_and_setting() -> None:
    q = torch.ones(1, 23, 2, 8)
    before = _compiled.cache_info().misses
    for given in ({"dilation": 1}, {"dilation": [1]}, {"dilation": (1,), "stride": None}):
        na1d(q, q, q, 3, **given)
        assert _compiled.cache_info().misses == before + 1
    double = q.double()
    out = na1d(double, double, double, 3, backend="reference")
    assert isinstance(out, torch.Tensor) and out.dtype == torch.float64
    assert _compiled.cache_info().misses == before + 2


def test_triton_kernels_give_the_same() -> None:
    config = Configuration((6, 7), (3, 5), (1, 2), (2, 1), (False, True))
    qkv, (keys, values) = drawn(config, seed=5)
    for more in ({}, {"additional_keys": keys, "additional_values": values}):
        found = of_ours(config, qkv, **more, backend="triton", return_lse=True)
        wanted = of_ours(config, qkv, **more, return_lse=True)
        for a, b in zip(found, wanted, strict=True):
            assert (a - b).abs().max() <= 1e-5


def test_arguments_have_natten_s_names_and_defaults() -> None:
    from maskdsl.integrations.natten import TUNING

    for rank, ours in OURS.items():
        theirs = inspect.signature(getattr(natten, f"na{rank}d")).parameters
        own = inspect.signature(ours).parameters
        for name, parameter in theirs.items():
            if name in own:
                assert own[name].default == parameter.default, name
            else:
                assert parameter.default in TUNING[name], name
        positional = [n for n, p in own.items() if p.kind is p.POSITIONAL_OR_KEYWORD]
        assert positional == list(theirs)[: len(positional)]


X = torch.ones(1, 8, 8, 2, 8)
WRONG: list[tuple[dict[str, Any], str]] = [
    ({"kernel_size": 1}, "kernel_size is an int of at least 2"),
    ({"kernel_size": (3, 3, 3)}, "or 2 of them"),
    ({"kernel_size": 3.0}, "kernel_size is an int"),
    ({"kernel_size": 5, "dilation": 2}, "kernel_size 5 \\* dilation 2 is more than the extent 8"),
    ({"kernel_size": 3, "stride": (1, 4)}, "stride 4 is more than kernel_size 3"),
    ({"kernel_size": 3, "is_causal": (True, 1)}, "is_causal is a bool or 2 of them"),
    ({"kernel_size": 3, "is_causal": 1}, "is_causal is a bool or 2 of them"),
    ({"kernel_size": 3, "backend": "cutlass-fna"}, "backend is one of triton, torch, reference"),
    ({"kernel_size": 3, "kernel_schedule": "pp"}, "kernel_schedule tunes NATTEN's own kernels"),
    ({"kernel_size": 3, "rel_pos_bias": X}, "there is no option 'rel_pos_bias'"),
    ({"kernel_size": 3, "torch_compiled": True}, "did you mean 'torch_compile'"),
    ({"kernel_size": 3, "additional_keys": X[0]}, "two tensors, or both left out"),
    ({"kernel_size": 3, "additional_keys": X[0], "additional_values": X[0, :, :5]}, "must have"),
    ({"kernel_size": 3, "q_tile_shape": (3, 8)}, "powers? of two"),
    ({"kernel_size": 3, "scale": "half"}, "scale must be a number"),
    ({"kernel_size": 3, "value": X[:, :, :7]}, "query and value differ in extents"),
    ({"kernel_size": 3, "key": X[0]}, "key is \\(batch, y, x, heads, head_dim\\), not \\(8, 8"),
    ({"kernel_size": 3, "key": X[..., :1, :], "value": X[..., :1, :4], "query": None}, "NoneType"),
    ({"kernel_size": 3, "key": X[..., :1, :].double()}, "k must be torch.float32"),
]


@pytest.mark.parametrize(("given", "cause"), WRONG)
def test_what_does_not_fit_is_told_in_a_line(given: dict[str, Any], cause: str) -> None:
    with pytest.raises(maskdsl.MaskError, match=cause) as caught:
        na2d(**({"query": X, "key": X, "value": X} | given))
    assert "\n" not in str(caught.value)
