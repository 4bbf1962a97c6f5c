"""The compiled part of the torch backend: `native/strips.cpp`, built once for a machine, a type of
numbers and the scores in it by the C++ compiler it has, kept in the cache, loaded from memory.

MASKDSL_CXX names the compiler; where it is empty, or there is none, the backend does without.
"""

from __future__ import annotations

import base64
import ctypes
import hashlib
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
import warnings
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import torch

from maskdsl.runtime.cache import load_source

FOLDER = Path(__file__).parent / "native"
TYPES = {torch.float32: "float", torch.bfloat16: "BFloat16", torch.float16: "_Float16"}
OPTIONS = ("-std=c++17", "-O2", "-fno-math-errno", "-shared", "-fPIC")
SECONDS = 120.0  # that a compiler may take
COMPILERS = ("c++", "g++", "clang++")

_libraries: dict[tuple[str, str, str, bool], ctypes.CDLL | None] = {}
_building = threading.Lock()


def library(dtype: torch.dtype, score: str = "", backward: bool = False) -> ctypes.CDLL | None:
    """`maskdsl_run`, forward or backward, for tensors of a type, or None where this machine or type
    has none. score: what stands for `native/score.h`, where anything does. Warns once where there
    is a compiler and it fails.
    """
    type_, command = TYPES.get(dtype), compiler()
    if type_ is None or command is None or (backward and library(dtype, score) is None):
        return None
    key = type_, shlex.join(command), score, backward
    with _building:
        if key not in _libraries:
            _libraries[key] = _load(dtype, command, score, backward)
        return _libraries[key]


def prepare(dtype: torch.dtype, score: str = "") -> None:
    """Begin to build what `library` gives forward, beside what else precedes a first call."""
    built = list(_libraries)
    if not any((type_, text) == (TYPES.get(dtype), score) for type_, _, text, _ in built):
        threading.Thread(target=library, args=(dtype, score), name="maskdsl-build").start()


def compiler() -> list[str] | None:
    """The command that compiles C++, None where there is none."""
    given = os.environ.get("MASKDSL_CXX")
    if given is not None:
        try:
            return shlex.split(given) or None
        except ValueError:
            return [given]  # a quote is left open: no such command, as a warning says
    if sys.platform not in ("linux", "darwin"):
        return None
    return _found()


@cache
def _found() -> list[str] | None:
    path = next(filter(None, map(shutil.which, COMPILERS)), None)
    return None if path is None else [path]


def source(score: str = "") -> str:
    """All that is compiled, in one text."""
    return included((FOLDER / "strips.cpp").read_text(), {"score.h": score} if score else {})


def included(text: str, given: Mapping[str, str]) -> str:
    """With all headers in their places: those given, and our own."""

    def header(m: re.Match[str]) -> str:
        return included(given.get(m[1]) or (FOLDER / m[1]).read_text(), given)

    return re.sub(r'#include "(\w+\.h)"\n', header, text)


def _load(dtype: torch.dtype, command: list[str], score: str, backward: bool) -> ctypes.CDLL | None:
    own = "-mcpu=native" if platform.machine() in ("arm64", "aarch64") else "-march=native"
    options = [*OPTIONS, own, f"-DTYPE={TYPES[dtype]}", f"-DBACKWARD={int(backward)}"]
    text = source(score)
    covered = "\0".join([text, *command, *options, _machine()])
    digest = hashlib.sha256(os.fsencode(covered)).hexdigest()[:24]
    name = f"native-{str(dtype).removeprefix('torch.')}{'-backward' * backward}"
    try:
        kept = load_source(f"{name}-{digest}", lambda: _built(text, [*command, *options]))
        return _opened(base64.b64decode(kept.LIBRARY))
    except (OSError, subprocess.SubprocessError, _BuildError) as error:
        late = isinstance(error, subprocess.TimeoutExpired)
        what = f"not done after {SECONDS:g} s" if late else str(error)[:300]
        where = shlex.join(command)
        warnings.warn(
            f"the torch backend does without its compiled part: {where}: {what} "
            "(MASKDSL_CXX names another compiler, or none where it is empty)",
            stacklevel=2,
        )
        return None


class _BuildError(Exception):
    """What a compiler says."""


def _built(text: str, command: list[str]) -> str:
    """A module that holds the compiled library."""
    with tempfile.TemporaryDirectory(prefix="maskdsl-") as folder:
        file = Path(folder) / "strips.so"
        done = subprocess.run(
            [*command, "-x", "c++", "-", "-o", str(file)],
            input=text, capture_output=True, encoding="utf-8", errors="replace", timeout=SECONDS,
            cwd=folder, check=False,
        )  # fmt: skip
        if done.returncode or not file.exists():
            lines = [x for x in done.stderr.splitlines() if "error" in x] or [f"{done.returncode}"]
            raise _BuildError(lines[0])
        image = base64.b64encode(file.read_bytes()).decode()
    return f'"""{FOLDER.name}/strips.cpp of the torch backend."""\n\nLIBRARY = "{image}"\n'


def _opened(image: bytes) -> ctypes.CDLL:
    """The library that these bytes are, which nobody else can change before it is loaded."""
    if hasattr(os, "memfd_create"):
        with suppress(OSError):  # a machine that has or runs no such files
            # It stays open: libraries are told apart by their names, and this is one.
            number = os.memfd_create("maskdsl", os.MFD_CLOEXEC)
            with os.fdopen(os.dup(number), "wb") as file:
                file.write(image)
            return _declared(ctypes.CDLL(f"/proc/self/fd/{number}"))
    with tempfile.TemporaryDirectory(prefix="maskdsl-") as folder:
        file_name = Path(folder) / "strips.so"
        file_name.write_bytes(image)
        return _declared(ctypes.CDLL(str(file_name)))


def _declared(found: ctypes.CDLL) -> ctypes.CDLL:
    for name, numbers in (("run", 3), ("end", 0)):
        function: Any = getattr(found, f"maskdsl_{name}", None)
        if function is None:
            raise _BuildError(f"what it makes has no maskdsl_{name}")
        function.argtypes = [ctypes.c_void_p, *[ctypes.c_int64] * numbers]
        function.restype = ctypes.c_int if numbers else None
    return found


@cache
def _machine() -> str:
    """What decides whether another machine may run the same instructions, with its C library."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        told = {x for x in lines if x.startswith(("flags", "Features", "model name", "CPU part"))}
    except OSError:
        told = {platform.processor()}
    return "\n".join([platform.machine(), sys.platform, *platform.libc_ver(), *sorted(told)])


def _fork() -> None:
    """A lock that a thread of the parent held is nobody's in a forked process."""
    global _building
    _building = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_fork)
