"""`maskdsl calibrate`: the rates of the GPU at hand, measured, as a device file."""

from __future__ import annotations

import datetime
import os
import re
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import torch

from maskdsl.errors import BindError
from maskdsl.simulator import Device, load_device
from maskdsl.simulator.calibration import device_text


def calibrate(
    path: str | os.PathLike[str],
    name: str | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> Device:
    """Measure the NVIDIA GPU at hand, write a device file, and give the device it describes.

    path: of a `.toml` file, for `simulate(device=path)`. name: of the device, by default the
    GPU's. report: is given a line for each figure. Takes some seconds; nothing else should run on
    the GPU. Raises BindError where there is no such GPU, no Triton, or the times are no measure.
    """
    target = Path(path)
    if target.suffix != ".toml":
        raise BindError(f"a device file ends in .toml, not '{target.name}'")
    if not torch.cuda.is_available():
        raise BindError("calibrate measures a GPU, and there is none here")
    if torch.version.hip:
        raise BindError(
            "calibrate measures NVIDIA GPUs: write a device file for an AMD one by hand"
        )
    if find_spec("triton") is None:
        raise BindError("calibrate needs triton: pip install triton")
    from maskdsl.runtime.probes import Probes

    probes = Probes()
    full_name = probes.facts().full_name
    slug = re.sub(r"[^a-z0-9]+", "-", full_name.lower()).strip("-")
    text = device_text(probes, name or slug, datetime.date.today().isoformat(), report)
    try:
        target.write_text(text, encoding="utf-8")
    except OSError as error:
        raise BindError(f"cannot write the device file '{target}': {error}") from error
    return load_device(target)
