"""Processes that work for the one that was started: what breaks one of them, an error of the device
included, breaks nothing else.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

Record = dict[str, Any]
Task = tuple[Callable[..., Record], tuple[Any, ...]]

_SPAWN = multiprocessing.get_context("spawn")  # CUDA does not survive a fork


class Worker:
    """One process that does one task at a time."""

    def __init__(self) -> None:
        self._pipe, theirs = _SPAWN.Pipe()
        self._process = _SPAWN.Process(target=_serve, args=(theirs,))
        self._process.start()
        theirs.close()

    @property
    def pipe(self) -> Any:
        """What becomes ready when there is an answer."""
        return self._pipe

    def give(self, task: Task) -> None:
        """Start a task: a function of a module, and arguments that can be pickled."""
        self._pipe.send(task)

    def answer(self) -> Record:
        """Of the task given. Raises EOFError where the process ended."""
        kind, value = self._pipe.recv()
        while kind == "part":
            kind, value = self._pipe.recv()
        return value  # type: ignore[no-any-return]

    def ask(self, task: Task, limit_s: float) -> Record:
        """What a task gives that takes `save` after its arguments. What it saved last, with
        `stopped` saying why, where it runs past the limit or its process ends.
        """
        self.give(task)
        latest: Record = {}
        until = time.monotonic() + limit_s
        try:
            while self._pipe.poll(max(0.0, until - time.monotonic())):
                kind, latest = self._pipe.recv()
                if kind == "done":
                    return latest
            return latest | {"stopped": f"ran past {limit_s:.0f} s"}
        except (EOFError, OSError):
            self._process.join(10)
            return latest | {"stopped": f"its process ended ({self._process.exitcode})"}

    def end(self) -> None:
        self._process.kill()
        self._process.join()
        self._pipe.close()


def in_parallel(
    tasks: Iterable[Task], workers: int, limit_s: float
) -> Iterator[tuple[Task, Record]]:
    """Tasks with their answers, as they come, by several processes within a time; a task whose
    process ends gives {"failed": ...}, and those not done by then are left out.
    """
    waiting = iter(list(tasks))
    busy: dict[Any, tuple[Worker, Task]] = {}
    until = time.monotonic() + limit_s
    idle = [Worker() for _ in range(workers)]
    try:
        while True:
            while idle and (task := next(waiting, None)) is not None:
                worker = idle.pop()
                worker.give(task)
                busy[worker.pipe] = worker, task
            left = until - time.monotonic()
            ready = multiprocessing.connection.wait(list(busy), max(0.0, left)) if busy else []
            if not ready:
                return
            for pipe in ready:
                worker, task = busy.pop(pipe)
                try:
                    result = worker.answer()
                    idle.append(worker)
                except (EOFError, OSError):
                    worker.end()
                    idle.append(Worker())
                    result = {"failed": "its process ended"}
                yield task, result
    finally:
        for worker in [*idle, *(w for w, _ in busy.values())]:
            worker.end()


def _serve(pipe: Any) -> None:
    while True:
        try:
            function, arguments = pipe.recv()
        except EOFError:
            return
        try:
            result = function(*arguments, lambda part: pipe.send(("part", part)))
        except Exception as error:  # told to whoever asked, and the next task may go well
            line = (str(error).strip().splitlines() or [""])[0]
            result = {"failed": f"{type(error).__name__}: {line}"[:300]}
        pipe.send(("done", result))
