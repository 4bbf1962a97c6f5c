"""Tasks on the cores of a CPU, each on one core.

Products of small matrices lose half of two cores to waiting when every operation is spread over
them, and far more when another process takes a core; whole tasks wait for nothing.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cache

import torch

Task = Callable[[], None]

_pools: dict[tuple[int, int], ThreadPoolExecutor] = {}
_making = threading.Lock()


def workers(device: torch.device) -> int:
    """How many tasks run at a time on this device: as many as torch may use threads of a CPU."""
    _keep_memory()
    return torch.get_num_threads() if device.type == "cpu" else 1


def run_all(tasks: Iterable[Task], at_once: int) -> None:
    """Run tasks in their order, several at once. An error of one ends them all and is raised.

    The tasks themselves come one at a time.
    """
    if at_once <= 1:
        for task in tasks:
            task()
        return
    left = iter(tasks)
    taking = threading.Lock()
    inference = torch.is_inference_mode_enabled()

    def work() -> None:
        nonlocal left
        with torch.inference_mode(inference), torch.no_grad():
            while True:
                with taking:
                    task = next(left, None)
                if task is None:
                    return
                try:
                    task()
                except BaseException:
                    with taking:
                        left = iter(())
                    raise

    done = [_pool(at_once).submit(work) for _ in range(at_once)]
    try:
        wait(done)
    except BaseException:  # an interrupt: nothing goes on behind the caller's back
        with taking:
            left = iter(())
        wait(done)
        raise
    for x in done:
        x.result()


@cache
def _keep_memory() -> None:
    """Once a large block has been freed, the C library keeps blocks up to its size for later
    instead of giving them back to the system, which then clears them anew: half of the time.
    """
    torch.empty(30 * 2**20, dtype=torch.uint8, device="cpu")


def _pool(size: int) -> ThreadPoolExecutor:
    """Threads for which torch uses one core each; a forked process makes its own."""
    key = (os.getpid(), size)
    with _making:
        if key not in _pools:
            threads = torch.get_num_threads()
            ready = threading.Barrier(size)

            def begin() -> None:
                torch.set_num_threads(1)
                torch.get_num_threads()  # now this thread has its own number
                ready.wait()

            pool = ThreadPoolExecutor(size, "maskdsl", initializer=begin)
            for x in [pool.submit(ready.wait) for _ in range(size)]:
                x.result()
            torch.set_num_threads(threads)
            _pools[key] = pool
        return _pools[key]


def _fork() -> None:
    """A lock that a thread of the parent held is nobody's in a forked process."""
    global _making
    _making = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_fork)
