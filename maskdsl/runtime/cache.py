"""Emitted sources and measured settings on disk: written once per key, verified before use.

A cache that is damaged, of another version, full, not writable, or that others could have written
costs a second emission and one warning; it never gives a wrong or foreign kernel. What runs is the
text that was verified, kept in memory: what happens to the file afterwards, its eviction included,
does not matter. What triton compiles from it lies in triton's own cache (TRITON_CACHE_DIR), about
which nothing is known or promised here.
"""

from __future__ import annotations

import hashlib
import linecache
import os
import threading
import types
import warnings
from collections.abc import Callable
from contextlib import ExitStack

from maskdsl.errors import CacheError
from maskdsl.runtime.cache_entries import (
    BLOCK,
    DEFAULT_LIMIT,
    MARK,
    cache_directory,
    cache_limit,
    evict,
    fetch,
    file_key,
    store,
)
from maskdsl.runtime.cache_folder import Folder, cause, opened

LOCK_SECONDS = 60.0

_modules: dict[tuple[str, str], types.ModuleType] = {}  # by directory and key
_turns: dict[tuple[str, str], threading.Lock] = {}
_guard = threading.Lock()
_warned: set[str] = set()
_free: dict[tuple[str, int], int] = {}  # by directory and limit: bytes to write before it is read


def load_source(key: str, emit: Callable[[], str]) -> types.ModuleType:
    """The module of a key, executed once per process; `emit` gives its source where the cache has
    none, once for all threads and processes that ask at the same time.

    key: covers all that the source depends on. Raises what `emit` and the source raise, and nothing
    for the state of the cache: that is one warning, with place and cause.
    """
    place = _place()
    with _guard:
        turn = _turns.setdefault((place, key), threading.Lock())
    with turn:
        found = _modules.get((place, key))
        if found is None:
            source, file, troubles = _obtain(key, emit)
            found = _modules[place, key] = _execute(key, file, source)
            _warn(troubles)
        return found


def recall(key: str) -> str | None:
    """The text remembered under a key, where it is whole, unchanged and ours; else None. Raises
    nothing for the state of the cache; one warning where there is something that does not count.
    """
    own, troubles = file_key(key), list[str]()
    text = None
    try:
        with opened(cache_directory(), make=False) as folder:
            text, fault = _look(folder, f"{own}.json")
            if fault is not None:
                with folder.lock(own, LOCK_SECONDS):  # whoever writes it now is done then
                    text, fault = _look(folder, f"{own}.json")
            if fault is not None:
                troubles.append(fault)
    except FileNotFoundError:
        return None
    except OSError as error:
        troubles += _unused(error)
    _warn(troubles)
    return text


def remember(key: str, text: str) -> None:
    """Keeps a text under a key, in place of what was there. Raises nothing for the state of the
    cache; one warning where it cannot be written.
    """
    own = file_key(key)
    try:
        with opened(cache_directory()) as folder, folder.lock(own, LOCK_SECONDS):
            store(folder, f"{own}.json", text)
            _warn(_make_room(folder, own, len(text)))
    except OSError as error:
        _warn(_unused(error))


def _obtain(key: str, emit: Callable[[], str]) -> tuple[str, str, list[str]]:
    """(source, what to call its file, what is wrong with the cache)"""
    own, troubles = file_key(key), list[str]()
    name = f"{own}.py"
    with ExitStack() as stack:
        folder = source = None
        try:
            folder = stack.enter_context(opened(cache_directory()))
            source, _ = _look(folder, name)
            if source is None:
                stack.enter_context(folder.lock(own, LOCK_SECONDS))
                source, fault = _look(folder, name)
                troubles += [] if fault is None else [fault]
        except OSError as error:
            folder = None
            troubles += _unused(error)
        if source is None:
            source = emit()
            if folder is None:
                return source, f"<maskdsl {own}>", troubles
            try:
                store(folder, name, source)
                troubles += _make_room(folder, own, len(source))
            except OSError as error:
                troubles += _unused(error)
                return source, f"<maskdsl {own}>", troubles
        assert folder is not None
        return source, str(folder.path / name), troubles


def _look(folder: Folder, name: str) -> tuple[str | None, str | None]:
    """(text, None), (None, why the entry does not count), or (None, None) where there is none."""
    try:
        text = fetch(folder, name)
    except OSError as error:
        return None, f"{folder.path / name} {cause(error)}: it does not count, and is made anew"
    if text is not None:
        folder.touch(name + MARK)
    return text, None


def _make_room(folder: Folder, own: str, written: int) -> list[str]:
    """Evicts other keys where the cache may be over its limit after so many bytes; what is wrong
    with that limit. Raises OSError.

    A large directory is not read at each write: where it had room, this process may first write a
    share of the limit that leaves as much to others.
    """
    try:
        limit, troubles = cache_limit(), list[str]()
    except CacheError as error:
        limit, troubles = DEFAULT_LIMIT, _once(f"{error}: {DEFAULT_LIMIT >> 20}M is taken")
    place = str(folder.path), limit
    left = _free.get(place, 0) - written - 2 * BLOCK
    _free[place] = left if left >= 0 else min(evict(folder, limit, own), limit // 64)
    return troubles


def _place() -> str:
    try:
        return str(cache_directory())
    except CacheError:
        return ""


def _unused(error: OSError) -> list[str]:
    where = _place()
    return _once(f"the kernel cache is not used: {where}{': ' if where else ''}{cause(error)}")


def _once(trouble: str) -> list[str]:
    """It, where this process has not said it before: not for each kernel."""
    with _guard:
        known = trouble in _warned
        _warned.add(trouble)
    return [] if known else [trouble]


def _warn(troubles: list[str]) -> None:
    if troubles:
        warnings.warn("; ".join(troubles), stacklevel=4)


def _execute(key: str, file: str, source: str) -> types.ModuleType:
    """Runs the verified text itself; whoever asks for the file's lines is given the same text."""
    module = types.ModuleType(f"maskdsl_kernel_{hashlib.sha256(key.encode()).hexdigest()[:16]}")
    module.__file__ = file
    linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
    exec(compile(source, file, "exec"), module.__dict__)
    return module


def _fork() -> None:
    """Locks that threads of the parent held are nobody's in a forked process."""
    global _guard
    _guard = threading.Lock()
    _turns.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_fork)
