"""Devices as data: one TOML file each, in which every figure names the document it comes from."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from maskdsl.errors import BindError, nearest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

# Every name under which a rate may be asked for, and the rate it means. "fp32" is full precision on
# the vector units, as the emitted kernels compute float32; "tf32" is the tensor cores' shortcut.
DTYPES: Mapping[str, str] = {
    "bf16": "bf16",
    "bfloat16": "bf16",
    "fp16": "fp16",
    "float16": "fp16",
    "half": "fp16",
    "tf32": "tf32",
    "fp32": "fp32",
    "float32": "fp32",
    "float": "fp32",
}
ELEMENT_BYTES: Mapping[str, int] = {"bf16": 2, "fp16": 2, "tf32": 4, "fp32": 4}


@dataclass(frozen=True)
class Device:
    """Rates and sizes of one GPU, without sparsity. `sources` tells where each figure comes from;
    `target` is what kernels for it are compiled for, such as "sm_90".

    A *unit* is a multiprocessor (NVIDIA) or compute unit (AMD). Clocks are in Hz, rates of matrix
    products in FLOP/s for the whole device, rates "per clock" in lanes per clock and unit
    (`issue_lanes_per_clock` bounds instructions of all kinds together), bandwidths in bytes per
    second, sizes in bytes (registers: a count of 32-bit ones), times in seconds.
    """

    name: str
    full_name: str
    target: str
    compute_units: int
    clock: float
    bf16_flops: float
    fp16_flops: float
    tf32_flops: float
    fp32_flops: float
    exponentials_per_clock: float
    integer_ops_per_clock: float
    vector_ops_per_clock: float
    issue_lanes_per_clock: float
    memory_bandwidth: float
    memory_bytes: int
    l2_bytes: int
    last_level_cache_bytes: int
    l2_bandwidth: float
    shared_per_unit: int
    shared_per_block: int
    registers_per_unit: int
    launch_overhead: float
    sources: Mapping[str, str] = field(compare=False, repr=False)

    def matrix_flops(self, dtype: str) -> float:
        """Rate of matrix products in FLOP/s for one of the names that `dtype_name` gives."""
        rates = {
            "bf16": self.bf16_flops,
            "fp16": self.fp16_flops,
            "tf32": self.tf32_flops,
            "fp32": self.fp32_flops,
        }
        return rates[dtype]


_NAMES = ("name", "full_name", "target")
_FIGURES = tuple(f.name for f in fields(Device) if f.name not in (*_NAMES, "sources"))
_WHOLE = tuple(f.name for f in fields(Device) if f.type == "int")


def device_names() -> list[str]:
    """The names of the devices that come with MaskDSL, sorted."""
    folder = resources.files("maskdsl.simulator") / "devices"
    return sorted(
        entry.name[: -len(".toml")] for entry in folder.iterdir() if entry.name.endswith(".toml")
    )


def device_for(target: str) -> Device:
    """The first device, by name, that runs code for a target such as `"sm_90"`.

    Raises `BindError` where none is known.
    """
    known = {}
    for name in reversed(device_names()):
        device = _packaged(name)
        known[device.target] = device
    if target not in known:
        raise BindError(
            f"no device is known for the target '{target}' (known: {', '.join(sorted(known))})"
        )
    return known[target]


def load_device(device: str | os.PathLike[str] | Device) -> Device:
    """A device by its name (`"h200"`, in any case), by the path of a `.toml` file, or itself.

    Raises `BindError` for an unknown name, a file that cannot be read, and a file with a figure
    that is missing, unknown, not a positive number, or without a source.
    """
    if isinstance(device, Device):
        return device
    if not isinstance(device, (str, os.PathLike)):
        raise BindError(f"a device is a name or a .toml file, not {type(device).__name__}")
    text = os.fspath(device)
    if text.endswith(".toml"):
        try:
            return _parse(Path(text).read_text(encoding="utf-8"), text)
        except (OSError, UnicodeDecodeError) as error:
            raise BindError(f"cannot read the device file '{text}': {error}") from error
    return _packaged(text.lower())


def dtype_name(dtype: object) -> str:
    """`"bf16"`, `"fp16"`, `"tf32"` or `"fp32"`, for one of the names of `DTYPES` or a torch dtype.

    Raises `BindError` for any other.
    """
    text = str(dtype).rpartition(".")[2].lower()
    if text not in DTYPES:
        known = ", ".join(ELEMENT_BYTES)
        raise BindError(f"unknown dtype '{dtype}' (known: {known}){nearest(text, DTYPES)}")
    return DTYPES[text]


@cache
def _packaged(name: str) -> Device:
    known = device_names()
    if name not in known:
        raise BindError(
            f"unknown device '{name}' (known: {', '.join(known)}, or the path of a .toml file)"
            f"{nearest(name, known)}"
        )
    file = resources.files("maskdsl.simulator") / "devices" / f"{name}.toml"
    return _parse(file.read_text(encoding="utf-8"), f"{name}.toml")


def _parse(text: str, where: str) -> Device:
    """A device from the text of its file; `where` names the file in errors."""
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise BindError(f"device file '{where}': {error}") from error
    documents = data.pop("sources", {})
    if not isinstance(documents, dict):
        raise BindError(f"device file '{where}': 'sources' must be a table of documents")
    for key in data:
        if key not in (*_NAMES, *_FIGURES):
            close = nearest(key, (*_NAMES, *_FIGURES, "sources"))
            raise BindError(f"device file '{where}': unknown key '{key}'{close}")
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for key in _NAMES:
        if not isinstance(data.get(key), str) or not data[key]:
            raise BindError(f"device file '{where}': '{key}' must be a text")
        values[key] = data[key]
    for key in _FIGURES:
        values[key], sources[key] = _figure(key, data.get(key), documents, where)
    return Device(**values, sources=sources)


def _figure(
    key: str, entry: object, documents: dict[str, Any], where: str
) -> tuple[int | float, str]:
    """The value and the source's text of `key = { value = 132, source = "whitepaper" }`."""
    if not isinstance(entry, dict) or set(entry) != {"value", "source"}:
        raise BindError(
            f"device file '{where}': expected {key} = {{ value = ..., source = \"...\" }}"
        )
    value, source = entry["value"], entry["source"]
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise BindError(f"device file '{where}': '{key}' must be a number")
    if not (value > 0 and math.isfinite(value)):
        raise BindError(f"device file '{where}': '{key}' must be positive and finite")
    if key in _WHOLE and not isinstance(value, int):
        raise BindError(f"device file '{where}': '{key}' must be a whole number")
    if not isinstance(source, str) or not isinstance(documents.get(source), str):
        raise BindError(f"device file '{where}': '{key}' names a source that [sources] lacks")
    return (value if key in _WHOLE else float(value)), documents[source]
