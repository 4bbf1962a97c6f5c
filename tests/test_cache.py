"""The cache of emitted sources: one emission per key, and never a wrong or foreign kernel."""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
import warnings
from pathlib import Path

import pytest
from cache_kit import Emit, forget, load

import maskdsl
from maskdsl.errors import CacheError
from maskdsl.runtime import cache, cache_entries
from maskdsl.runtime.cache import load_source, recall, remember
from maskdsl.runtime.cache_entries import BLOCK, SCHEMA, cache_directory, cache_limit, file_key
from maskdsl.runtime.cache_listing import clear, entries, verify

NAMES = ["key.py", "key.py.ok"]


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MASKDSL_CACHE_DIR", str(tmp_path))
    monkeypatch.delenv("MASKDSL_CACHE_LIMIT", raising=False)
    forget()
    return tmp_path / SCHEMA


def test_a_key_is_emitted_once(directory: Path) -> None:
    emit = Emit()
    assert load_source("key", emit).VALUE == 1
    assert load("key", emit)[0].VALUE == 1
    assert emit.calls == 1
    assert sorted(p.name for p in directory.iterdir()) == NAMES
    assert all(p.stat().st_mode & 0o777 == 0o600 for p in directory.iterdir())
    assert directory.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("damage", ["truncate", "empty", "longer", "other version", "remove"])
def test_a_damaged_entry_is_emitted_anew(directory: Path, name: str, damage: str) -> None:
    load_source("key", Emit("VALUE = 'damaged'\n"))
    path = directory / name
    content = path.read_bytes()
    if damage == "remove":
        path.unlink()
    elif damage == "other version":
        path.write_bytes(content.replace(SCHEMA.encode(), b"v1"))
    else:
        path.write_bytes({"truncate": content[:3], "empty": b"", "longer": content * 2}[damage])
    emit = Emit()
    module, said = load("key", emit)
    whole = damage == "other version" and name == "key.py"  # a source names no version
    expected = "damaged" if whole else 1
    assert expected == module.VALUE
    assert len(said) == (0 if whole or damage == "remove" else 1)
    if said:
        told = "is of another version (v1)" if damage == "other version" else "is damaged"
        assert f"{directory / 'key.py'} {told}" in said[0]
    module, said = load("key", Emit("VALUE = 2\n"))
    assert expected == module.VALUE and not said
    assert emit.calls == (0 if whole else 1)


def test_every_byte_of_an_entry_counts(directory: Path) -> None:
    load_source("key", Emit("VALUE = 0\n"))
    flipped = 0
    for name in NAMES:
        for at in range((directory / name).stat().st_size):
            content = bytearray((directory / name).read_bytes())
            content[at] ^= 1
            (directory / name).write_bytes(content)
            emit = Emit(f"VALUE = {at}\n")
            module, said = load("key", emit)
            assert (module.VALUE, emit.calls, len(said)) == (at, 1, 1), (name, at)
            flipped += 1
    assert flipped > 80


def test_every_part_of_a_kernel_counts(directory: Path) -> None:
    """Bytes of an emitted kernel and its mark, sampled; what runs is the kernel."""
    mask = maskdsl.parse("pattern p over (n) keep q.n >= k.n").bind(n=32)
    kernel = maskdsl.compile(mask, 16, backend="triton", target="sm_90")
    (entry,) = entries()
    assert entry.key == kernel.key and entry.kind == "kernel"
    path = directory / f"{kernel.key}.py"
    for file in (path, Path(f"{path}.ok")):
        size = file.stat().st_size
        for at in range(0, size, max(1, size // 20)):
            content = bytearray(file.read_bytes())
            content[at] ^= 0x20
            file.write_bytes(content)
            (entry,) = verify()
            assert entry.fault is not None
            emit = Emit(kernel.source)
            module, said = load(kernel.key, emit)
            assert emit.calls == 1 and len(said) == 1 and callable(module.forward)
            assert path.read_text() == kernel.source


def test_an_entry_under_another_name_does_not_count(directory: Path) -> None:
    load_source("key", Emit())
    load_source("other", Emit("VALUE = 'foreign'\n"))
    for name in NAMES:
        shutil.copy(directory / name.replace("key", "other"), directory / name)
    module, said = load("key", Emit())
    assert module.VALUE == 1 and len(said) == 1 and "is damaged" in said[0]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("how", ["mode", "owner", "link", "fifo", "directory"])
def test_what_others_could_have_written_is_not_executed(
    directory: Path, tmp_path: Path, name: str, how: str
) -> None:
    load_source("key", Emit("VALUE = 'theirs'\n"))
    path = directory / name
    if how == "mode":
        path.chmod(0o620)
    elif how == "owner":
        if os.geteuid():
            pytest.skip("only root gives files away")
        os.chown(path, 12345, -1)
    elif how == "link":
        path.rename(tmp_path / name)
        path.symlink_to(tmp_path / name)
    elif how == "fifo":
        path.unlink()
        os.mkfifo(path)
    else:
        path.unlink()
        path.mkdir()
    module, said = load("key", Emit())
    assert module.VALUE == 1 and len(said) == 1
    assert ("written by others" if how in ("mode", "owner") else "is a link or no file") in said[0]
    if how != "directory":
        module, said = load("key", Emit("VALUE = 2\n"))  # it was replaced
        assert module.VALUE == 1 and not said


def _others_may_write(base: Path) -> None:
    (base / SCHEMA).mkdir(parents=True)
    (base / SCHEMA).chmod(0o777)


def _belongs_to_another(base: Path) -> None:
    (base / SCHEMA).mkdir(parents=True)
    os.chown(base / SCHEMA, 12345, -1)


def _is_a_link(base: Path) -> None:
    base.mkdir()
    (base / "elsewhere").mkdir(mode=0o700)
    (base / SCHEMA).symlink_to(base / "elsewhere")


def _is_a_file(base: Path) -> None:
    base.write_text("not a directory")


def _is_a_link_to_nothing(base: Path) -> None:
    base.symlink_to(base.parent / "nothing")


@pytest.mark.parametrize(
    "make, told",
    [
        (_others_may_write, "others may write to it"),
        (_belongs_to_another, "belongs to another user"),
        (_is_a_link, "it is a symbolic link"),
        (_is_a_file, "Not a directory"),
        (_is_a_link_to_nothing, "File exists"),
    ],
)
def test_a_directory_that_cannot_be_trusted_or_made_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: object, told: str
) -> None:
    if make is _belongs_to_another and os.geteuid():
        pytest.skip("only root gives files away")
    base = tmp_path / "base"
    make(base)  # type: ignore[operator]
    monkeypatch.setenv("MASKDSL_CACHE_DIR", str(base))
    before = sorted(tmp_path.rglob("*"))
    module, said = load("key", Emit())
    assert module.VALUE == 1 and len(said) == 1
    assert "the kernel cache is not used" in said[0] and str(base) in said[0] and told in said[0]
    assert sorted(tmp_path.rglob("*")) == before
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert load_source("another key", Emit("VALUE = 2\n")).VALUE == 2
        remember("settings", "{}")
        assert recall("settings") is None
    assert not caught  # it has been said
    if make is _is_a_link_to_nothing:
        assert entries() == []
    else:
        with pytest.raises(CacheError, match=told):
            entries()


def test_the_directory_is_read_at_each_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for given, path in (
        ("relative/deep", tmp_path / "relative" / "deep"),
        ("~/cache", tmp_path / "home" / "cache"),
        (str(tmp_path / "absolute"), tmp_path / "absolute"),
    ):
        monkeypatch.setenv("MASKDSL_CACHE_DIR", given)
        assert cache_directory() == path / SCHEMA
        emit = Emit()
        assert load_source("key", emit).VALUE == 1
        assert emit.calls == 1 and (path / SCHEMA / "key.py").exists()
        assert path.stat().st_mode & 0o777 == 0o700
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    monkeypatch.setenv("MASKDSL_CACHE_DIR", "link")  # whoever sets it may link it
    assert not load("key", Emit())[1]
    assert (tmp_path / "real" / SCHEMA / "key.py").exists()
    monkeypatch.setenv("MASKDSL_CACHE_DIR", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert str(cache_directory()).startswith(str(tmp_path))


def test_no_home_and_no_working_directory_cost_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MASKDSL_CACHE_DIR", "~nobody-of-this-name/cache")
    module, said = load("key", Emit())
    assert module.VALUE == 1 and len(said) == 1 and "~nobody-of-this-name" in said[0]
    with pytest.raises(CacheError, match="there is no directory"):
        cache_directory()
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    monkeypatch.setenv("MASKDSL_CACHE_DIR", "relative")
    module, said = load("key", Emit())
    assert module.VALUE == 1 and len(said) == 1 and "there is no directory relative" in said[0]


def test_a_kernel_without_a_cache_runs_and_shows_its_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    (tmp_path / "file").touch()
    monkeypatch.setenv("MASKDSL_CACHE_DIR", str(tmp_path / "file"))
    forget()
    mask = maskdsl.parse("pattern p over (n) keep q.n >= k.n").bind(n=32)
    with pytest.warns(UserWarning, match="Not a directory"):
        kernel = maskdsl.compile(mask, 16, backend="triton", target="sm_90")
    q, k, v = (torch.randint(-2, 3, (1, 1, 32, 16)).float() for _ in range(3))
    dense = maskdsl.compile(mask, 16, backend="reference")(q, k, v)
    assert torch.allclose(kernel(q, k, v), dense, atol=1e-5)


def test_errors_of_the_emission_are_its_own(directory: Path) -> None:
    """Also those that look like the cache's; the key can be emitted afterwards."""
    for kind in (ValueError, OSError, CacheError, KeyboardInterrupt):
        calls = []

        def fail(kind: type[BaseException] = kind, calls: list[int] = calls) -> str:
            calls.append(1)
            raise kind("no")

        with pytest.raises(kind, match="no"):
            load_source("key", fail)
        assert len(calls) == 1 and list(directory.iterdir()) == []
    assert load("key", Emit())[0].VALUE == 1


def test_keys_are_readable_and_always_file_names(directory: Path) -> None:
    assert file_key("radial-4096-bfloat16-sm_90-0123") == "radial-4096-bfloat16-sm_90-0123"
    odd = ["../../evil", ".hidden", "a/b", "x" * 400, "", "naïve", "a b", "con\n", "..", "-rf"]
    names = [file_key(key) for key in odd]
    assert len(set(names)) == len(odd)
    for key, name in zip(odd, names, strict=True):
        assert "/" not in name and len(f".{name}.json.ok.new") <= 255 and name[0] not in ".-"
        assert key == load_source(key, Emit(f"VALUE = {key!r}\n")).VALUE
        assert key == load(key, Emit("VALUE = 0\n"))[0].VALUE
    assert len(entries()) == len(odd)


def test_what_is_remembered_is_whole_unchanged_and_ours(directory: Path) -> None:
    assert recall("key") is None
    remember("key", json.dumps([1]))
    assert recall("key") == "[1]"
    remember("key", "[2]")
    assert recall("key") == "[2]" and {p.name for p in directory.iterdir()} == {
        "key.json",
        "key.json.ok",
    }
    for name in ("key.json", "key.json.ok"):
        for at in range((directory / name).stat().st_size):
            content = bytearray((directory / name).read_bytes())
            content[at] ^= 1
            (directory / name).write_bytes(content)
            forget()
            with pytest.warns(UserWarning, match=r"key\.json (is damaged|is of another)") as said:
                assert recall("key") is None
            assert len(said) == 1
            remember("key", "[2]")
    (directory / "key.json").chmod(0o666)
    with pytest.warns(UserWarning, match="written by others"):
        assert recall("key") is None
    load_source("key", Emit())  # a kernel and a setting of one key
    remember("key", "[3]")
    assert recall("key") == "[3]" and load("key", Emit("VALUE = 2\n"))[0].VALUE == 1
    assert sorted((e.key, e.kind) for e in entries()) == [("key", "kernel"), ("key", "setting")]


def _used(directory: Path, key: str, ago: float) -> None:
    when = time.time() - ago
    os.utime(directory / f"{key}.py.ok", (when, when))


def test_the_least_recently_used_make_room(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MASKDSL_CACHE_LIMIT", str(7 * BLOCK))  # three entries
    for age, key in enumerate(["c", "b", "a"]):
        load_source(key, Emit())
        _used(directory, key, 100 - age)
    assert [e.key for e in entries()] == ["a", "b", "c"]
    load("c", Emit("VALUE = 'anew'\n"))  # used now
    load_source("d", Emit())
    assert {e.key for e in entries()} == {"a", "c", "d"}
    assert sum(p.stat().st_size > 0 for p in directory.iterdir()) == 6
    remember("e", "x" * (2 * BLOCK))
    assert {e.key for e in entries()} == {"d", "e"}  # 3 blocks and a mark: only one stays with it
    monkeypatch.setenv("MASKDSL_CACHE_LIMIT", "0")
    load_source("f", Emit())
    assert [e.key for e in entries()] == ["f"]  # what was just written stays
    assert load("d", Emit("VALUE = 2\n"))[0].VALUE == 2


def test_a_large_directory_is_not_read_at_each_write(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[int] = []
    evict = cache.evict
    monkeypatch.setattr(cache, "evict", lambda *a: reads.append(1) or evict(*a))
    monkeypatch.setenv("MASKDSL_CACHE_LIMIT", "4M")
    for number in range(300):  # 3 blocks each
        load_source(f"key-{number}", Emit(f"# {'x' * BLOCK}\n"))
    assert sum(e.bytes for e in entries()) == 300 * 3 * BLOCK
    assert 10 < len(reads) < 100
    for number in range(300, 600):
        load_source(f"key-{number}", Emit(f"# {'x' * BLOCK}\n"))
    assert 0.9 * 2**22 < sum(e.bytes for e in entries()) < 1.02 * 2**22


def test_what_is_being_written_is_not_evicted(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MASKDSL_CACHE_LIMIT", "1")
    inside, go = threading.Event(), threading.Event()

    def slow() -> str:
        inside.set()
        assert go.wait(10)
        return "VALUE = 'slow'\n"

    found = []
    thread = threading.Thread(target=lambda: found.append(load_source("slow", slow).VALUE))
    thread.start()
    assert inside.wait(10)
    load_source("quick", Emit())
    assert (directory / "slow.lock").exists()
    assert clear().kept == 1
    go.set()
    thread.join()
    assert found == ["slow"] and [e.key for e in entries()] == ["slow"]


def test_what_killed_processes_left_makes_room_too(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load_source("key", Emit())
    for name in (".a.py.new", ".a.py.ok.new", "b.lock", "c.py", "d.json.ok"):
        (directory / name).write_bytes(b"x" * 5000)
        os.utime(directory / name, (0, 0))
    (directory / "README").write_text("not of the cache")
    monkeypatch.setenv("MASKDSL_CACHE_LIMIT", str(5 * BLOCK))
    load_source("other", Emit())
    assert {p.name for p in directory.iterdir()} == {
        "README", "key.py", "key.py.ok", "other.py", "other.py.ok",
    }  # fmt: skip


@pytest.mark.parametrize(
    "given, size",
    [("", 2**28), ("123", 123), ("64M", 2**26), ("2g", 2**31), ("1 KiB", 2**10), ("7KB", 7168)],
)
def test_sizes_of_the_limit(monkeypatch: pytest.MonkeyPatch, given: str, size: int) -> None:
    monkeypatch.setenv("MASKDSL_CACHE_LIMIT", given)
    assert cache_limit() == size


@pytest.mark.parametrize("given", ["much", "-1", "1.5G", "9" * 30])
def test_a_limit_that_is_no_size_costs_a_warning(
    directory: Path, monkeypatch: pytest.MonkeyPatch, given: str
) -> None:
    monkeypatch.setenv("MASKDSL_CACHE_LIMIT", given)
    module, said = load("key", Emit())
    assert module.VALUE == 1 and len(said) == 1 and "MASKDSL_CACHE_LIMIT" in said[0]
    assert [e.key for e in entries()] == ["key"]


def test_listing_verifying_and_clearing(directory: Path) -> None:
    assert entries() == verify() == [] and clear().keys == 0 and not directory.exists()
    load_source("a", Emit())
    remember("b", "{}")
    (directory / "a.py").write_text("VALUE = 2\n")
    (directory / "c.py").write_text("VALUE = 3\n")  # no mark: a process was killed before it
    (directory / "mine.txt").write_text("not of the cache")
    listed = {e.key: e for e in entries()}
    assert {k: e.kind for k, e in listed.items()} == {"a": "kernel", "b": "setting", "c": "kernel"}
    assert listed["a"].bytes == 2 * BLOCK and abs(listed["a"].used - time.time()) < 60
    assert {e.key: e.fault for e in verify()} == {
        "a": "is damaged", "b": None, "c": "is unfinished",
    }  # fmt: skip
    done = clear()
    assert (done.keys, done.bytes, done.kept) == (3, 5 * BLOCK, 0)
    assert [p.name for p in directory.iterdir()] == ["mine.txt"]


def test_a_lock_that_is_never_let_go_costs_a_warning(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from maskdsl.runtime.cache_folder import opened

    monkeypatch.setattr(cache, "LOCK_SECONDS", 0.05)
    with opened(directory) as folder, folder.lock("key", 0):
        emit = Emit()
        module, said = load("key", emit)
        assert module.VALUE == 1 and emit.calls == 1
        assert len(said) == 1 and "another process still holds key.lock" in said[0]
        assert not (directory / "key.py").exists()
    assert not load("key", Emit())[1]


def test_a_file_system_without_locks_is_used(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno
    import fcntl

    def unsupported(*_: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    module, said = load("key", Emit())
    assert module.VALUE == 1 and not said
    assert load("key", Emit("VALUE = 2\n"))[0].VALUE == 1


def test_an_entry_is_never_too_large_to_be_read(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_entries, "MOST", 20)
    module, said = load("key", Emit("VALUE = '0123456789'\n"))
    assert module.VALUE == "0123456789" and len(said) == 1 and "an entry may have 20" in said[0]
    assert entries() == []
