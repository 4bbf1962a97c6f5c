"""MaskDSL: a compiler for attention patterns.

What runs attention needs torch, which takes seconds to import; those names are imported when they
are first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from maskdsl import tables
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
from maskdsl.pattern import Mask, Pattern, load, parse
from maskdsl.planner import Plan, Tile, Vote
from maskdsl.simulator import Prediction, simulate, sweep

if TYPE_CHECKING:
    from maskdsl import natten
    from maskdsl.integrations.flex import to_flex
    from maskdsl.runtime.compile import compile  # noqa: A004
    from maskdsl.runtime.input_tiles import input_tiles
    from maskdsl.runtime.kernel import Kernel
    from maskdsl.runtime.merge import merge
    from maskdsl.runtime.module import MaskAttention

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

_WITH_TORCH = {
    "Kernel": "runtime.kernel",
    "MaskAttention": "runtime.module",
    "compile": "runtime.compile",
    "input_tiles": "runtime.input_tiles",
    "merge": "runtime.merge",
    "to_flex": "integrations.flex",
}


def __getattr__(name: str) -> Any:
    if name == "natten":
        return import_module("maskdsl.natten")
    if name not in _WITH_TORCH:
        raise AttributeError(f"module 'maskdsl' has no attribute {name!r}")
    found = getattr(import_module(f"maskdsl.{_WITH_TORCH[name]}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
