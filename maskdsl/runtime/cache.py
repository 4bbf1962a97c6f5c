"""Emitted sources on disk: written once per key, verified before they are executed.

An entry is `KEY.py` and `KEY.sha256`, the digest of the source, which is written last: without it,
or where it does not match, the entry does not count. Entries that other users own or could have
written do not count either. What cannot be
cached is emitted into a private temporary directory, with a warning: never a wrong kernel.
"""

from __future__ import annotations

import atexit
import hashlib
import linecache
import os
import shutil
import stat
import tempfile
import threading
import types
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path

import filelock
import platformdirs

from maskdsl.errors import CacheError

SCHEMA = "v1"
LOCK_SECONDS = 60.0

_modules: dict[tuple[Path, str], types.ModuleType] = {}
_locks: dict[tuple[Path, str], threading.Lock] = {}
_guard = threading.Lock()


def cache_directory() -> Path:
    """Where sources are kept: MASKDSL_CACHE_DIR, or the user's cache directory."""
    given = os.environ.get("MASKDSL_CACHE_DIR")
    base = Path(given) if given else Path(platformdirs.user_cache_dir("maskdsl", appauthor=False))
    return base.expanduser().absolute() / SCHEMA


def load_source(key: str, emit: Callable[[], str]) -> types.ModuleType:
    """The module of a key, executed once per process; `emit` writes its source where the cache has
    none.

    key: a file name without its suffix, covering all that the source depends on. Never raises for
    the state of the cache.
    """
    directory = cache_directory()
    with _guard:
        lock = _locks.setdefault((directory, key), threading.Lock())
    with lock:
        found = _modules.get((directory, key))
        if found is None:
            path, source = _obtain(directory, key, emit)
            found = _modules[directory, key] = _execute(key, path, source)
        return found


def recall(key: str) -> str | None:
    """The text that was remembered under a key, where it is whole, unchanged and ours; never
    raises.
    """
    try:
        return _read(cache_directory() / f"{key}.json")
    except (OSError, UnicodeError):
        return None


def remember(key: str, text: str) -> None:
    """Keeps a text under a key; warns where the cache cannot be written."""
    directory = cache_directory()
    try:
        _prepare(directory)
        with filelock.FileLock(directory / f"{key}.lock", timeout=LOCK_SECONDS, mode=0o600):
            _write(directory / f"{key}.json", text)
    except (OSError, filelock.Timeout) as error:
        warnings.warn(f"the kernel cache is not used: {error}", stacklevel=3)


def _obtain(directory: Path, key: str, emit: Callable[[], str]) -> tuple[Path, str]:
    """(file, verified source) from the cache, or emitted into it, or beside it."""
    path = directory / f"{key}.py"
    source = None
    try:
        _prepare(directory)
        source = _read(path)
        if source is not None:
            return path, source
        with filelock.FileLock(directory / f"{key}.lock", timeout=LOCK_SECONDS, mode=0o600):
            source = _read(path)
            if source is None:
                source = emit()
                _write(path, source)
        return path, source
    except (OSError, filelock.Timeout) as error:
        warnings.warn(f"the kernel cache is not used: {error}", stacklevel=3)
    path = _private_directory() / f"{key}.py"
    source = emit() if source is None else source
    path.write_text(source, encoding="utf-8")
    return path, source


def _prepare(directory: Path) -> None:
    """Raises OSError where the directory cannot be made, CacheError where it is not ours alone."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not _ours(directory.stat()):
        raise CacheError(f"{directory} belongs to another user, or others may write to it")


def _ours(status: os.stat_result) -> bool:
    return status.st_uid == os.getuid() and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _read(path: Path) -> str | None:
    """The source of an entry that is whole, unchanged and ours; None for any other, with a warning
    where it is damaged.
    """
    marker = path.with_suffix(".sha256")
    try:
        trusted = all(stat.S_ISREG(s.st_mode) and _ours(s) for s in (path.lstat(), marker.lstat()))
        content, digest = path.read_bytes(), marker.read_bytes()
    except FileNotFoundError:
        return None
    if not trusted:
        warnings.warn(f"{path} could have been written by others: it does not count", stacklevel=4)
    elif digest != hashlib.sha256(content).hexdigest().encode():
        warnings.warn(f"{path} is damaged: it does not count", stacklevel=4)
    else:
        return content.decode("utf-8")
    return None


def _write(path: Path, source: str) -> None:
    """The source first, its digest last, each whole or not at all."""
    content = source.encode("utf-8")
    _replace(path, content)
    _replace(path.with_suffix(".sha256"), hashlib.sha256(content).hexdigest().encode())


def _replace(path: Path, content: bytes) -> None:
    number, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:100]}.")
    try:
        with os.fdopen(number, "wb") as file:
            file.write(content)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


@cache
def _private_directory() -> Path:
    directory = Path(tempfile.mkdtemp(prefix="maskdsl-"))
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    return directory


def _execute(key: str, path: Path, source: str) -> types.ModuleType:
    """Runs the verified text itself; whoever asks for the file's lines is given the same text."""
    module = types.ModuleType(f"maskdsl_kernel_{hashlib.sha256(key.encode()).hexdigest()[:16]}")
    module.__file__ = str(path)
    linecache.cache[str(path)] = (len(source), None, source.splitlines(keepends=True), str(path))
    exec(compile(source, str(path), "exec"), module.__dict__)
    return module
