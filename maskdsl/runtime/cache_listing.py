"""What stands behind `maskdsl cache ls | verify | clear`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from maskdsl.errors import CacheError
from maskdsl.runtime.cache_entries import cache_directory, fetch, last_use, remove, scan
from maskdsl.runtime.cache_folder import Folder, cause, opened

KINDS = {"py": "kernel", "json": "setting"}


@dataclass(frozen=True)
class Entry:
    """One entry. key: what it is kept under. kind: "kernel" or "setting". bytes: on disk, its mark
    included. used: when it last was, in seconds since 1970. fault: why it does not count, where
    that was looked for and found.
    """

    key: str
    kind: str
    bytes: int
    used: float
    fault: str | None = None


@dataclass(frozen=True)
class Cleared:
    """What `clear` did. keys, bytes: removed. kept: keys that could not be removed, such as those
    being written.
    """

    keys: int
    bytes: int
    kept: int


def entries() -> list[Entry]:
    """What the cache holds, the most recently used first; contents are not read. Raises CacheError
    where the directory cannot be used; one that does not exist holds nothing.
    """
    return _listed(check=False)


def verify() -> list[Entry]:
    """As `entries`, each read and held against its mark, as it would be before it is executed."""
    return _listed(check=True)


def clear() -> Cleared:
    """Removes all entries of this version of the cache, and what killed processes left; files that
    are not of the cache stay. Raises CacheError where the directory cannot be used.
    """
    keys = size = kept = 0
    with _folder() as folder:
        for key, files in (scan(folder) if folder else {}).items():
            assert folder is not None
            if remove(folder, key, files):
                keys, size = keys + 1, size + sum(f.bytes for f in files)
            else:
                kept += 1
    return Cleared(keys, size, kept)


@contextmanager
def _folder() -> Iterator[Folder | None]:
    """The cache's directory; None where it does not exist. Raises CacheError."""
    path = cache_directory()
    try:
        with opened(path, make=False) as folder:
            yield folder
    except FileNotFoundError:
        yield None
    except OSError as error:
        raise CacheError(f"the kernel cache {path} cannot be used: {cause(error)}") from None


def _listed(check: bool) -> list[Entry]:
    found = []
    with _folder() as folder:
        for key, files in (scan(folder) if folder else {}).items():
            assert folder is not None
            for kind in sorted({f.kind for f in files if f.part == "content"}):
                own = [f for f in files if f.kind == kind and f.part != "rest"]
                fault = _fault(folder, f"{key}.{kind}") if check else None
                size = sum(f.bytes for f in own)
                found.append(Entry(key, KINDS[kind], size, last_use(own), fault))
    return sorted(found, key=lambda e: (-e.used, e.key))


def _fault(folder: Folder, name: str) -> str | None:
    """Why an entry does not count."""
    try:
        return "is unfinished" if fetch(folder, name) is None else None
    except OSError as error:
        return cause(error)
