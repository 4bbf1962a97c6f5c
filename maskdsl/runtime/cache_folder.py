"""A directory that this user alone may write to, reached by its descriptor, so that nobody puts
another in its place between a check and a use. Files in it are read, replaced, removed, locked.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from maskdsl.errors import CacheError

try:
    import fcntl
except ImportError:  # not a POSIX system: `opened` says so
    fcntl = None  # type: ignore[assignment]

POLL_SECONDS = 0.02
NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK)  # from file systems without them

_held: set[int] = set()  # descriptors of the locks of this process


class ForeignError(CacheError):
    """A file that this user did not write, or that others could have written."""


def cause(error: OSError) -> str:
    """What went wrong, in a few words."""
    return error.strerror or str(error)


@contextmanager
def opened(path: Path, make: bool = True) -> Iterator[Folder]:
    """The directory, made where it is missing and `make` is set, for its owner alone.

    Raises OSError where it cannot be made or opened, CacheError where it is a symbolic link,
    belongs to another user, or others may write to it.
    """
    if fcntl is None:
        raise CacheError("kernels are kept on POSIX systems alone")
    if make:
        missing = [p for p in (path, *path.parents) if not p.exists()]
        for folder in reversed(missing):
            folder.mkdir(mode=0o700, exist_ok=True)
    if path.is_symlink():
        raise CacheError("it is a symbolic link")
    number = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if not _ours(os.fstat(number)):
            raise CacheError("it belongs to another user, or others may write to it")
        yield Folder(path, number)
    finally:
        os.close(number)


class Folder:
    """An open directory of ours. Its methods raise OSError where the system does; a missing file is
    a FileNotFoundError.
    """

    def __init__(self, path: Path, number: int) -> None:
        self.path = path
        self._number = number

    def names(self) -> list[str]:
        return os.listdir(self._number)

    def status(self, name: str) -> os.stat_result:
        """Of the file itself, not of what a link points to."""
        return os.stat(name, dir_fd=self._number, follow_symlinks=False)

    def read(self, name: str, most: int) -> bytes:
        """A file's content, cut after `most` bytes. Raises ForeignError for links, for what is no
        regular file, and for files that others could have written.
        """
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            number = os.open(name, flags, dir_fd=self._number)
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENXIO):
                raise ForeignError("is a link or no file") from None
            raise
        try:
            status = os.fstat(number)
            if not stat.S_ISREG(status.st_mode):
                raise ForeignError("is a link or no file")
            if not _ours(status):
                raise ForeignError("could have been written by others")
            with os.fdopen(number, "rb", closefd=False) as file:
                return file.read(most)
        finally:
            os.close(number)

    def replace(self, name: str, content: bytes) -> None:
        """Writes a file, whole or not at all. For whoever holds its lock."""
        temporary = f".{name}.new"
        self.remove(temporary)  # of a process that was killed
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        number = os.open(temporary, flags, 0o600, dir_fd=self._number)
        try:
            with os.fdopen(number, "wb") as file:
                file.write(content)
            os.replace(temporary, name, src_dir_fd=self._number, dst_dir_fd=self._number)
        except BaseException:
            with suppress(OSError):
                self.remove(temporary)
            raise

    def remove(self, name: str) -> None:
        """Removes a file, if there is one."""
        with suppress(FileNotFoundError):
            os.unlink(name, dir_fd=self._number)

    def touch(self, name: str) -> None:
        """Notes that a file was used now; does nothing where that cannot be written."""
        with suppress(OSError):
            os.utime(name, dir_fd=self._number, follow_symlinks=False)

    @contextmanager
    def lock(self, key: str, seconds: float) -> Iterator[None]:
        """Holds `KEY.lock` against other threads and processes; the system lets go of it when a
        process dies. Raises TimeoutError where it is still held elsewhere after so many seconds.
        """
        name = f"{key}.lock"
        end = time.monotonic() + seconds
        while (number := self._locked(name)) is None:
            if time.monotonic() >= end:
                raise TimeoutError(errno.ETIMEDOUT, f"another process still holds {name}")
            time.sleep(POLL_SECONDS)
        _held.add(number)
        try:
            yield
        finally:
            _held.discard(number)
            with suppress(OSError):
                self.remove(name)  # while it is held: those who wait on this file look again
            os.close(number)

    def _locked(self, name: str) -> int | None:
        """The descriptor of the lock file, locked and still in its place; None where it is not."""
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        number = os.open(name, flags, 0o600, dir_fd=self._number)
        try:
            fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(number), self.status(name)):
                return number
        except (BlockingIOError, FileNotFoundError):
            pass
        except OSError as error:
            if error.errno in NO_LOCKS:
                return number  # at worst a kernel is emitted twice
            os.close(number)
            raise
        os.close(number)
        return None


def _ours(status: os.stat_result) -> bool:
    return status.st_uid == os.geteuid() and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _close_copies() -> None:
    """A forked process must not hold its parent's locks, which may be killed before it."""
    while _held:
        with suppress(OSError):
            os.close(_held.pop())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_copies)
