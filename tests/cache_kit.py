"""What the tests of the cache share: counted emissions, forked processes, a disk of their own."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from maskdsl.runtime import cache

NEW_NAMESPACE, PRIVATE, READ_ONLY_AGAIN = 0x20000, 0x44000, 0x1021


class Emit:
    """Counts how often it is called, in a file where several processes share it."""

    def __init__(self, text: str = "VALUE = 1\n", log: Path | None = None) -> None:
        self.text, self.calls, self.log = text, 0, log

    def __call__(self) -> str:
        self.calls += 1
        if self.log is not None:
            number = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            os.write(number, b".")
            os.close(number)
        return self.text

    @property
    def everywhere(self) -> int:
        assert self.log is not None
        return self.log.stat().st_size if self.log.exists() else 0


def forget() -> None:
    """As in a process that has just begun."""
    cache._modules.clear()
    cache._warned.clear()


def load(key: str, emit: Callable[[], str]) -> tuple[Any, list[str]]:
    """(the module as a new process has it, the warnings)"""
    forget()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        module = cache.load_source(key, emit)
    return module, [str(w.message) for w in caught]


def start(run: Callable[[], None]) -> int:
    """The id of a forked process that runs this, and exits with 0 where nothing is raised."""
    child = os.fork()
    if child:
        return child
    code = 1
    signal.alarm(60)  # ends one that waits for ever
    try:
        run()
        code = 0
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(code)


def wait(children: Iterable[int]) -> list[int]:
    """Their exit codes; minus the signal that ended one."""
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def apart(run: Callable[[], None]) -> None:
    """Runs this in a process of its own, which must succeed."""
    assert wait([start(run)]) == [0]


def own_disk(path: Path, size: str) -> None:
    """Mounts a small disk that only this process sees; leaves with success where it may not."""
    libc = ctypes.CDLL(None, use_errno=True)
    path.mkdir(exist_ok=True)
    if libc.unshare(NEW_NAMESPACE) or libc.mount(b"none", b"/", None, PRIVATE, None):
        os._exit(77)
    if libc.mount(b"tmpfs", bytes(path), b"tmpfs", 0, f"size={size},mode=700".encode()):
        os._exit(77)


def make_read_only(path: Path) -> None:
    """Mounts the disk at path again, read-only."""
    if ctypes.CDLL(None).mount(b"none", bytes(path), None, READ_ONLY_AGAIN, None):
        os._exit(77)


def apart_with_disk(run: Callable[[], None]) -> None:
    """As `apart`, for what mounts a disk; skips where this user may not."""
    (code,) = wait([start(run)])
    if code == 77:
        pytest.skip("this user may not mount disks")
    assert code == 0


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
