"""A fuzz of the call boundary: every call gives the right answer or a MaskError, 2,000 times."""

from __future__ import annotations

import threading
import traceback
import warnings
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import call_changes  # noqa: F401 (it fills the table of changes)
import numpy as np
import pytest
import torch
from call_cases import FINE, SUBJECTS, WRONG, Arguments, Case, Subject, expected, host, random_case

from maskdsl.errors import MaskError

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # of torch, for odd tensors

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
PER_BACKEND = {"torch": 1300, "reference": 700, "triton": 60}
# What is known to go wrong, by backend and change; each has a test of its own below.
OPEN = [
    ("triton", "values_not_finite", "a weight of zero times NaN is NaN"),
]


def on(subject: Subject, backend: str) -> Subject | None:
    """The subject on a backend; None where the backend does not run it here."""
    if backend == "triton" and subject.dtype in (torch.bfloat16, torch.float64):
        return None
    return replace(subject, backend=backend)


KERNELS: dict[tuple[int, str], Any] = {}


def kernel_of(number: int, backend: str) -> Any:
    if (number, backend) not in KERNELS:
        subject = on(SUBJECTS[number], backend)
        KERNELS[number, backend] = subject.kernel if subject else None
    return KERNELS[number, backend]


def fault(case: Case, backend: str) -> str | None:
    """What is wrong with the outcome of a case; None where nothing is."""
    kernel = kernel_of(case.subject, backend)
    given, outcome = case.arguments()
    before = contents(given)
    try:
        with warnings.catch_warnings(), torch.set_grad_enabled(not given.no_grad), given.mode():
            warnings.simplefilter("error")
            warnings.simplefilter("ignore", RuntimeWarning)  # of numpy in triton's interpreter
            found = kernel(*given.tensors.values(), **given.options, **given.inputs)
    except MaskError as error:
        if outcome == FINE:
            return f"a call that fits raises {error!r}"
        return None if len(str(error.message).splitlines()) == 1 else f"{error!r} has many lines"
    except Exception:
        return traceback.format_exc(limit=-4)
    if outcome == WRONG:
        return "a call that does not fit is accepted"
    if contents(given) != before:
        return "what the call was given has changed"
    if "floats_without_a_value" in case.changes:
        return None
    try:
        return wrong(given, found) or wrong_gradients(given, found)
    except Exception:
        return traceback.format_exc(limit=-6)


def contents(given: Arguments) -> list[str]:
    """What tensors hold, those that can be read."""
    tensors = (*given.tensors.values(), *given.inputs.values())
    dense = [
        x for x in tensors
        if isinstance(x, torch.Tensor) and x.layout == torch.strided and not x.is_nested
        and x.device.type == "cpu" and not x.is_quantized
    ]  # fmt: skip
    return [repr(x.tolist()) for x in dense]


def wrong(given: Arguments, found: Any) -> str | None:
    """How an answer differs from the definition."""
    subject = given.subject
    out, lse = found if given.options.get("return_lse") else (found, None)
    want, want_lse, sound = expected(given)
    if subject.layout == "bnhd":
        out = out.transpose(1, 2)
    facts = (type(out), out.dtype, out.device.type, tuple(out.shape))
    if facts[1:] != (subject.dtype, "cpu", want.shape):
        return f"the output is {facts}"
    atol = TOLERANCE[subject.dtype] * 4
    near = np.isclose(out.detach().to(torch.float64).numpy(), want, rtol=atol, atol=atol)
    if not near[sound].all():
        at = np.argwhere(~near & sound[..., None])[0]
        return f"out{at.tolist()} is {out[tuple(at)]}, and {want[tuple(at)]} by the definition"
    if lse is None:
        return None
    compute = torch.float64 if subject.dtype == torch.float64 else torch.float32
    if (lse.dtype, tuple(lse.shape)) != (compute, want_lse.shape):
        return f"the log-sum-exp is {lse.dtype} {tuple(lse.shape)}"
    near = np.isclose(lse.detach().to(torch.float64).numpy(), want_lse, rtol=1e-5, atol=1e-5)
    return None if near[sound].all() else "the log-sum-exp is wrong"


def wrong_gradients(given: Arguments, found: Any) -> str | None:
    """How the slope along a random direction differs from a quotient of differences by the
    definition, for each argument that wants gradients.
    """
    tensors = {**given.tensors, **given.inputs}
    leaves = {n: x for n, x in tensors.items() if isinstance(x, torch.Tensor) and x.requires_grad}
    if not leaves or given.no_grad or not expected(given)[2].all():
        return None
    out = found[0] if isinstance(found, tuple) else found
    rng = np.random.default_rng(0)
    weight = rng.integers(-2, 3, out.shape)
    total = (out * torch.from_numpy(weight).to(out.dtype)).sum()
    slopes = torch.autograd.grad(total, list(leaves.values()), allow_unused=True)
    if given.subject.layout == "bnhd":
        weight = weight.swapaxes(1, 2)
    for (name, x), slope in zip(leaves.items(), slopes, strict=True):
        if name == "heat":
            continue  # it decides which keys are kept, and has no slope
        if slope is None or slope.shape != x.shape or slope.dtype != x.dtype:
            return f"{name} has the gradient {slope}"
        way = rng.integers(-2, 3, tuple(x.shape))
        ends = (expected(given, **{name: host(x) + s * way})[0] for s in (1e-5, -1e-5))
        want = float(((next(ends) - next(ends)) / 2e-5 * weight).sum())
        have = float((host(slope) * way).sum())
        close = max(TOLERANCE[given.subject.dtype], 1e-7) * 30
        if not abs(have - want) <= close * (1 + np.abs(host(slope) * way).sum()):
            return f"the slope of {name} is {have}, and {want} by the definition"
    return None


def shrink(case: Case, backend: str) -> Case:
    """The case with as few changes as still fail."""
    for name in case.changes:
        fewer = replace(case, changes=tuple(c for c in case.changes if c != name))
        if fault(fewer, backend):
            return shrink(fewer, backend)
    return case


@pytest.fixture
def _warnings_always() -> Iterator[None]:
    torch.set_warn_always(True)
    yield
    torch.set_warn_always(False)


@pytest.mark.usefixtures("_warnings_always")
@pytest.mark.parametrize("backend", PER_BACKEND)
def test_every_call_gives_the_right_answer_or_a_mask_error(backend: str) -> None:
    tried = number = 0
    closed = {change for where, change, _ in OPEN if where == backend}
    while tried < PER_BACKEND[backend]:
        case = random_case(number)
        number += 1
        if kernel_of(case.subject, backend) is None or closed & {*case.changes}:
            continue
        tried += 1
        if fault(case, backend):
            case = shrink(case, backend)
            subject = SUBJECTS[case.subject]
            pytest.fail(f"{backend}, {subject}\n{case}:\n{fault(case, backend)}")


@pytest.mark.parametrize(
    "backend, change",
    [
        pytest.param(where, change, marks=pytest.mark.xfail(reason=why, strict=True))
        for where, change, why in OPEN
    ],
)
def test_what_is_known_to_go_wrong(backend: str, change: str) -> None:
    cases = [Case(n, seed, (change,)) for n in range(len(SUBJECTS)) for seed in range(3)]
    faults = [fault(c, backend) for c in cases if kernel_of(c.subject, backend) is not None]
    assert not any(faults)


def test_the_fuzz_finds_what_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each kind of fault is told: a wrong answer, a wrong gradient, another error, none."""
    right = kernel_of(0, "torch")

    def found(call: Any, *changes: str) -> str:
        monkeypatch.setitem(KERNELS, (0, "torch"), call)
        return fault(Case(0, 0, changes), "torch") or ""

    def scaled(q: Any, k: Any, v: Any, **options: Any) -> Any:
        return right(q, k, v.detach() * 2 - v, **options)  # the same values, another gradient

    def spoiling(q: Any, k: Any, v: Any, **options: Any) -> Any:
        out = right(q, k, v, **options)
        v += 1
        return out

    def failing(*_: Any, **__: Any) -> Any:
        raise IndexError("no")

    assert found(right) == found(right, "wants_gradients") == found(right, "another_rank") == ""
    assert "by the definition" in found(lambda q, k, v, **o: right(q, k, v + 1, **o))
    assert "the slope of" in found(scaled, "parameter", "wants_gradients")
    assert "has changed" in found(spoiling)
    assert "IndexError" in found(failing)
    assert "is accepted" in found(lambda q, k, v, **o: q, "another_rank")
    assert "a call that fits raises" in found(lambda q, k, v, **o: right(q[0], k, v))


def test_threads_may_share_a_kernel() -> None:
    for backend in ("torch", "reference"):
        wrong_ones: list[str] = []

        def calls(first: int, backend: str = backend, into: list[str] = wrong_ones) -> None:
            for seed in range(first, first + 2):
                for number in range(len(SUBJECTS)):
                    given, _ = Case(number, seed, ("with_lse",)).arguments()
                    out = kernel_of(number, backend)(
                        *given.tensors.values(), **given.options, **given.inputs
                    )
                    into += filter(None, [wrong(given, out)])

        threads = [threading.Thread(target=calls, args=(10 * i,)) for i in range(4)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        assert not wrong_ones
