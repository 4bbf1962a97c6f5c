"""Bytes between the caches and the memory of a device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from maskdsl.simulator.cost import TileShape
from maskdsl.simulator.devices import Device
from maskdsl.simulator.passes import Pass
from maskdsl.simulator.rows import Rows


@dataclass(frozen=True)
class Tensors:
    """Tokens of one head of q and of k, and how many heads each has over the whole batch."""

    queries: int
    keys: int
    q_heads: int
    kv_heads: int

    def side(self, side: str) -> tuple[int, int]:
        """(tokens, heads)"""
        return (self.queries, self.q_heads) if side == "q" else (self.keys, self.kv_heads)


def memory_traffic(
    rows: Rows,
    tensors: Tensors,
    shapes: Sequence[TileShape],
    step: Pass,
    device: Device,
    programs: int,
) -> float:
    """Bytes that all `rows` read from and write to memory, `programs` of them at a time. shapes: of
    the tiles of each segment that they walk.

    Tensors of the rows' own side count once and whole. Walked ones (k and v; for rows of keys, q
    and do) are shared by the rows that run at the same time: those of one head, and of the heads
    that share k and v. They come from memory once where those of a head fit the last cache or all
    of its rows run at once, otherwise once for every wave of its rows; but never more than the
    visited tiles hold.
    """
    tokens, heads = tensors.side(step.side)
    walked_tokens, walked_heads = tensors.side("k" if step.side == "q" else "q")
    own = float(tokens * heads * shapes[0].token_bytes(step.own))
    each = shapes[0].token_bytes(step.streams)
    walked = walked_tokens * each  # of one head
    sharing = max(1.0, tensors.q_heads / tensors.kv_heads) if step.side == "q" else 1.0
    rows_of_head = max(1, rows.number // max(heads, 1))
    fits = walked <= device.last_level_cache_bytes
    waves = 1 if fits else -(-rows_of_head // programs)
    other = "k" if step.side == "q" else "q"
    lanes = sum(int(n) * s.lanes(other) for n, s in zip(rows.tiles, shapes, strict=True))
    return own + min(float(waves * walked * walked_heads), lanes * each / sharing)
