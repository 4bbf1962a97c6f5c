"""What the cache holds: entries that are verified when they are read, the least recently used of
which make room for others.

An entry is `KEY.py` (an emitted source) or `KEY.json` (a measured setting), and a mark of the same
name and `.ok`, written last: the layout's version and a digest of name and content. Without the
mark, or where it does not match, an entry does not count.
"""

from __future__ import annotations

import hashlib
import os
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from maskdsl.errors import CacheError
from maskdsl.runtime.cache_folder import Folder

SCHEMA = "v2"
MARK = ".ok"
DEFAULT_LIMIT = 256 * 2**20
MOST = 64 * 2**20  # bytes of an entry
BLOCK = 4096  # what a file takes on disk is a whole number of these
LONGEST_KEY = 180  # the longest name that is made of it stays below 255

_PLAIN = re.compile(rf"[A-Za-z0-9_][A-Za-z0-9_.+-]{{0,{LONGEST_KEY - 1}}}")
_FILE = re.compile(r"(?P<key>\w.*?)(?:\.(?P<kind>py|json)(?P<mark>\.ok)?|\.lock)")
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


class DamagedError(CacheError):
    """An entry that is not what was written."""


def cache_directory() -> Path:
    """Where entries are kept: in MASKDSL_CACHE_DIR as it is now (relative to the working directory;
    ~ is a home), or in the user's cache directory. Raises CacheError where there is no such place.
    """
    given = os.environ.get("MASKDSL_CACHE_DIR")
    base = Path(given) if given else Path(platformdirs.user_cache_dir("maskdsl", appauthor=False))
    try:
        return base.expanduser().absolute() / SCHEMA
    except (RuntimeError, OSError) as error:
        raise CacheError(f"there is no directory {base}: {error}") from None


def cache_limit() -> int:
    """Bytes that the cache may take: MASKDSL_CACHE_LIMIT (`64M`, `2G`, or a number of bytes) as it
    is now, 256 MiB where it is not set. Raises CacheError where it is no size.
    """
    given = os.environ.get("MASKDSL_CACHE_LIMIT", "").strip()
    if not given:
        return DEFAULT_LIMIT
    found = re.fullmatch(r"([0-9]{1,18})\s*([KMGT]?)(?:i?B)?", given, re.IGNORECASE)
    if found is None:
        raise CacheError(f"MASKDSL_CACHE_LIMIT is a size such as 64M or 2G, not '{given[:60]}'")
    return int(found[1]) * _UNITS[found[2].upper()]


def file_key(key: str) -> str:
    """The key as the start of a file name: itself, or where it is no such thing, a readable part
    and a digest.
    """
    if _PLAIN.fullmatch(key):
        return key
    readable = re.sub(r"[^A-Za-z0-9_]+", "-", key)[:80].lstrip("-")
    return f"x{readable}-{hashlib.sha256(key.encode('utf-8', 'replace')).hexdigest()[:32]}"


def fetch(folder: Folder, name: str) -> str | None:
    """The text of the entry KEY.py or KEY.json, verified; None where there is none, or no mark.

    Raises DamagedError where it is not what was written under this name by this version,
    ForeignError where others could have written it, OSError where it cannot be read.
    """
    try:
        mark = folder.read(name + MARK, 200)
        content = folder.read(name, MOST + 1)
    except FileNotFoundError:
        return None
    if mark == _mark(name, content):
        return content.decode("utf-8")
    version = re.fullmatch(rb"maskdsl cache (\w{1,20}) \w+\n", mark)
    if version and version[1] != SCHEMA.encode():
        raise DamagedError(f"is of another version ({version[1].decode()})")
    raise DamagedError("is damaged")


def store(folder: Folder, name: str, text: str) -> None:
    """Writes an entry, its mark last. For whoever holds the lock of its key. Raises OSError."""
    content = text.encode("utf-8")
    if len(content) > MOST:
        raise CacheError(f"{name} has {len(content)} bytes, an entry may have {MOST}")
    folder.remove(name + MARK)
    try:
        folder.replace(name, content)
        folder.replace(name + MARK, _mark(name, content))
    except OSError:
        with suppress(OSError):
            folder.remove(name)  # a full disk is not made fuller
        raise


def _mark(name: str, content: bytes) -> bytes:
    digest = hashlib.sha256(f"{SCHEMA}\0{name}\0".encode() + content).hexdigest()
    return f"maskdsl cache {SCHEMA} {digest}\n".encode()


@dataclass(frozen=True)
class File:
    """One file of the cache. kind: "py" or "json", "" for a lock. part: "content", "mark", or
    "rest", which counts for nothing: locks, and what killed processes left. used: seconds since
    1970.
    """

    name: str
    kind: str
    part: str
    bytes: int
    used: float


def scan(folder: Folder) -> dict[str, list[File]]:
    """The files of the cache by key; no others. Raises OSError."""
    found: dict[str, list[File]] = {}
    for name in folder.names():
        inner = name[1:-4] if name.startswith(".") and name.endswith(".new") else name
        parts = _FILE.fullmatch(inner)
        if parts is None:
            continue
        try:
            status = folder.status(name)
        except FileNotFoundError:
            continue  # it went meanwhile
        size = max(1, -(-status.st_size // BLOCK)) * BLOCK
        part = "mark" if parts["mark"] else "content"
        if inner != name or not parts["kind"]:
            part = "rest"
        file = File(name, parts["kind"] or "", part, size, status.st_mtime)
        found.setdefault(parts["key"], []).append(file)
    return found


def last_use(files: list[File]) -> float:
    """When a mark among these files was written or used, or without one the newest of them."""
    marks = [f.used for f in files if f.part == "mark"]
    return max(marks or [f.used for f in files])


def remove(folder: Folder, key: str, files: list[File]) -> bool:
    """Removes the files of a key, marks first; False where somebody holds its lock, or the system
    does not allow it.
    """
    try:
        with folder.lock(key, seconds=0):
            for file in sorted(files, key=lambda f: f.part != "mark"):
                if not file.name.endswith(".lock"):  # this one goes when it is let go
                    folder.remove(file.name)
    except OSError:
        return False
    return True


def evict(folder: Folder, limit: int, keep: str) -> int:
    """Where all files take more than `limit` bytes, removes the least recently used keys until they
    take a sixteenth less. What is being written stays, and so does the key `keep`, whose lock is
    held. Gives the bytes that are free then. Raises OSError where the directory cannot be read.
    """
    found = scan(folder)
    total = sum(f.bytes for files in found.values() for f in files if f.name != f"{keep}.lock")
    if total <= limit:
        return limit - total
    for key in sorted(found, key=lambda k: last_use(found[k])):
        if total <= limit - limit // 16:
            break
        if key != keep and remove(folder, key, found[key]):
            total -= sum(f.bytes for f in found[key])
    return limit - total
