"""One case of the CPU benchmark in a process of its own: ours and its peers in turn."""

from __future__ import annotations

import os
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from torch.nn.functional import scaled_dot_product_attention

import maskdsl
from benchmarks.cpu_cases import DIM, Case

BLOCKS = (64, 128, 256)  # sizes of FlexAttention's blocks
QUIET = 0.05  # share of the cores' time that other processes may take during a sample
ENOUGH = 5  # clean samples of each run
MOST = 25  # rounds
MOST_DENSE = 2**14  # tokens of dense attention
TRUTH_ROWS = 48  # queries whose attention is worked out in float64
Run = Callable[[], Any]


def tensors(case: Case, dtype: torch.dtype, deviation: float = 1.0) -> list[torch.Tensor]:
    """q, k and v (1, heads, tokens, dim), such that logits have this standard deviation."""
    g = torch.Generator().manual_seed(0)
    heads, queries, keys = case.mask().shape
    shapes = ((1, heads, n, DIM) for n in (queries, keys, keys))
    q, k, v = (torch.randn(s, generator=g) for s in shapes)
    return [x.to(dtype) for x in (q * deviation, k, v)]


def ours(case: Case, dtype: torch.dtype) -> maskdsl.Kernel:
    return maskdsl.compile(case.mask(), DIM, dtype, backend="torch")


def flex(case: Case, block: int) -> Callable[..., Any]:
    """Compiled FlexAttention with the mask written by hand, its blocks taken from our plan (made by
    `create_block_mask` they are the same, and at 64K take 4 GB).
    """
    blocks: BlockMask
    if case.score_mod is None:
        _, blocks = maskdsl.to_flex(case.mask(), block)
    else:
        text = case.text[: case.text.index("score")]
        _, blocks = maskdsl.to_flex(maskdsl.parse(text).bind(**case.bound, heads=case.heads), block)
    blocks.mask_mod = case.mask_mod
    compiled = torch.compile(flex_attention)
    return lambda q, k, v: compiled(q, k, v, score_mod=case.score_mod, block_mask=blocks)


def natten(case: Case) -> Callable[..., Any]:
    """NATTEN's own attention on a CPU, which is FlexAttention's, compiled, over its tokens."""
    from natten import na2d, na3d

    run = na2d if len(case.shape) == 2 else na3d

    def call(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = run(
            q, k, v, kernel_size=case.window, backend="flex-fna", torch_compile=True
        )
        return found

    return call


def first_call(make: Callable[[], Run]) -> tuple[Run, float]:
    """(run, seconds until its first call is through)."""
    start = time.perf_counter()
    run = make()
    run()
    return run, time.perf_counter() - start


def rounds(runs: dict[str, Run], most: int = MOST) -> dict[str, Any]:
    """Seconds of runs taken in turn, and whether others kept the cores busy meanwhile, until each
    has enough clean samples.

    Per run: the median of its clean samples, how many there are of how many. "ratios": the median
    over rounds that are clean for both of the run's seconds by those of "ours".
    """
    taken: list[dict[str, tuple[float, bool]]] = []
    while len(taken) < most:
        taken.append({name: _sample(run) for name, run in runs.items()})
        if all(sum(t[n][1] for t in taken) >= ENOUGH for n in runs):
            break
    found: dict[str, Any] = {"runs": {}, "ratios": {}}
    for name in runs:
        clean = [t[name][0] for t in taken if t[name][1]]
        every = [t[name][0] for t in taken]
        found["runs"][name] = {
            "seconds": statistics.median(clean or every),
            "clean": len(clean),
            "samples": len(every),
        }
        both = [t for t in taken if t[name][1] and t["ours"][1]] or taken
        found["ratios"][name] = statistics.median(t[name][0] / t["ours"][0] for t in both)
    return found


def _sample(run: Run) -> tuple[float, bool]:
    """(seconds, whether it is clean): others took little of the cores' time."""
    busy, own, start = _busy(), _own(), time.perf_counter()
    run()
    seconds = time.perf_counter() - start
    others = (_busy() - busy) - (_own() - own)
    cores = len(os.sched_getaffinity(0))
    grain = 2 / os.sysconf("SC_CLK_TCK")  # of the kernel's count
    return seconds, others <= QUIET * cores * seconds + grain


def _busy() -> float:
    """Seconds that all cores have worked, those stolen from this machine included."""
    fields = [int(x) for x in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    user, nice, system, _idle, _iowait, irq, softirq, steal = fields
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def _own() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def speed(case: Case, dtype: torch.dtype, peers: tuple[str, ...]) -> dict[str, Any]:
    """Seconds of a steady call and ratios to ours, forward, and forward with backward; seconds of
    set-up: the first call less a steady one, in a process that has compiled nothing ("cold": ours
    with its C++, FlexAttention with its first block size) and in one that has ("warm": ours anew,
    FlexAttention with its best block size).
    """
    q, k, v = tensors(case, dtype)
    tokens = max(q.shape[2], k.shape[2])
    setup: dict[str, float] = {}
    runs: dict[str, Run] = {}

    def add(name: str, make: Callable[[], Callable[..., Any]]) -> None:
        def made() -> Run:
            run = make()
            return lambda: run(q, k, v)

        with torch.no_grad():
            runs[name], setup[name] = first_call(made)

    add("cold", lambda: ours(case, dtype))
    add("ours", lambda: ours(case, dtype))
    del runs["cold"]
    failed: dict[str, str] = {}
    if "flex" in peers:
        for block in BLOCKS:
            torch._dynamo.reset()
            add(f"flex {block}", lambda block=block: flex(case, block))  # type: ignore[misc]
    if "sdpa" in peers and tokens <= MOST_DENSE:
        add("sdpa", lambda: lambda *x: scaled_dot_product_attention(*x, is_causal=case.causal))
    if "natten" in peers and case.window:
        shaped = [x.transpose(1, 2).reshape(1, *case.shape, -1, DIM) for x in (q, k, v)]
        try:
            run = natten(case)
            add("natten", lambda: lambda *_: run(*shaped))
        except Exception as error:  # what it does not support here
            failed["natten"] = str(error).splitlines()[0][:200]
    with torch.no_grad():
        forward = rounds(runs)
    leaves = [x.clone().requires_grad_() for x in (q, k, v)]
    do = torch.randn_like(q)
    kernel = ours(case, dtype)
    both: dict[str, Run] = {
        "ours": lambda: torch.autograd.grad(kernel(*leaves), leaves, do),
        "forward": lambda: kernel(*leaves),
    }
    if case.causal and "sdpa" in peers:
        both["sdpa"] = lambda: torch.autograd.grad(
            scaled_dot_product_attention(*leaves, is_causal=True), leaves, do
        )
    for run in both.values():
        run()
    steady = {n: x["seconds"] for n, x in forward["runs"].items()}
    steady["cold"] = steady["ours"]
    return {
        "setup": {n: max(s - steady[n], 0.0) for n, s in setup.items()},
        "forward": forward,
        "both": rounds(both),
        "failed": failed,
    }


def errors(case: Case, dtype: torch.dtype, peers: tuple[str, ...]) -> dict[str, dict[str, float]]:
    """RMS error of some queries against float64, by standard deviation of the logits."""
    found: dict[str, dict[str, float]] = {}
    for deviation in (1.0, 8.0):
        q, k, v = tensors(case, dtype, deviation)
        queries = torch.linspace(0, q.shape[2] - 1, TRUTH_ROWS).long()
        want = _truth(case, q, k, v, queries)
        runs: dict[str, Callable[..., Any]] = {"ours": ours(case, dtype)}
        if "flex" in peers:
            torch._dynamo.reset()
            runs["flex"] = flex(case, BLOCKS[1])
        with torch.no_grad():
            got = {name: run(q, k, v)[:, :, queries].double() for name, run in runs.items()}
        found[f"{deviation:g}"] = {
            name: float((x - want).square().mean().sqrt()) for name, x in got.items()
        }
    return found


def _truth(
    case: Case, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, queries: torch.Tensor
) -> torch.Tensor:
    """Attention of some queries in float64, by the mask and the score written in torch."""
    logits = q[:, :, queries].double() @ k.double().mT * DIM**-0.5
    at, keys = queries[:, None], torch.arange(k.shape[2])[None]
    heads = torch.arange(q.shape[1])[:, None, None]
    if case.score_mod is not None:
        logits = case.score_mod(logits, 0, heads, at, keys)
    kept = case.mask_mod(0, heads, at, keys)
    return torch.softmax(logits.masked_fill(~kept, -torch.inf), -1) @ v.double()
