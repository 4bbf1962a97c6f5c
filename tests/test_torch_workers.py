"""Tasks on cores."""

from __future__ import annotations

import threading

import pytest
import torch

from maskdsl.runtime.torch_workers import run_all


@pytest.mark.parametrize("at_once", [1, 2, 3])
def test_every_task_runs_once(at_once: int) -> None:
    done: list[int] = []
    run_all((lambda i=i: done.append(i) for i in range(50)), at_once)  # type: ignore[misc]
    assert sorted(done) == list(range(50))


@pytest.mark.parametrize("at_once", [1, 2])
def test_an_error_ends_all_and_is_raised(at_once: int) -> None:
    begun: list[int] = []

    def task(i: int) -> None:
        begun.append(i)
        if i == 3:
            raise ValueError("three")

    with pytest.raises(ValueError, match="three"):
        run_all((lambda i=i: task(i) for i in range(1000)), at_once)  # type: ignore[misc]
    assert len(begun) < 1000
    run_all([lambda: begun.clear()], at_once)  # the workers live on
    assert not begun


def test_tasks_use_one_core_and_leave_torchs_threads_alone() -> None:
    before = torch.get_num_threads()
    seen: set[int] = set()
    names: set[str] = set()

    def task() -> None:
        seen.add(torch.get_num_threads())
        names.add(threading.current_thread().name)
        assert not torch.is_grad_enabled()

    run_all([task] * 20, 2)
    assert seen == {1} and all(n.startswith("maskdsl") for n in names)
    assert torch.get_num_threads() == before and torch.is_grad_enabled()
