"""Time and memory of one function in a process of its own, and the machine they were taken on."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

STATUS = Path("/proc/self/status")
ENOUGH_S = 0.5  # of repetitions
REPETITIONS = 5
ONCE_S = 30.0  # what takes longer is not repeated


def machine() -> dict[str, Any]:
    """Processor, cores of this process, bytes of memory, system."""
    return {
        "processor": _field(Path("/proc/cpuinfo"), "model name") or platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": platform.platform(),
    }


def versions(*packages: str) -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in packages:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "a checkout" if importlib.util.find_spec(name) else "absent"
    return found


def free_bytes() -> int:
    """Memory that can be had without swapping."""
    return _kilobytes(Path("/proc/meminfo"), "MemAvailable")


def timed(run: Callable[[], object]) -> dict[str, float]:
    """Seconds of the first call and of the fastest later one, and the peak of resident bytes above
    what was resident before, during the first call and during the later ones.
    """
    before = _kilobytes(STATUS, "VmRSS")
    _forget_peak()
    first = _seconds(run)
    peak = _kilobytes(STATUS, "VmHWM") - before
    found = {"first_s": first, "first_bytes": max(peak, 0), "steady_s": first}
    later: list[float] = []
    _forget_peak()
    while first < ONCE_S and len(later) < REPETITIONS and sum(later) < ENOUGH_S:
        later.append(_seconds(run))
    steady = _kilobytes(STATUS, "VmHWM") - before if later else peak
    return found | {"steady_s": min(later or [first]), "steady_bytes": max(steady, 0)}


def in_a_fresh_process(
    module: str, arguments: Sequence[str], limit_s: float, environment: Mapping[str, str]
) -> dict[str, Any]:
    """What `python -m module arguments` prints as JSON in its last line; {"skipped": why} where it
    fails or runs past the limit.
    """
    command = [sys.executable, "-m", module, *arguments]
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=limit_s,
            env={**os.environ, **environment},
        )
    except subprocess.TimeoutExpired:
        return {"skipped": f"ran past {limit_s:.0f} s"}
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        why = "was killed, probably for memory" if done.returncode == -9 else last
        return {"skipped": why[:200]}
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def _seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _forget_peak() -> None:
    """Linux starts VmHWM anew at what is resident now."""
    Path("/proc/self/clear_refs").write_text("5")


def _kilobytes(path: Path, name: str) -> int:
    return int((_field(path, name) or "0").split()[0]) * 1024


def _field(path: Path, name: str) -> str:
    lines = path.read_text().splitlines()
    return next((x.split(":", 1)[1].strip() for x in lines if x.startswith(name)), "")
