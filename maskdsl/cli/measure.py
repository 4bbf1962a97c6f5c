"""Times on the machine at hand: one kernel, and attention without it, under the same tensors."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from maskdsl.errors import BindError, MaskError
from maskdsl.integrations.flex import score_mod, to_flex
from maskdsl.pattern import Mask
from maskdsl.runtime.compile import compile as compile_mask

MOST_PAIRS = 2**30  # of a mask given to SDPA as an array
WHAT = {
    "maskdsl": "this kernel",
    "dense": "torch's SDPA without a mask",
    "masked": "torch's SDPA with the mask as an array",
    "flex": "torch's FlexAttention, compiled",
}
DIRECTIONS = ("forward", "backward", "both")

Call = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], Any]


@dataclass(frozen=True)
class Setting:
    """What is measured. dtype: None for the device's own. tiles: of queries and keys, or None."""

    mask: Mask
    head_dim: int
    batch: int
    dtype: torch.dtype | None
    direction: str
    backend: str
    tiles: tuple[Any, Any]
    tune: bool
    inputs: Mapping[str, Any]
    warmup: int
    repeats: int
    seconds: float


def measure(setting: Setting, rivals: list[str]) -> dict[str, Any]:
    """Medians by name and direction, in seconds, and the conditions. A rival that cannot run says
    why under `failed`. Raises MaskError where our own kernel cannot.
    """
    s = setting
    if s.direction not in DIRECTIONS:
        raise BindError(f"--direction is one of {', '.join(DIRECTIONS)}, not '{s.direction}'")
    for what, n in (("head-dim", s.head_dim), ("batch", s.batch)):
        if n < 1:
            raise BindError(f"--{what} must be at least 1, not {n}")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = s.dtype or (torch.bfloat16 if device == "cuda" else torch.float32)
    kernel = compile_mask(
        s.mask, s.head_dim, dtype, backend=s.backend, q_tile=s.tiles[0], kv_tile=s.tiles[1],
        tune=s.tune,
    )  # fmt: skip
    inputs = _inputs(s, device)
    q, k, v = _tensors(s, device, dtype)
    directions = ("forward", "backward") if s.direction == "both" else (s.direction,)
    calls: dict[str, Callable[[], Call]] = {
        "maskdsl": lambda: lambda q, k, v: kernel(q, k, v, **inputs),
        "dense": lambda: _sdpa(s.mask, None),
        "masked": lambda: _sdpa(s.mask, _dense_mask(s, inputs, device)),
        "flex": lambda: _flex(s.mask, inputs, device),
    }
    times: dict[str, Any] = {}
    failed: dict[str, str] = {}
    for name in ("maskdsl", *rivals):
        try:
            call = calls[name]()
            times[name] = {d: _timed(call, (q, k, v), d, s) for d in directions}
        except MaskError as e:
            if name == "maskdsl":
                raise
            failed[name] = str(e).splitlines()[0]
        except (RuntimeError, NotImplementedError, TypeError, ValueError) as e:
            if name == "maskdsl":
                raise
            failed[name] = f"{type(e).__name__}: {(str(e).strip().splitlines() or [''])[0][:200]}"
    heads, queries, keys = s.mask.shape
    return {
        "pattern": s.mask.pattern.name,
        "heads": heads,
        "kv_heads": s.mask.kv_heads,
        "queries": queries,
        "keys": keys,
        "head_dim": s.head_dim,
        "batch": s.batch,
        "dtype": str(dtype).removeprefix("torch."),
        "backend": kernel.backend,
        "device": torch.cuda.get_device_name() if device == "cuda" else _processor(),
        "threads": torch.get_num_threads() if device == "cpu" else None,
        "torch": torch.__version__,
        "times": times,
        "failed": failed,
    }


def _processor() -> str:
    """What the system calls it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(x.split(":")[1].strip() for x in lines if x.startswith("model name"))
    except (OSError, StopIteration, IndexError):
        return f"CPU ({platform.processor() or platform.machine()})"


def _tensors(s: Setting, device: str, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    heads, queries, keys = s.mask.shape
    g = torch.Generator().manual_seed(0)

    def make(heads: int, tokens: int) -> torch.Tensor:
        x = torch.randn((s.batch, heads, tokens, s.head_dim), generator=g)
        return x.to(device, dtype)

    return make(heads, queries), make(s.mask.kv_heads, keys), make(s.mask.kv_heads, keys)


def _inputs(s: Setting, device: str) -> dict[str, Any]:
    """Those given, and for the others: of ints sorted small ones (documents, say), of floats small
    random ones, of truths all true.
    """
    unknown = set(s.inputs) - set(s.mask.pattern.inputs)
    if unknown:
        raise BindError(f"there is no input '{min(unknown)}'")
    g = torch.Generator().manual_seed(0)
    found = {}
    for array in s.mask.closed().inputs:
        if array.name in s.inputs:
            x = torch.from_numpy(np.array(s.inputs[array.name]))
        else:
            shape = [
                s.batch if d == "batch" else d if isinstance(d, int) else 16 for d in array.dims
            ]
            ints = torch.randint(0, 8, shape, generator=g)
            ints = ints.sort(-1).values if shape else ints
            real = torch.rand(shape, generator=g) * 0.1
            x = {"int": ints, "float": real, "bool": torch.ones(shape, dtype=torch.bool)}[
                array.type
            ]
        found[array.name] = x.to(device)
    return found


def _sdpa(mask: Mask, keep: torch.Tensor | None) -> Call:
    grouped = mask.heads > mask.kv_heads
    attention = torch.nn.functional.scaled_dot_product_attention
    return lambda q, k, v: attention(q, k, v, attn_mask=keep, enable_gqa=grouped)


def _dense_mask(s: Setting, inputs: Mapping[str, Any], device: str) -> torch.Tensor:
    heads, queries, keys = s.mask.shape
    entries = s.batch if inputs else 1
    if entries * heads * queries * keys > MOST_PAIRS:
        raise BindError(f"{heads} x {queries} x {keys} pairs are too many for a mask as an array")
    rows = [[s.mask.dense(head=h, batch=b, **inputs) for h in range(heads)] for b in range(entries)]
    return torch.from_numpy(np.array(rows)).to(device)


def _flex(mask: Mask, inputs: Mapping[str, Any], device: str) -> Call:
    from torch.nn.attention.flex_attention import flex_attention

    mask_mod, blocks = to_flex(mask, device=device, **inputs)
    del mask_mod  # the blocks hold it
    scored = any(b.score is not None for b in mask.closed().all_blocks)
    score = score_mod(mask, device=device, **inputs) if scored else None
    compiled = torch.compile(flex_attention, dynamic=False)
    grouped = mask.heads > mask.kv_heads
    return lambda q, k, v: compiled(q, k, v, score_mod=score, block_mask=blocks, enable_gqa=grouped)


def _timed(
    call: Call, tensors: tuple[torch.Tensor, ...], direction: str, s: Setting
) -> dict[str, Any]:
    """Median, least and number of timed calls, in seconds; a backward pass is timed alone."""
    q, k, v = (x.detach().requires_grad_(direction == "backward") for x in tensors)
    on_gpu = q.device.type == "cuda"

    def wait() -> None:
        if on_gpu:
            torch.cuda.synchronize()

    found: list[float] = []
    begun = time.perf_counter()
    for number in range(s.warmup + s.repeats):
        if direction == "backward":
            out = call(q, k, v)
            do = torch.ones_like(out)
            wait()
            start = time.perf_counter()
            torch.autograd.grad(out, (q, k, v), do)
        else:
            wait()
            start = time.perf_counter()
            with torch.no_grad():
                call(q, k, v)
        wait()
        end = time.perf_counter()
        if number >= s.warmup:
            found.append(end - start)
        if found and end - begun > s.seconds:
            break
    return {"median": statistics.median(found), "least": min(found), "calls": len(found)}


def table(found: Mapping[str, Any]) -> str:
    """What was measured, for people."""
    f = found
    heads = f"{f['heads']} heads" + (f" on {f['kv_heads']}" if f["kv_heads"] < f["heads"] else "")
    lines = [
        f"{f['pattern']}: {f['batch']} x {heads}, {f['queries']} x {f['keys']} tokens, "
        f"d={f['head_dim']}, {f['dtype']}",
        f"on {f['device']}"
        + (f", {f['threads']} threads" if f["threads"] else "")
        + f", torch {f['torch']}, backend {f['backend']}",
    ]
    for name, times in f["times"].items():
        for direction, t in times.items():
            ratio = t["median"] / f["times"]["maskdsl"][direction]["median"]
            beside = "" if name == "maskdsl" else f", {ratio:.2f} times this kernel's"
            lines.append(
                f"{direction:9} {t['median'] * 1e3:10.3f} ms  {WHAT[name]} "
                f"(median of {t['calls']}{beside})"
            )
    lines += [f"cannot: {WHAT[name]}: {why}" for name, why in f["failed"].items()]
    return "\n".join(lines)
