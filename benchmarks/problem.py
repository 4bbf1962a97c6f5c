"""What is measured: a workload's tensors, and the contenders that compute attention on them."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

import maskdsl
from benchmarks.suite import Workload
from benchmarks.suite.flex_masks import FlexUse, flex_use

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]

COUNTED_ROWS = 2**24  # pairs evaluated at once where they are counted


class UnavailableError(Exception):
    """A contender that does not exist here; the message says why."""


@dataclass(frozen=True)
class Problem:
    """q: (batch, heads, queries, head_dim); k, v: (batch, kv_heads, keys, head_dim), normal random
    numbers. arrays, inputs: the mask's inputs as numpy arrays, and as tensors on the device. memo:
    what contenders share.
    """

    workload: Workload
    mask: maskdsl.Mask
    q: Tensor
    k: Tensor
    v: Tensor
    arrays: dict[str, np.ndarray]
    inputs: dict[str, Any]
    device: torch.device
    memo: dict[Any, Any] = field(default_factory=dict)

    @staticmethod
    def of(workload: Workload, device: torch.device) -> Problem:
        """Raises MaskError where the mask cannot be bound."""
        mask = workload.mask()
        heads, queries, keys = mask.shape
        generator = torch.Generator(device).manual_seed(0)
        dtype = getattr(torch, workload.dtype)

        def random(heads: int, tokens: int) -> Tensor:
            shape = workload.batch, heads, tokens, workload.head_dim
            return torch.randn(shape, generator=generator, dtype=dtype, device=device)

        q = random(heads, workload.queries or queries)
        k, v = random(workload.groups, keys), random(workload.groups, keys)
        arrays = workload.arrays()
        inputs = {name: torch.from_numpy(x).to(device) for name, x in arrays.items()}
        return Problem(workload, mask, q, k, v, arrays, inputs, device)

    @property
    def shape(self) -> dict[str, Any]:
        w = self.workload
        return {
            "batch": w.batch,
            "heads": w.heads,
            "kv_heads": w.groups,
            "queries": self.q.shape[2],
            "keys": self.k.shape[2],
            "head_dim": w.head_dim,
            "dtype": w.dtype,
        }

    @property
    def grouped(self) -> bool:
        return self.workload.groups != self.workload.heads

    def kernel(self, template: str = "plain") -> maskdsl.Kernel:
        """Ours, compiled when first asked for. Raises MaskError."""
        if template not in self.memo:
            w = self.workload
            start = time.perf_counter()
            kernel = maskdsl.compile(
                self.mask, w.head_dim, self.q.dtype, template=template, **w.tiles
            )
            self.memo[template] = kernel, time.perf_counter() - start
        kernel, _ = self.memo[template]
        return kernel  # type: ignore[no-any-return]

    def flex(self) -> FlexUse | None:
        first = self.k.shape[2] - self.q.shape[2]
        return flex_use(self.workload, self.inputs, self.device, first)

    def pairs(self) -> int:
        """Kept pairs over batch and heads: the plan's, or, where inputs decide or there are fewer
        queries than keys, counted by the mask written by hand.
        """
        if self.workload.queries is None and not self.arrays:
            return self.mask.pairs * self.workload.batch
        use, (batch, heads, queries), keys = self.flex(), self.q.shape[:3], self.k.shape[2]
        if use is None:
            return batch * heads * queries * keys
        step = max(1, COUNTED_ROWS // keys)
        at = torch.arange(keys, device=self.device)
        count = 0
        batches, counted_heads = batch if use.per_batch else 1, heads if use.per_head else 1
        for b in range(batches):
            for h in range(counted_heads):
                for low in range(0, queries, step):
                    rows = torch.arange(low, min(low + step, queries), device=self.device)
                    place = torch.tensor(b, device=self.device), torch.tensor(h, device=self.device)
                    count += int(use.mask_mod(*place, rows[:, None], at).sum())
        return count * (batch // batches) * (heads // counted_heads)


@dataclass(frozen=True)
class Contender:
    """Something that computes attention.

    name: "ours" (the plain template), "overlap" (ours by the other one), "sdpa_cudnn", or
    "flex/default" where a peer has several options. masked: whether it solves the workload's
    problem, or the dense one. build: gives the function to be timed, and writes what is to be
    recorded besides into the dict; raises UnavailableError or MaskError.
    """

    name: str
    masked: bool
    build: Callable[[Problem, dict[str, Any]], Attention]

    @property
    def peer(self) -> str:
        return self.name.split("/")[0]


def ours(problem: Problem, facts: dict[str, Any], template: str = "plain") -> Attention:
    """The kernel that `maskdsl.compile` gives."""
    if template != "plain" and problem.device.type != "cuda":
        raise UnavailableError("needs a GPU")
    kernel = problem.kernel(template)
    facts |= {"backend": kernel.backend, "compile_s": problem.memo[template][1]}
    if kernel.backend == "triton":
        facts["key"] = kernel.key

    def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = kernel(q, k, v, **problem.inputs)
        assert isinstance(out, Tensor)
        return out

    return attention
