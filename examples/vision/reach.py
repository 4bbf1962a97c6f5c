"""Vision: Swin, dilated neighborhoods and axial attention on the pixels of a photograph.

    python -m examples.vision.reach [--quick] [--out DIRECTORY]

Per family: whether both of its layers are exact, their time on this CPU beside two layers of dense
attention, how many pixels one pixel hears of after the two, and what an H100 would gain on 512 by
512 tokens. Draws the photograph after two layers that average, and what one pixel heard of.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import torch
from skimage import data, transform
from torch.nn.functional import scaled_dot_product_attention

import maskdsl
from examples.check import exactness, options, seconds

matplotlib.use("Agg")
import matplotlib.pyplot as plt

FILE = Path(__file__).parent / "vision.mask"
HEADS, DIM = 4, 32
LAYERS: dict[str, list[dict[str, Any]]] = {
    "swin": [{"size": 8, "shift": 0}, {"size": 8, "shift": 4}],
    "dilated_neighbors": [{"window": 7, "dilation": 1}, {"window": 7, "dilation": 4}],
    "axial": [{"down": True}, {"down": False}],
}


def main(argv: Sequence[str] | None = None) -> None:
    args = options(__doc__, argv)
    side = 40 if args.quick else 128
    photograph = torch.from_numpy(transform.resize(data.camera(), (side, side))).float()
    q, k, v = (torch.randn(1, HEADS, side**2, DIM) for _ in range(3))
    dense = 2 * seconds(lambda: scaled_dot_product_attention(q, k, v), repeat=2)
    print(f"{side} by {side} pixels; two layers of dense attention: {dense * 1e3:.0f} ms")
    pictures = [photograph]
    for name, layers in LAYERS.items():
        pattern = maskdsl.load(FILE, name=name)
        masks = [pattern.bind(y=side, x=side, heads=HEADS, **layer) for layer in layers]
        kernels = [maskdsl.compile(mask, head_dim=DIM) for mask in masks]
        for mask, kernel, layer in zip(masks, kernels, layers, strict=True):
            told = exactness(mask, kernel, DIM)
            print(f"\n{name} {layer}: {mask.density:.2%} of all pairs; {told}", end="")
        time = seconds(lambda pair=kernels: [kernel(q, k, v) for kernel in pair])
        print(f"\n  this CPU: {time * 1e3:.0f} ms, {dense / time:.0f} times as fast as dense")

        x = photograph.view(1, 1, -1, 1).expand(1, HEADS, -1, DIM).clone().requires_grad_()
        out = x
        for kernel in kernels:  # logits of 0: every layer averages what a pixel sees
            out = kernel(out * 0, out * 0, out)
        pixel = out.view(HEADS, side, side, DIM)[0, side // 3, side // 2, 0]
        heard = torch.autograd.grad(pixel, x)[0][0, 0, :, 0].view(side, side) != 0
        print(f"  after both, a pixel has heard of {int(heard.sum())} of {side**2}")
        pictures += [out.detach()[0, 0, :, 0].view(side, side), heard]

        large = [pattern.bind(y=512, x=512, heads=HEADS, **layer) for layer in layers]
        both = [maskdsl.simulate(m, head_dim=DIM, heads=HEADS, device="h100") for m in large]
        time, full = sum(p.time for p in both), sum(p.dense_time for p in both)
        print(
            f"  H100, 512 by 512, predicted: {time * 1e3:.2f} ms, {full / time:.0f} times as fast "
            "as dense"
        )

    figure, axes = plt.subplots(2, 4, figsize=(12, 6.4), layout="constrained")
    axes[0, 0].imshow(photograph, cmap="gray", vmin=0, vmax=1)
    axes[0, 0].set_title("the photograph")
    for i, name in enumerate(LAYERS):
        average, heard = pictures[1 + 2 * i : 3 + 2 * i]
        axes[0, i + 1].imshow(average, cmap="gray", vmin=0, vmax=1)
        axes[0, i + 1].set_title(f"{name}, two layers")
        axes[1, i + 1].imshow(photograph, cmap="gray", vmin=0, vmax=1)
        axes[1, i + 1].imshow(heard, cmap="Blues", alpha=0.75 * heard.float(), vmin=0, vmax=1.3)
        axes[1, i + 1].plot(side // 2, side // 3, "o", color="tab:orange", markersize=5)
        axes[1, i + 1].set_title(f"the orange pixel heard of {int(heard.sum())}")
    for axis in axes.flat:
        axis.axis("off")
    args.out.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.out / "vision.png", dpi=80)
    print(f"\nsaved {args.out / 'vision.png'}")


if __name__ == "__main__":
    main()
