"""What to bind every library pattern with for `tokens` tokens, and a tile that suits it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

TEXT = 226  # tokens of the text segments


def bindings(tokens: int) -> dict[str, tuple[dict[str, Any], Any]]:
    """Per entry, or `file:pattern`: (what to bind, tile); `tokens` is a power of 4, 256 or more.

    The other files are bound to `n` alone, with tiles of 64.
    """
    n = tokens
    side = math.isqrt(n)
    image = {"y": side, "x": side}
    video = {"t": 16, "y": side // 4, "x": side // 4}
    frames = {"t": 16, "s": n // 16}
    no = (False,) * 3
    some = np.arange(n)[None]
    return {
        "alibi": ({"n": n, "heads": 8}, 64),
        "alternating": ({"n": n, "layer": 0}, 64),
        "axial": ({**image, "along": 1}, (8, 8)),
        "axial:criss_cross": (image, (8, 8)),
        "bigbird": ({"n": n, "size": 128}, 64),
        "block": ({**image, "size": (7, 7)}, (8, 8)),
        "block_diffusion": ({"n": n // 2, "size": 64}, (64, 64)),
        "blocks": ({"n": n, "size": 1000}, 64),
        "chunked": ({"n": n, "size": 2048}, 64),
        "dilated": ({"n": n, "window": 64, "dilation": 8}, 64),
        "distance_decay": ({"n": n, "heads": 8}, 64),
        "fixed": ({"n": n, "heads": 4, "groups": 4}, 64),
        "full": ({"n": n}, 64),
        "grid": ({**image, "count": (8, 8)}, (8, 8)),
        "local": ({"n": n, "left": 500, "right": 300}, 64),
        "longnet": ({"n": n, "segment": 2048, "rate": 4, "heads": 4}, 64),
        "natten1d": ({"x": n, "window": 255}, 64),
        "natten2d": (
            {**image, "window": (13, 13), "stride": (1, 1), "dilation": (1, 1), "causal": no[:2]},
            (8, 8),
        ),
        "natten3d": (
            {**video, "window": (5, 9, 9), "stride": (1,) * 3, "dilation": (1,) * 3, "causal": no},
            (4, 4, 4),
        ),
        "overlapping": (image, (8, 8)),
        "prefix_lm": ({"n": n, "prefix": 1000}, 64),
        "radial": (frames, (1, 64)),
        "relative_bias": ({"n": n, "heads": 8}, 64),
        "s2_shard": ({"n": n, "heads": 4}, 64),
        "shifted_groups": ({"n": n, "size": 2048, "heads": 8}, 64),
        "shifted_wrap": ({**image, "window": (64, 64), "shift": (16, 16)}, (8, 8)),
        "sink_logits": ({"n": n, "heads": 8}, 64),
        "sliding_tile": (
            {**video, "tile": (4, 4, 4), "window": [(3, 3, 3), (3, 5, 1)], "heads": 2}, (4, 4, 4),
        ),
        "sliding_window": ({"n": n, "window": 1024}, 64),
        "sliding_tile:sliding_tile_text": (
            {**video, "p": TEXT, "tile": (4, 4, 4), "window": [(3, 3, 3)]}, ((4, 4, 4), 64),
        ),
        "spatial_head": (frames, (1, 64)),
        "spatial_head:spatial_head_text": ({**frames, "p": TEXT}, (64, (1, 64))),
        "strided": ({"n": n, "heads": 4}, 64),
        "stripe": ({**image, "width": 7, "heads": 4}, (8, 8)),
        "swin": ({**image, "window": (8, 8), "shift": (4, 4)}, (8, 8)),
        "swin:swin3d": ({**video, "window": (8, 7, 7), "shift": (4, 3, 3)}, (4, 4, 4)),
        "temporal_head": (frames, (4, 16)),
        "temporal_head:temporal_head_text": ({**frames, "p": TEXT}, (64, (4, 16))),
        "vertical_slash": (
            {"n": n, "vertical": some % 1000 == 7, "slash": some < 1024},
            64,
        ),
    }  # fmt: skip
