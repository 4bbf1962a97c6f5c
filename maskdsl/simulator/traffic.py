"""Bytes between the caches and the memory of a device."""

from __future__ import annotations

from dataclasses import dataclass

from maskdsl.simulator.cost import TileShape
from maskdsl.simulator.devices import Device
from maskdsl.simulator.passes import Pass
from maskdsl.simulator.plans import Rows


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
    rows: Rows, tensors: Tensors, shape: TileShape, step: Pass, device: Device, programs: int
) -> float:
    """Bytes that all `rows` read from and write to memory, `programs` of them at a time.

    Tensors of the rows' own side count once and whole. Walked ones (k and v; for rows of keys, q
    and do) are shared by the rows that run at the same time: those of one head, and of the heads
    that share k and v. They come from memory once where those of a head fit the last cache or all
    of its rows run at once, otherwise once for every wave of its rows; but never more than the
    visited tiles hold.
    """
    tokens, heads = tensors.side(step.side)
    walked_tokens, walked_heads = tensors.side("k" if step.side == "q" else "q")
    own = float(step.own * tokens * heads * shape.token_bytes)
    walked = step.streams * walked_tokens * shape.token_bytes  # of one head
    sharing = max(1.0, tensors.q_heads / tensors.kv_heads) if step.side == "q" else 1.0
    rows_of_head = max(1, rows.number // max(tensors.q_heads, 1))
    fits = walked <= device.last_level_cache_bytes
    waves = 1 if fits else -(-rows_of_head // programs)
    lanes = shape.lanes("k" if step.side == "q" else "q")
    visited = rows.visited * step.streams * lanes * shape.token_bytes / sharing
    return own + min(float(waves * walked * walked_heads), visited)
