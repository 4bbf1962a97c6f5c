"""Workloads read from `workloads.toml`."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import maskdsl
from benchmarks.suite.inputs import make_input

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FILE = Path(__file__).parent / "workloads.toml"
TINY = {"heads": 2, "head_dim": 16, "dtype": "float32"}  # of every workload scaled down


@dataclass(frozen=True)
class Workload:
    """One attention problem.

    pattern: a library entry, or the text itself; entry: which pattern of it. bind: extents and
    parameters; those in per_head are given for one head and are the same for all. inputs: how each
    is made. dtype: a torch dtype's name. queries: fewer than keys (decoding), where given. tiles:
    `q_tile` and `kv_tile`, where the search's choice is not wanted. flex: its mask in `flex_masks`,
    none where every pair is kept. natten: whether NATTEN has it. sdpa_causal: whether `is_causal`
    says it all. tiny: fields to replace for checks without a GPU.
    """

    name: str
    title: str
    pattern: str
    bind: Mapping[str, Any]
    heads: int
    entry: str | None = None
    kv_heads: int | None = None
    batch: int = 1
    head_dim: int = 128
    dtype: str = "bfloat16"
    queries: int | None = None
    per_head: tuple[str, ...] = ()
    inputs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    tiles: Mapping[str, Any] = field(default_factory=dict)
    flex: str | None = None
    natten: bool = False
    sdpa_causal: bool = False
    tiny: Mapping[str, Any] = field(default_factory=dict)

    def mask(self) -> maskdsl.Mask:
        """The bound mask. Raises MaskError."""
        is_text = "pattern " in self.pattern
        read = maskdsl.parse if is_text else maskdsl.load
        repeated = {name: [self.bind[name]] * self.heads for name in self.per_head}
        return read(self.pattern, name=self.entry).bind(
            **{**self.bind, **repeated}, heads=self.heads, kv_heads=self.groups
        )

    def arrays(self) -> dict[str, Any]:
        """The inputs, numpy arrays by name."""
        return {name: make_input(self, **how) for name, how in self.inputs.items()}

    def scaled_down(self) -> Workload:
        changes = dict(self.tiny)
        bind = {**self.bind, **changes.pop("bind", {})}
        return replace(self, **{**TINY, **changes, "bind": bind})

    @property
    def groups(self) -> int:
        """Heads of keys and values."""
        return self.kv_heads or self.heads


def load_workloads(path: Path = FILE) -> dict[str, Workload]:
    """Workloads by name, in the file's order. Raises ValueError for a field or name that does not
    fit.
    """
    known = {f.name for f in fields(Workload)}
    found: dict[str, Workload] = {}
    for entry in tomllib.loads(path.read_text())["workload"]:
        unknown = {*entry, *entry.get("tiny", {})} - known
        if unknown:
            raise ValueError(f"{path.name}: {entry.get('name')} has no {', '.join(unknown)}")
        if entry["name"] in found:
            raise ValueError(f"{path.name}: there are two workloads '{entry['name']}'")
        entry["per_head"] = tuple(entry.get("per_head", ()))
        found[entry["name"]] = Workload(**entry)
    return found
