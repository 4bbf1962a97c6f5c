"""Video: a noisy moving pattern, cleaned by attention: dense, neighborhood, sliding tile, radial.

    python -m examples.video.denoise [--quick] [--out DIRECTORY]

Queries and keys are patches of the noisy video, values its pixels: non-local means in three
dimensions. Per pattern: whether it is exact, the share of dense attention's weight that it keeps,
the quality of the result, the time on this CPU, and what an H100 would gain on a latent of 118,800
tokens. Draws one frame of each, and the keys that one token sees.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch

import maskdsl
from examples.check import exactness, options, seconds

matplotlib.use("Agg")
import matplotlib.pyplot as plt

FILE = Path(__file__).parent / "video.mask"
SIGMA, PATCH, SHARPNESS = 0.25, 7, 10  # noise; side of a patch; logit of a patch and itself


def sizes(t: int, y: int, x: int, large: bool) -> dict[str, dict[str, Any]]:
    """What binds each pattern to a video: windows for a small one, or as published."""
    grid = {"t": t, "y": y, "x": x}
    box, tiles = ([18, 24, 24], [5, 6, 6]) if large else ([7, 9, 9], [3, 3, 3])
    return {
        "neighbors": {**grid, "window": box},
        "sliding_tile": {**grid, "window": tiles, "tile": 4},
        "radial": {"t": t, "s": y * x},
    }


def moving(t: int, side: int) -> np.ndarray:
    """A turning wheel of spokes that drifts to the right, (t, side, side), values in [0, 1]."""
    frame, y, x = np.mgrid[:t, :side, :side]
    x = x - side / 2 - (frame - t / 2) * 0.5
    y = y - side / 2
    spokes = np.cos(6 * (np.arctan2(y, x) + 0.1 * frame))
    return 0.5 + 0.5 * np.tanh(3 * spokes) * np.exp(-((np.hypot(y, x) / (0.45 * side)) ** 4))


def patches(video: np.ndarray) -> torch.Tensor:
    """Patches of each frame around every pixel, (1, 1, pixels, PATCH ** 2), of length 1."""
    edge = PATCH // 2
    padded = np.pad(video - video.mean(), [(0, 0), (edge, edge), (edge, edge)], mode="reflect")
    found = np.lib.stride_tricks.sliding_window_view(padded, (PATCH, PATCH), axis=(1, 2))
    flat = torch.from_numpy(found.reshape(1, 1, video.size, PATCH**2).astype(np.float32))
    return torch.nn.functional.normalize(flat, dim=-1)


def main(argv: Sequence[str] | None = None) -> None:
    args = options(__doc__, argv)
    t, side = (8, 16) if args.quick else (16, 32)
    clean = moving(t, side)
    noisy = clean + np.random.default_rng(0).normal(0, SIGMA, clean.shape)
    keys, pixels = patches(noisy), torch.from_numpy(noisy).float().view(1, 1, -1, 1)
    queries = keys * SHARPNESS * PATCH  # kernels divide by the root of head_dim, PATCH

    def psnr(video: np.ndarray) -> float:
        return float(-10 * np.log10(np.mean((video - clean) ** 2)))

    def run(mask: maskdsl.Mask) -> tuple[np.ndarray, torch.Tensor, float]:
        kernel = maskdsl.compile(mask, head_dim=PATCH**2, value_dim=1)
        time = seconds(lambda: kernel(queries, keys, pixels), repeat=2)
        out, lse = kernel(queries, keys, pixels, return_lse=True)
        return out.view(clean.shape).numpy(), lse, time

    everything = maskdsl.parse("pattern all_pairs over (t, y, x)").bind(t=t, y=side, x=side)
    dense, total, dense_time = run(everything)
    print(f"{clean.size:,} tokens ({t} frames of {side} by {side})")
    print(f"noisy: {psnr(noisy):.2f} dB; dense: {psnr(dense):.2f} dB in {dense_time * 1e3:.0f} ms")
    frames = {
        "clean": clean,
        f"noisy, {psnr(noisy):.1f} dB": noisy,
        f"dense, {psnr(dense):.1f} dB": dense,
    }
    seen = {}
    published = sizes(33, 45, 80, large=True)
    for name, bound in sizes(t, side, side, large=False).items():
        pattern = maskdsl.load(FILE, name=name)
        mask = pattern.bind(**bound)
        out, lse, time = run(mask)
        kept = float(torch.exp(lse - total).mean())
        told = exactness(mask, maskdsl.compile(mask, head_dim=PATCH**2), PATCH**2)
        print(f"\n{name}: {mask.density:.1%} of all pairs; {told}")
        print(
            f"  {psnr(out):.2f} dB in {time * 1e3:.0f} ms, {dense_time / time:.1f} times as fast as"
            f" dense; keeps {kept:.0%} of its weight"
        )
        large = pattern.bind(**published[name])
        p = maskdsl.simulate(large, head_dim=128, heads=24, device="h100")
        print(
            f"  H100, {large.shape[1]:,} tokens, {large.density:.1%} of all pairs, predicted: "
            f"{p.time * 1e3:.0f} ms, {p.speedup:.1f} times as fast as dense"
        )
        frames[f"{name}, {psnr(out):.1f} dB"] = out
        token = np.ravel_multi_index((t // 2, side // 2, side // 3), clean.shape)
        seen[name] = mask.dense(queries=1, q_offset=int(token))[0].reshape(clean.shape)

    figure, axes = plt.subplots(2, 1, figsize=(12, 7), layout="constrained", height_ratios=(1, 1.3))
    figure.suptitle(f"a noisy video of {clean.size:,} tokens, cleaned by attention")
    gap = np.ones((side, 1))
    strip = [np.hstack([video[t // 2], gap]) for video in frames.values()]
    axes[0].imshow(np.hstack(strip), cmap="gray", vmin=0, vmax=1)
    for i, title in enumerate(frames):
        axes[0].text((i + 0.5) * (side + 1), -1, title, ha="center")
    shown = range(0, t, t // 8)
    rows = [np.hstack([np.hstack([box[f], gap * 0.5]) for f in shown]) for box in seen.values()]
    axes[1].imshow(np.vstack(rows), cmap="Blues", vmin=0, vmax=1.3)
    for i, name in enumerate(seen):
        axes[1].text(-1, (i + 0.5) * side, name, ha="right", va="center")
    axes[1].set_title(f"what the token in the middle of frame {t // 2} sees, frame by frame")
    for axis in axes:
        axis.axis("off")
    args.out.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.out / "video.png", dpi=80)
    print(f"\nsaved {args.out / 'video.png'}")


if __name__ == "__main__":
    main()
