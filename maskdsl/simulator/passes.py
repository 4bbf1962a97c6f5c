"""The passes that attention is made of: what each does for a tile, a row and a token."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from maskdsl.errors import BindError, nearest


@dataclass(frozen=True)
class Pass:
    """One kernel. Its rows are tiles of one side ("q" or "k"), which walk tiles of the other.

    Pairs count what has the features of q and k, and what has those of v and o. For each visited
    tile: `products` matrix products, the probabilities (with the running maximum and sum of a
    `softmax`, or from a known log-sum-exp), loads of the walked tile of `streams` tensors. For each
    pair an exponential and `vector` fp32 and `integer` other instructions, as counted in the
    machine code of causal kernels for sm_90. Once for each token of its rows: `own` tensors read or
    written.
    """

    name: str
    side: str
    products: tuple[int, int]
    streams: tuple[int, int]
    own: tuple[int, int]
    vector: float = 0.0
    integer: float = 0.0
    softmax: bool = False


# Q K^T and P V; k and v stream past each query tile; q is read, o written. A multiply-add, the sum
# and half a conversion for each pair, and the maximum.
FORWARD = Pass(
    "forward", "q", (1, 1), streams=(1, 1), own=(1, 1), vector=2.7, integer=1.1, softmax=True
)

# The deterministic form: dq by query tiles (S, dP, dQ), with the sums of do * o of its rows; dk, dv
# by key tiles (S, dP, dV, dK).
QUERY_GRADIENTS = Pass("dq", "q", (2, 1), streams=(1, 1), own=(2, 2), vector=3.5)
KEY_GRADIENTS = Pass("dkv", "k", (2, 2), streams=(1, 1), own=(2, 2), vector=4.5)

DIRECTIONS: Mapping[str, tuple[Pass, ...]] = {
    "forward": (FORWARD,),
    "backward": (QUERY_GRADIENTS, KEY_GRADIENTS),
}


def find_direction(name: object) -> tuple[Pass, ...]:
    """The passes of `"forward"` or `"backward"`. Raises `BindError` for any other."""
    if not isinstance(name, str) or name not in DIRECTIONS:
        raise BindError(
            f"unknown direction '{name}' (known: {', '.join(DIRECTIONS)})"
            f"{nearest(str(name), DIRECTIONS)}"
        )
    return DIRECTIONS[name]
