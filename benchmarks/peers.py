"""The peers: FlexAttention with the best of a grid of options and its own mask, torch's SDPA on the
dense problem, and NATTEN's path through FlexAttention.
"""

from __future__ import annotations

import functools
import importlib
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch._functorch.config
import torch.nn.functional as nn_functional
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from benchmarks.problem import Attention, Contender, Problem, UnavailableError, ours


def _square(size: int, stages: int, warps: int) -> dict[str, int]:
    return {
        "bwd_BLOCK_M1": size,
        "bwd_BLOCK_N1": size,
        "bwd_BLOCK_M2": size,
        "bwd_BLOCK_N2": size,
        "bwd_num_stages": stages,
        "bwd_num_warps": warps,
    }


def _tile(queries: int, keys: int, stages: int, warps: int) -> dict[str, int]:
    return {
        "fwd_BLOCK_M": queries,
        "fwd_BLOCK_N": keys,
        "fwd_num_stages": stages,
        "fwd_num_warps": warps,
    }


# By direction and name: lanes of a block of the mask, and kernel options. The tiles are those that
# torch's own search tries on Hopper; no row of any workload is empty, so that rows are safe.
FLEX_OPTIONS: dict[str, dict[str, tuple[int, dict[str, Any]]]] = {
    "forward": {
        "default": (128, {}),
        "safe": (128, {"PRESCALE_QK": True, "ROWS_GUARANTEED_SAFE": True}),
        "128x128": (128, _tile(128, 128, 2, 8)),
        "128x64": (128, _tile(128, 64, 3, 4)),
        "64x64": (64, _tile(64, 64, 3, 4)),
        "tma": (128, {"USE_TMA": True}),
    },
    "backward": {
        "default": (128, {}),
        "64x64": (128, _square(64, 3, 4)),
        "blocks of 64": (64, _square(64, 3, 4)),
    },
}
SDPA = {"cudnn": SDPBackend.CUDNN_ATTENTION, "flash": SDPBackend.FLASH_ATTENTION}
NATTEN_TILES = {2: ((8, 8), (8, 8)), 3: ((4, 4, 4), (4, 4, 4))}


def contenders(problem: Problem, direction: str) -> list[Contender]:
    """All that are measured on a problem, those that matter most first."""
    first, *others = (
        Contender(f"flex/{name}", True, functools.partial(_flex, block=block, options=options))
        for name, (block, options) in FLEX_OPTIONS[direction].items()
    )
    dense = [
        Contender(f"sdpa_{name}", False, functools.partial(_sdpa, backend=backend, causal=False))
        for name, backend in SDPA.items()
    ]
    if problem.workload.sdpa_causal:
        dense += [
            Contender(f"sdpa_{name}_causal", True, functools.partial(_sdpa, backend=b, causal=True))
            for name, b in SDPA.items()
        ]
    natten = []
    if problem.workload.natten:
        natten = [
            Contender(f"natten/{name}", True, functools.partial(_natten, tiled=tiled))
            for name, tiled in (("tiled", True), ("flat", False))
        ]
    # Options mean nothing to the uncompiled FlexAttention that a CPU runs.
    others = others if problem.device.type == "cuda" else []
    overlap = []
    if direction == "forward":  # gradients have no such template
        overlap = [Contender("overlap", True, functools.partial(ours, template="overlap"))]
    return [Contender("ours", True, ours), *overlap, first, *dense, *others, *natten]


def settle() -> None:
    """Settings of torch under which peers can be timed."""
    flex = r"torch\.nn\.attention\.flex_attention"
    warnings.filterwarnings("ignore", module=flex)  # of running uncompiled, as a CPU does here
    torch._dynamo.config.recompile_limit = 64  # a compilation for each option
    torch._functorch.config.donated_buffer = False  # a backward pass is run many times


@functools.cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(function, dynamic=False)


def _flex(
    problem: Problem, facts: dict[str, Any], block: int, options: dict[str, Any]
) -> Attention:
    """facts: seconds that the block mask takes, which are no part of the times."""
    use = problem.flex()
    block_mask = None
    if use is not None:
        key = "block mask", block
        if key not in problem.memo:
            problem.memo[key] = _block_mask(problem, block)
        block_mask, known = problem.memo[key]
        facts |= known
    on_gpu = problem.device.type == "cuda"
    run = _compiled(flex_attention) if on_gpu else flex_attention
    score_mod = use.score_mod if use else None

    def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out: Tensor = run(
            q,
            k,
            v,
            score_mod=score_mod,
            block_mask=block_mask,
            enable_gqa=problem.grouped,
            kernel_options=dict(options) if on_gpu else None,
        )
        return out

    return attention


def _block_mask(problem: Problem, block: int) -> tuple[BlockMask, dict[str, Any]]:
    use = problem.flex()
    assert use is not None
    batch, heads, queries, _ = problem.q.shape

    def run(create: Callable[..., BlockMask]) -> BlockMask:
        mask: BlockMask = create(
            use.mask_mod,
            batch if use.per_batch else None,
            heads if use.per_head else None,
            queries,
            problem.k.shape[2],
            device=problem.device.type,
            BLOCK_SIZE=block,
        )
        if problem.device.type == "cuda":
            torch.cuda.synchronize()
        return mask

    create = _compiled(create_block_mask) if problem.device.type == "cuda" else create_block_mask
    facts: dict[str, Any] = {}
    for name in ("mask_first_s", "mask_s"):
        start = time.perf_counter()
        try:
            mask = run(create)
        except Exception as error:  # the kernel can be timed all the same
            facts["mask_compilation"] = f"{type(error).__name__}: {error}"[:200]
            create = create_block_mask
            mask = run(create)
        facts[name] = time.perf_counter() - start
    return mask, facts


def _sdpa(problem: Problem, facts: dict[str, Any], backend: SDPBackend, causal: bool) -> Attention:
    if problem.device.type != "cuda":
        raise UnavailableError("needs a GPU")

    def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with sdpa_kernel(backend):
            return nn_functional.scaled_dot_product_attention(
                q, k, v, is_causal=causal, enable_gqa=problem.grouped
            )

    return attention


def _natten(problem: Problem, facts: dict[str, Any], tiled: bool) -> Attention:
    """NATTEN over tiles permutes tokens, which is part of its time; making its block mask at each
    call is not: it is kept.
    """
    try:
        natten = importlib.import_module("natten")
        path = importlib.import_module("natten.backends.flex")
    except ImportError as error:
        raise UnavailableError(f"natten does not import ({error})") from error
    on_gpu = problem.device.type == "cuda"
    if on_gpu:
        natten.allow_flex_compile()
        natten.allow_flex_compile_backprop()
    if not hasattr(path.get_na_flex_mask, "cache_info"):
        path.get_na_flex_mask = functools.cache(path.get_na_flex_mask)
    bound = problem.workload.bind
    extents = [bound[axis] for axis in problem.mask.pattern.axes]
    shapes = NATTEN_TILES[len(extents)] if tiled else (None, None)
    call = {2: natten.na2d, 3: natten.na3d}[len(extents)]

    def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        heads_last = (x.transpose(1, 2).unflatten(1, extents) for x in (q, k, v))
        out: Tensor = call(
            *heads_last,
            kernel_size=tuple(bound["window"]),
            stride=tuple(bound["stride"]),
            backend="flex-fna",
            q_tile_shape=shapes[0],
            kv_tile_shape=shapes[1],
            torch_compile=on_gpu,
        )
        return out.flatten(1, -3).transpose(1, 2)

    return attention
