"""ALiBi and softcap: score clauses, their gradients, and a slope that is learned.

    python -m examples.scores.bias [--quick]

Per pattern: the largest differences of outputs and gradients (of q, k, v and the slopes) from the
same formula in plain torch and float64, and the time of both on this CPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

import maskdsl
from examples.check import options, seconds

FILE = Path(__file__).parent / "scores.mask"
HEADS, DIM, CAP = 4, 64, 5.0  # a cap so low that the logits feel it


def plain(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, slope: torch.Tensor | None,
    cap: float | None, window: int,
) -> torch.Tensor:  # fmt: skip
    """The patterns without MaskDSL: a matrix of all logits, changed step by step."""
    place = torch.arange(q.shape[2])
    distance = place[:, None] - place
    logits = q @ k.mT * DIM**-0.5
    if cap is not None:
        logits = cap * torch.tanh(logits / cap)
    if slope is not None:
        logits = logits - slope[:, None, None] * distance
    kept = (distance >= 0) & (distance < window)
    return torch.softmax(logits.masked_fill(~kept, -torch.inf), -1) @ v


def main(argv: Sequence[str] | None = None) -> None:
    n = 512 if options(__doc__, argv).quick else 2048
    torch.manual_seed(0)
    q, k, v, do = (torch.randn(1, HEADS, n, DIM) for _ in range(4))
    q *= 8  # logits of some tens
    slope = torch.from_numpy(maskdsl.tables.alibi_slopes(HEADS)).float()
    for name in ("alibi", "softcap", "both"):
        capped = {} if name == "alibi" else {"cap": CAP, "window": n // 8}
        mask = maskdsl.load(FILE, name=name).bind(n=n, heads=HEADS, **capped)
        kernel = maskdsl.compile(mask, head_dim=DIM)
        inputs = {} if name == "softcap" else {"slope": slope}

        names = ["q", "k", "v", *inputs]
        ours = [x.clone().requires_grad_() for x in (q, k, v, *inputs.values())]
        out = kernel(*ours[:3], **dict(zip(inputs, ours[3:], strict=True)))
        found = torch.autograd.grad(out, ours, do)
        theirs = [x.double().requires_grad_() for x in (q, k, v, *inputs.values())]
        rest = (
            None if name == "softcap" else theirs[3],
            capped.get("cap"),
            capped.get("window", n),
        )
        wanted_out = plain(*theirs[:3], *rest)
        wanted = torch.autograd.grad(wanted_out, theirs, do.double())
        print(
            f"\n{name}: output differs by at most {(out - wanted_out).abs().max():.1e}; gradients:"
        )
        for at, x, y in zip(names, found, wanted, strict=True):
            print(f"  {at}: relative error {(x - y).norm() / y.norm():.1e}")

        with torch.no_grad():
            time = seconds(lambda kernel=kernel, inputs=inputs: kernel(q, k, v, **inputs))
            matrix = seconds(lambda rest=rest, i=inputs: plain(q, k, v, i.get("slope"), *rest[1:]))
        print(f"  this CPU: {time * 1e3:.0f} ms, plain torch {matrix * 1e3:.0f} ms")
        p = maskdsl.simulate(mask, head_dim=DIM, device="h100")
        print(f"  H100, predicted: {p.time * 1e6:.0f} us; limited by {p.bottleneck}")


if __name__ == "__main__":
    main()
