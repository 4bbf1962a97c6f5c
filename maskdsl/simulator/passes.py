"""The passes that attention is made of: what each does for a tile, a row and a token."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from maskdsl.errors import BindError, nearest


@dataclass(frozen=True)
class Pass:
    """One kernel. Its rows are tiles of one side ("q" or "k"), which walk tiles of the other.

    For each visited tile: `products` matrix products, the probabilities (with the running maximum
    and sum of a `softmax`, or from a known log-sum-exp), loads of the walked tile of `streams`
    tensors. For each pair an exponential and `vector` fp32 and `integer` other instructions, as
    counted in the machine code of causal kernels for sm_90. Once for each token of its rows: `own`
    tensors read or written. A pass without products only moves what its rows own.
    """

    name: str
    side: str
    products: int
    streams: int
    own: int
    vector: float = 0.0
    integer: float = 0.0
    softmax: bool = False


# Q K^T and P V; k and v stream past each query tile; q is read, o written. A multiply-add, the sum
# and half a conversion for each pair, and the maximum.
FORWARD = Pass(
    "forward", side="q", products=2, streams=2, own=2, vector=2.7, integer=1.1, softmax=True
)

# The deterministic form: sums of do * o by rows; dq by query tiles (S, dP, dQ); dk, dv by key tiles
# (S, dP, dV, dK).
PREPARE = Pass("prepare", side="q", products=0, streams=0, own=2)
QUERY_GRADIENTS = Pass("dq", side="q", products=3, streams=2, own=3, vector=3.5)
KEY_GRADIENTS = Pass("dkv", side="k", products=4, streams=2, own=4, vector=4.5)

DIRECTIONS: Mapping[str, tuple[Pass, ...]] = {
    "forward": (FORWARD,),
    "backward": (PREPARE, QUERY_GRADIENTS, KEY_GRADIENTS),
}


def find_direction(name: object) -> tuple[Pass, ...]:
    """The passes of `"forward"` or `"backward"`. Raises `BindError` for any other."""
    if not isinstance(name, str) or name not in DIRECTIONS:
        raise BindError(
            f"unknown direction '{name}' (known: {', '.join(DIRECTIONS)})"
            f"{nearest(str(name), DIRECTIONS)}"
        )
    return DIRECTIONS[name]
