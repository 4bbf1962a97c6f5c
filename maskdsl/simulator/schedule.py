"""Longest-first list scheduling of independent rows on equal multiprocessors."""

from __future__ import annotations

import heapq

import numpy as np
from numpy.typing import NDArray


def makespan(durations: NDArray[np.float64], counts: NDArray[np.int64], units: int) -> float:
    """When the last of `units` machines ends, if each takes the longest job left when it is free.

    `counts[i]` jobs last `durations[i]` each (any unit of time, also that of the result). Longer
    or more jobs never end earlier: adding a job to the least loaded machine keeps the sorted loads
    of two schedules in componentwise order, and so does sorting the jobs (Graham's anomalies need
    precedence between jobs).

    Takes O(jobs log units), but only O(units) for each kind of equal jobs.
    """
    loads = [0.0] * units
    for i in np.argsort(-durations, kind="stable"):
        duration, count = float(durations[i]), int(counts[i])
        if count > units and duration > 0:
            level, count = _pour(np.array(loads), duration, count)
            loads = level.tolist()
            heapq.heapify(loads)
        for _ in range(count):
            heapq.heapreplace(loads, loads[0] + duration)
    return max(loads)


def _pour(
    loads: NDArray[np.float64], duration: float, count: int
) -> tuple[NDArray[np.float64], int]:
    """Give out most of `count` equal jobs at once, as the greedy rule would; the rest is returned.

    Water filling: the level that `count * duration` of liquid reaches over `loads`. Every job that
    ends by that level starts before every job that does not, so the greedy rule gives it out first;
    fewer than one job per machine remain.
    """
    loads = np.sort(loads)
    levels = (np.cumsum(loads) + count * duration) / np.arange(1, len(loads) + 1)
    ceilings = np.append(loads[1:], np.inf)
    level = levels[np.argmax(levels <= ceilings)]
    jobs = np.maximum(np.floor((level - loads) / duration), 0.0)
    return loads + jobs * duration, count - int(jobs.sum())


def timeline(
    durations: NDArray[np.float64], counts: NDArray[np.int64], units: int
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """(machine, start, end) of every job of the schedule that `makespan` ends, in order of start.

    Takes memory for every job.
    """
    jobs = np.repeat(durations, counts)
    jobs = jobs[np.argsort(-jobs, kind="stable")]
    free = [(0.0, unit) for unit in range(units)]
    machine, start = np.zeros(len(jobs), dtype=np.int64), np.zeros(len(jobs))
    for i, duration in enumerate(jobs):
        start[i], machine[i] = free[0]
        heapq.heapreplace(free, (float(start[i] + duration), int(machine[i])))
    return machine, start, start + jobs
