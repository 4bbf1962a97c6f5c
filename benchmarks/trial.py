"""One workload, checked and timed against its peers."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch._inductor.config
from torch import Tensor

import maskdsl
from benchmarks.peers import contenders, settle
from benchmarks.problem import Attention, Contender, Problem, UnavailableError
from benchmarks.suite import Workload
from benchmarks.timing import CLOCKS, Run, Stopwatch, in_turn, smi
from benchmarks.truth import Truth

Record = dict[str, Any]

PREDICTED = "h200"
TEMPLATES = {"ours": "plain", "overlap": "overlap"}  # of our kernels, by contender
FORWARD_SHARE = 0.5  # of a trial's time
IN_TURN_SHARE = 0.3  # of a direction's time
SAMPLES_S = 2.0  # of a direction, at most
# Floating-point operations per kept pair and feature: two products forward, five backward, as
# FlashAttention counts (arXiv 2205.14135).
PRODUCTS = {"forward": 4, "backward": 10}


@dataclass(frozen=True)
class Effort:
    """seconds: for all of it. directions: which. samples_s: seconds of each direction's samples."""

    seconds: float
    directions: tuple[str, ...] = ("forward", "backward")
    samples_s: float = SAMPLES_S


def trial(
    workload: Workload, device: torch.device, effort: Effort, save: Callable[[Record], None]
) -> Record:
    """What was measured. `save` is given it after each step. Nothing but a broken device, which is
    recorded as `broken`, keeps one contender from another's failure.
    """
    settle()
    start = time.monotonic()
    record: Record = {"name": workload.name, "title": workload.title, "density": None}
    before = attempt(lambda: {"problem": Problem.of(workload, device)}, record)
    problem = before.pop("problem", None)
    if problem is None:
        return record | before
    record["shape"] = problem.shape
    record |= attempt(lambda: _pairs(problem), record)
    record["plan"] = attempt(lambda: _plan(problem), record)
    save(record)
    watch = Stopwatch(device)
    if device.type == "cuda":
        record["clocks"] = {"before": smi(CLOCKS)}
    truth = attempt(lambda: {"truth": _truth(problem)}, record)
    for i, direction in enumerate(effort.directions):
        share = 1 if i + 1 == len(effort.directions) else FORWARD_SHARE
        until = start + effort.seconds * share
        record[direction] = {}
        if direction == "backward" and workload.queries is not None:
            record[direction] = {"skipped": "decoding has no backward pass"}
            continue
        _Direction(problem, direction, watch, truth.get("truth"), record, save).measure(
            until, effort.samples_s
        )
        record[direction]["predicted"] = attempt(partial(_predict, problem, direction), record)
        save(record)
        if record.get("broken"):
            break
    if device.type == "cuda" and not record.get("broken"):
        record["clocks"]["after"] = smi(CLOCKS)
        torch._dynamo.reset()
        torch.cuda.empty_cache()
    if "truth" not in truth:
        record["truth"] = truth
    return record


def warm(workload: Workload, device: torch.device, direction: str, name: str) -> Record:
    """Runs one contender once, so that what it compiles is found in the caches later."""
    settle()
    torch._inductor.config.compile_threads = 1  # many processes do this at once
    problem = Problem.of(workload, device)
    chosen = next(c for c in contenders(problem, direction) if c.name == name)

    def once() -> None:
        _run(problem, chosen.build(problem, {}), direction)()

    seconds = Stopwatch(device).first(once)
    if device.type == "cuda":
        torch.cuda.empty_cache()  # many processes share the memory
    return {"seconds": seconds}


def attempt(step: Callable[[], Record], record: Record) -> Record:
    """What a step gives, or {"refused": ...} for a MaskError, {"skipped": ...} for what is not
    here, {"failed": ...} for all else. Marks the record as broken after an error of the device.
    """
    try:
        return step()
    except UnavailableError as error:
        return {"skipped": str(error)}
    except maskdsl.MaskError as error:
        return {"refused": str(error).splitlines()[0][:300]}
    except Exception as error:  # a peer may raise anything, and the others are to be measured
        lines = str(error).strip().splitlines() or ["no message"]
        why = f"{type(error).__name__}: {lines[0]}"[:300]
    if torch.cuda.is_initialized():
        try:
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
        except RuntimeError:  # every later call would fail alike
            record["broken"] = why
    return {"failed": why}


_DENSE: dict[Any, Record] = {}  # the dense problem depends on nothing but its shape


class _Direction:
    """One direction of one trial."""

    def __init__(
        self, problem: Problem, direction: str, watch: Stopwatch, truth: Truth | None,
        record: Record, save: Callable[[Record], None],
    ) -> None:  # fmt: skip
        self.problem, self.direction, self.watch, self.truth = problem, direction, watch, truth
        self.record, self.save = record, save
        self.found: dict[str, Record] = {}
        record[direction]["contenders"] = self.found

    def measure(self, until: float, samples_s: float) -> None:
        """Each contender once, then the best of each peer in turn."""
        runs: dict[str, Run] = {}
        began = time.monotonic()
        last = until - IN_TURN_SHARE * (until - began)
        for contender in contenders(self.problem, self.direction):
            result: Record = {"masked": contender.masked}
            self.found[contender.name] = result
            if contender.name != "ours" and time.monotonic() > last:
                result["skipped"] = "out of time"
                continue
            known = _DENSE.get(self._dense_key(contender.name))
            if known is not None and not contender.masked:
                result |= known
                continue
            run = attempt(partial(self._first, contender, result), self.record)
            if "run" in run:
                runs[contender.name] = run.pop("run")
            result |= run
            self.save(self.record)
            if self.record.get("broken"):
                return
            self._keep_best(runs, contender)
        budget = min(samples_s, max(0.0, until - time.monotonic()))
        # Autograd runs on the stream of the forward pass, which a capture cannot follow.
        graphs = self.direction == "forward"
        quick_s = {name: self.found[name]["quick_s"] for name in runs}
        timed = attempt(lambda: in_turn(self.watch, runs, quick_s, budget, graphs), self.record)
        for name, timing in timed.items():
            if name not in runs:
                self.record[self.direction][name] = timing
                continue
            result = self.found[name]
            result |= timing | self._rates(name, timing["seconds"])
            if not result["masked"]:
                _DENSE[self._dense_key(name)] = result | {"taken_from": self.record["name"]}

    def _dense_key(self, name: str) -> Any:
        return name, self.direction, *self.problem.shape.values()

    def _first(self, contender: Contender, result: Record) -> Record:
        """Build, check and time it shortly."""
        attention = contender.build(self.problem, result)
        run = _run(self.problem, attention, self.direction)
        result["first_s"] = self.watch.first(run)
        if contender.masked and self.truth is not None:
            result["check"] = self._check(contender, attention)
        return {"quick_s": self.watch.quick(run), "run": run}

    def _check(self, contender: Contender, attention: Attention) -> Record:
        assert self.truth is not None
        if self.direction == "backward":
            return self.truth.check_backward(attention)
        with torch.no_grad():
            check = self.truth.check_forward(attention)
            if contender.name in TEMPLATES:
                p = self.problem
                kernel = p.kernel(TEMPLATES[contender.name])
                out, lse = kernel(p.q, p.k, p.v, return_lse=True, **p.inputs)
                check |= self.truth.check_lse(lse, check["ok"])
                if contender.name != "ours":
                    check["from_ours"] = self._difference(out)
        return check

    def _difference(self, out: Tensor) -> float:
        """Of an output from the plain template's: the largest, over its largest number."""
        p = self.problem
        plain = p.kernel()(p.q, p.k, p.v, **p.inputs)
        assert isinstance(plain, Tensor)
        return float((out - plain).abs().max() / plain.abs().max())

    def _keep_best(self, runs: dict[str, Run], contender: Contender) -> None:
        """Of a peer's options only the fastest that is right stays: the others' memory is freed."""
        rivals = [n for n in runs if n.split("/")[0] == contender.peer]
        rank = {n: (not self._right(n), self.found[n]["quick_s"]) for n in rivals}
        for name in sorted(rivals, key=rank.__getitem__)[1:]:
            del runs[name]

    def _right(self, name: str) -> bool:
        return bool(self.found[name].get("check", {}).get("ok", True))

    def _rates(self, name: str, seconds: float) -> Record:
        """TFLOP/s on kept pairs, and ours on visited pairs too; all pairs for the dense problem."""
        unit = PRODUCTS[self.direction] * self.problem.workload.head_dim / seconds * 1e-12
        batch, heads, queries, _ = self.problem.q.shape
        if not self.found[name]["masked"]:
            return {"tflops": batch * heads * queries * self.problem.k.shape[2] * unit}
        pairs, visited = self.record.get("pairs"), self.record["plan"].get("visited_pairs")
        rates = {"tflops": pairs * unit} if pairs else {}
        if name in TEMPLATES and visited:
            rates["tflops_visited"] = visited * unit
        return rates


def _run(problem: Problem, attention: Attention, direction: str) -> Run:
    if direction == "forward":

        def forward() -> Tensor:
            with torch.no_grad():
                return attention(problem.q, problem.k, problem.v)

        return forward
    leaves = [x.detach().requires_grad_() for x in (problem.q, problem.k, problem.v)]
    out = attention(*leaves)
    upstream = torch.randn_like(out)
    return lambda: torch.autograd.grad(out, leaves, upstream, retain_graph=True)


def _truth(problem: Problem) -> Truth:
    return Truth(problem.mask, problem.q, problem.k, problem.v, problem.arrays)


def _pairs(problem: Problem) -> Record:
    batch, heads, queries, _ = problem.q.shape
    pairs = problem.pairs()
    return {"pairs": pairs, "density": pairs / (batch * heads * queries * problem.k.shape[2])}


def planned(problem: Problem) -> maskdsl.Plan:
    """The plan of our Triton kernel; where there is none, what it would have on the GPU that is
    predicted.
    """
    try:
        kernel = problem.kernel()
        if kernel.backend == "triton":
            return kernel.plan
    except maskdsl.MaskError:
        pass
    w = problem.workload
    return problem.mask.plan(**w.tiles, target="sm_90", head_dim=w.head_dim)


def _plan(problem: Problem) -> Record:
    start = time.perf_counter()
    plan = planned(problem)
    tiles = plan.tiles
    seconds = time.perf_counter() - start
    lanes = math.prod(
        math.prod(tile.size) for tile in (plan.q_grid_.tile, plan.kv_grid_.tile)
    )  # every workload has one segment
    decided = plan.pairs is not None and problem.workload.queries is None
    visited = (tiles.full + tiles.partial) * lanes * problem.workload.batch
    return {
        "seconds": seconds,
        "q_tile": str(plan.q_tile),
        "kv_tile": str(plan.kv_tile),
        "full": tiles.full,
        "partial": tiles.partial,
        "total": tiles.total,
        "visited_pairs": visited if decided else None,
    }


def _predict(problem: Problem, direction: str) -> Record:
    w = problem.workload
    given = {"head_dim": w.head_dim, "batch": w.batch, "dtype": w.dtype, "direction": direction}
    if w.queries is not None:
        given["queries"] = w.queries
    subject: Any = planned(problem)
    with suppress(maskdsl.MaskError):
        kernel = problem.kernel()
        if kernel.backend == "triton":  # its gradients have tiles of their own
            subject = kernel
    # Without its machine code, which would have to be compiled once more.
    p = maskdsl.simulate(subject, device=PREDICTED, compiled={}, **given)  # type: ignore[arg-type]
    return {
        "device": PREDICTED,
        "seconds": p.time,
        "dense_seconds": p.dense_time,
        "bottleneck": p.bottleneck,
        "bounds": {n: x if math.isfinite(x) else None for n, x in p.bounds.items()},
    }
