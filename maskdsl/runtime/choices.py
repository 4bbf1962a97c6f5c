"""What `compile` was asked for."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from maskdsl.planner import TilesLike


@dataclass(frozen=True)
class Choices:
    """What `compile` was asked for besides the mask. backend: "triton", "torch" or "reference";
    target: what triton compiles for, such as "sm_90". anywhere: whether the torch backend
    takes tensors that lie on no GPU.
    """

    head_dim: int
    value_dim: int
    dtype: torch.dtype
    backend: str
    target: str
    scale: float
    layout: str  # "bhnd" or "bnhd"
    q_tile: TilesLike | None
    kv_tile: TilesLike | None
    tune: bool
    template: str
    precision: str
    anywhere: bool = False
