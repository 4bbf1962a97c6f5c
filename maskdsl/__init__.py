"""MaskDSL: a compiler for attention patterns."""

from maskdsl import natten, tables
from maskdsl.errors import (
    BindError,
    CacheError,
    CheckError,
    CompileError,
    EvalError,
    MaskError,
    ParseError,
    PlanError,
)
from maskdsl.integrations.flex import to_flex
from maskdsl.pattern import Mask, Pattern, load, parse
from maskdsl.planner import Plan, Tile, Vote
from maskdsl.runtime.compile import compile  # noqa: A004
from maskdsl.runtime.input_tiles import input_tiles
from maskdsl.runtime.kernel import Kernel
from maskdsl.runtime.merge import merge
from maskdsl.runtime.module import MaskAttention
from maskdsl.simulator import Prediction, simulate, sweep

__version__ = "0.1.0"

__all__ = [
    "BindError",
    "CacheError",
    "CheckError",
    "CompileError",
    "EvalError",
    "Kernel",
    "Mask",
    "MaskAttention",
    "MaskError",
    "ParseError",
    "Pattern",
    "Plan",
    "PlanError",
    "Prediction",
    "Tile",
    "Vote",
    "compile",
    "input_tiles",
    "load",
    "merge",
    "natten",
    "parse",
    "simulate",
    "sweep",
    "tables",
    "to_flex",
]
