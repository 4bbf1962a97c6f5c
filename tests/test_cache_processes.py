"""The cache under many processes and threads at once, processes killed at every step, full and
read-only disks: right kernels, one emission per key, nothing damaged.
"""

from __future__ import annotations

import os
import random
import resource
import shutil
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from cache_kit import (
    Emit,
    apart,
    apart_with_disk,
    die,
    forget,
    load,
    make_read_only,
    own_disk,
    start,
    wait,
)

import maskdsl
from maskdsl.runtime import cache, triton_backend
from maskdsl.runtime.cache import load_source, recall, remember
from maskdsl.runtime.cache_entries import BLOCK, SCHEMA
from maskdsl.runtime.cache_listing import clear, entries, verify

TEXTS = [
    "pattern causal over (n) keep q.n >= k.n",
    "pattern near over (n) keep abs(q.n - k.n) <= 3",
    "pattern steps over (n) keep (q.n - k.n) % 3 == 0 score logit - 0.5 * abs(q.n - k.n)",
    "pattern blocks over (n) keep q.n // 5 == k.n // 5",
]
HEAD_DIM = 16


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MASKDSL_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("MASKDSL_CACHE_LIMIT", raising=False)
    forget()
    return tmp_path / "cache" / SCHEMA


def compiled(text: str, n: int) -> Any:
    mask = maskdsl.parse(text).bind(n=n)
    return maskdsl.compile(mask, HEAD_DIM, backend="triton", target="sm_90")


@pytest.fixture(scope="module")
def sources() -> dict[str, str]:
    """Emitted kernels by key, each with a line that says whose it is."""
    kernels = [compiled(text, 32) for text in TEXTS[:2]]
    plain = {f"plain-{i}": "" for i in range(6)}
    found = {k.key: k.source for k in kernels} | plain
    return {key: f"{text}\nOWNER = {key!r}\n" for key, text in found.items()}


def quiet(run: Callable[[], None]) -> None:
    """Runs this; it must not warn."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        run()


def test_32_processes_of_8_threads_share_one_emission_per_key(
    directory: Path, tmp_path: Path, sources: dict[str, str]
) -> None:
    keys = list(sources)

    def one(number: int, failed: list[BaseException]) -> None:
        order = random.Random(number).sample(keys, len(keys))
        try:
            for key in order:
                emit = Emit(sources[key], tmp_path / key)

                def slow(emit: Emit = emit) -> str:
                    time.sleep(0.002)
                    return emit()

                assert key == load_source(key, slow).OWNER
        except BaseException as error:
            failed.append(error)

    def process(number: int) -> None:
        failed: list[BaseException] = []
        threads = [threading.Thread(target=one, args=(8 * number + i, failed)) for i in range(8)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        if failed:
            raise failed[0]

    children = [start(lambda n=n: quiet(lambda: process(n))) for n in range(32)]
    assert wait(children) == [0] * 32
    assert {key: (tmp_path / key).stat().st_size for key in keys} == dict.fromkeys(keys, 1)
    assert {e.key for e in verify() if e.fault is None} == set(keys)
    assert len(list(directory.iterdir())) == 2 * len(keys)  # no locks, nothing temporary


def test_32_processes_compile_the_same_and_different_patterns(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole way; every fourth process runs its kernels, held against the dense backend."""

    def counted(key: str, emit: Callable[[], str]) -> Any:
        return load_source(key, Emit(emit(), tmp_path / key))

    monkeypatch.setattr(triton_backend, "load_source", counted)
    q, k, v = (torch.randint(-2, 3, (1, 1, 24, HEAD_DIM)).float() for _ in range(3))
    truth = {}
    for text in TEXTS:
        mask = maskdsl.parse(text).bind(n=24)
        truth[text] = maskdsl.compile(mask, HEAD_DIM, backend="reference")(q, k, v)

    def process(number: int) -> None:
        torch.set_num_threads(1)
        for text in (TEXTS[0], TEXTS[1 + number % 3]):
            kernel = compiled(text, 24)
            assert (directory / f"{kernel.key}.py").read_text() == kernel.source
            if number % 4 == 0:
                assert torch.allclose(kernel(q, k, v), truth[text], atol=1e-5)

    children = [start(lambda n=n: quiet(lambda: process(n))) for n in range(32)]
    assert wait(children) == [0] * 32
    keys = [e.key for e in verify() if e.fault is None]
    assert len(keys) == len(TEXTS)
    assert [(tmp_path / key).stat().st_size for key in keys] == [1] * len(keys)


def test_8_threads_compile_the_same_and_different_patterns(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted: list[str] = []
    original = cache.load_source

    def count(key: str, emit: Callable[[], str]) -> Any:
        return original(key, lambda: counted.append(key) or emit())  # type: ignore[func-returns-value]

    monkeypatch.setattr(triton_backend, "load_source", count)
    found: list[tuple[str, Any]] = []

    def thread(number: int) -> None:
        for text in random.Random(number).sample(TEXTS, len(TEXTS)):
            found.append((text, compiled(text, 40)))

    threads = [threading.Thread(target=thread, args=(i,)) for i in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(found) == 8 * len(TEXTS)
    assert len({kernel.key for _, kernel in found}) == len(TEXTS) == len(counted)


class Steps:
    """Counts calls to the system, and kills the process at the last of them."""

    def __init__(self, last: int) -> None:
        self.left = last

    def __call__(self) -> bool:
        self.left -= 1
        return self.left < 0

    def install(self) -> None:
        for name in ("open", "replace", "unlink", "utime", "mkdir", "fdopen"):
            setattr(os, name, self._watched(name, getattr(os, name)))

    def _watched(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*args: Any, **options: Any) -> Any:
            at_last = self()
            if at_last and name != "fdopen":
                die()
            result = call(*args, **options)
            if at_last and args[1] == "wb":  # half of the content is written
                os.write(args[0], b"VALUE = 'half")
                die()
            return result

        return watched


def test_processes_killed_at_every_step_leave_nothing_wrong(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of an emission into a cache that is full, so that entries make room."""
    monkeypatch.setenv("MASKDSL_CACHE_LIMIT", "1")
    killed = 0
    for step in range(60):
        clear()
        for key in ("old", "older"):
            monkeypatch.setenv("MASKDSL_CACHE_LIMIT", "1M")
            load_source(key, Emit(f"VALUE = {key!r}\n"))
        remember("setting", "1")
        monkeypatch.setenv("MASKDSL_CACHE_LIMIT", "1")
        forget()

        def run(step: int = step) -> None:
            Steps(step).install()
            remember("setting", "2")
            load_source("key", Emit())

        (code,) = wait([start(run)])
        assert code in (0, -9)
        assert {e.fault for e in verify()} <= {None, "is unfinished"}
        for key, value in (("old", "old"), ("older", "older"), ("key", 1)):
            emit = Emit(f"VALUE = {value!r}\n")
            module, said = load(key, emit)
            assert value == module.VALUE and not said and emit.calls <= 1, (step, key)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert recall("setting") in (None, "1", "2")
        if code == 0:
            break
        killed += 1
    assert code == 0 and killed > 15
    clear()
    assert list(directory.iterdir()) == []


def test_processes_killed_at_random_leave_nothing_wrong(
    directory: Path, monkeypatch: pytest.MonkeyPatch, sources: dict[str, str]
) -> None:
    _killed_at_random(monkeypatch, sources, processes=32, seconds=1.0)


@pytest.mark.slow
def test_many_more_processes_killed_at_random_leave_nothing_wrong(
    directory: Path, monkeypatch: pytest.MonkeyPatch, sources: dict[str, str]
) -> None:
    for _ in range(20):
        _killed_at_random(monkeypatch, sources, processes=48, seconds=2.0)


def _killed_at_random(
    monkeypatch: pytest.MonkeyPatch, sources: dict[str, str], processes: int, seconds: float
) -> None:
    """They load, evict, remember and clear without end, and none ever sees anything wrong."""
    monkeypatch.setenv("MASKDSL_CACHE_LIMIT", str(8 * BLOCK))
    plain = [key for key in sources if key.startswith("plain")]

    def run(number: int) -> None:
        chance = random.Random(number)
        while True:
            key = chance.choice(plain)
            cache._modules.clear()
            assert key == load_source(key, Emit(sources[key])).OWNER
            remember("setting", str(number) * chance.randrange(1, 9000))
            assert len(set(recall("setting") or "0")) <= 2
            if chance.random() < 0.02:
                clear()

    children = [start(lambda n=n: quiet(lambda: run(n))) for n in range(processes)]
    chance, end = random.Random(0), time.monotonic() + seconds
    for at, child in enumerate(children):
        time.sleep(max(0.0, (end - time.monotonic()) / (processes - at) * chance.uniform(0, 2)))
        os.kill(child, 9)
    assert wait(children) == [-9] * processes
    assert {e.fault for e in verify()} <= {None, "is unfinished"}
    for key in sources:
        module, said = load(key, Emit(sources[key]))
        assert key == module.OWNER and not said
    assert sum(e.bytes for e in entries()) <= 9 * BLOCK


def test_a_full_disk_costs_one_warning(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sources: dict[str, str]
) -> None:
    def run() -> None:
        own_disk(tmp_path / "cache", "64k")
        said = _load_many(30)
        assert len(said) == 1
        assert str(directory) in said[0] and "No space left on device" in said[0]
        found = verify()
        assert 2 < len(found) < 30 and all(e.fault is None for e in found)
        assert len(list(directory.iterdir())) == 2 * len(found)
        clear()
        os.environ["MASKDSL_CACHE_LIMIT"] = "40K"
        assert _load_many(30) == []
        assert 4 <= len(entries()) <= 5  # of two blocks each

    apart_with_disk(run)


def test_files_that_may_not_grow_cost_one_warning(directory: Path) -> None:
    def run() -> None:
        load_source("before", Emit())
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        said = _load_many(4)
        assert len(said) == 1 and str(directory) in said[0] and "File too large" in said[0]
        assert [e.key for e in verify()] == ["before"]
        assert load("before", Emit("VALUE = 2\n"))[0].VALUE == 1

    apart(run)


def _load_many(count: int) -> list[str]:
    """Loads sources of almost a block each; all must be right. What was said."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        forget()
        for i in range(count):
            emit = Emit(f"VALUE = {i}\n# {'x' * 3000}\n")
            assert i == load_source(f"key-{i}", emit).VALUE and emit.calls == 1
    return [str(w.message) for w in caught]


def _reads_what_is_there(directory: Path, told: str) -> None:
    """Where nothing can be written; "there" is an entry, "broken" a damaged one."""
    before = sorted((p.name, p.read_bytes()) for p in directory.iterdir())
    module, said = load("there", Emit("VALUE = 2\n"))
    assert module.VALUE == 1 and not said
    for key in ("missing", "broken"):
        module, said = load(key, Emit("VALUE = 3\n"))
        assert module.VALUE == 3 and len(said) == 1
        assert str(directory) in said[0] and told in said[0]
    forget()
    with pytest.warns(UserWarning, match=told):
        remember("setting", "1")
    quiet(lambda: remember("other", "1"))
    assert clear().keys == 0
    assert sorted((p.name, p.read_bytes()) for p in directory.iterdir()) == before


def test_a_read_only_disk_costs_one_warning(directory: Path, tmp_path: Path) -> None:
    def run() -> None:
        own_disk(tmp_path / "cache", "1M")
        load_source("there", Emit())
        load_source("broken", Emit())
        (directory / "broken.py").write_text("VALUE = 'broken'\n")
        make_read_only(tmp_path / "cache")
        _reads_what_is_there(directory, "Read-only file system")

    apart_with_disk(run)


@pytest.fixture
def reachable() -> Iterator[Path]:
    """A directory that any user may enter, with a cache of user 65534 in it where this is root."""
    path = Path(tempfile.mkdtemp(prefix="maskdsl-test-"))
    path.chmod(0o755)
    (path / "cache").mkdir(mode=0o700)
    if os.geteuid() == 0:
        os.chown(path / "cache", 65534, 65534)
    yield path / "cache"
    shutil.rmtree(path)


def test_a_directory_without_the_right_to_write_costs_one_warning(
    reachable: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MASKDSL_CACHE_DIR", str(reachable))
    directory = reachable / SCHEMA

    def run() -> None:
        if os.geteuid() == 0:
            os.setgid(65534)
            os.setuid(65534)
        load_source("there", Emit())
        load_source("broken", Emit())
        (directory / "broken.py").write_text("VALUE = 'broken'\n")
        directory.chmod(0o500)
        _reads_what_is_there(directory, "Permission denied")
        directory.chmod(0)
        module, said = load("there", Emit("VALUE = 2\n"))
        assert module.VALUE == 2 and len(said) == 1 and "Permission denied" in said[0]
        directory.chmod(0o700)
        (directory / "there.py").chmod(0)
        module, said = load("there", Emit("VALUE = 2\n"))
        assert module.VALUE == 2 and len(said) == 1 and "there.py Permission denied" in said[0]

    apart(run)


def test_a_forked_process_is_not_bound_by_the_turns_of_its_parent(directory: Path) -> None:
    inside, go = threading.Event(), threading.Event()

    def child() -> None:
        assert load_source("other", Emit("VALUE = 2\n")).VALUE == 2
        cache.LOCK_SECONDS = 0.05
        with pytest.warns(UserWarning, match="still holds"):
            assert load_source("key", Emit("VALUE = 3\n")).VALUE == 3  # not stored

    thread = threading.Thread(target=lambda: load_source("key", _slow(inside, go)))
    thread.start()
    assert inside.wait(20)
    codes = wait([start(child)])
    go.set()
    thread.join()
    assert codes == [0]
    assert load("key", Emit("VALUE = 4\n"))[0].VALUE == 1


def test_the_lock_of_a_killed_process_does_not_live_on_in_its_children(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def parent() -> None:
        inside = threading.Event()
        slow = _slow(inside, threading.Event())
        threading.Thread(target=lambda: load_source("key", slow)).start()
        assert inside.wait(20)
        late = start(lambda: time.sleep(30))
        (tmp_path / "late").write_text(str(late))
        die()

    assert wait([start(parent)]) == [-9]
    assert (directory / "key.lock").exists()
    monkeypatch.setattr(cache, "LOCK_SECONDS", 0.5)
    try:
        module, said = load("key", Emit("VALUE = 2\n"))
        assert module.VALUE == 2 and not said
    finally:
        os.kill(int((tmp_path / "late").read_text()), 9)


def _slow(inside: threading.Event, go: threading.Event) -> Callable[[], str]:
    def emit() -> str:
        inside.set()
        assert go.wait(20)
        return "VALUE = 1\n"

    return emit
