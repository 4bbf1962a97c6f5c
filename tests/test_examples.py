"""The examples run, scaled down, and say of their own results that they are exact."""

import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import maskdsl

ROOT = Path(__file__).parent.parent
EXACT = re.compile(r"exact in (\d+) rows, error (\S+)")

# How many lines say that a kernel is exact, and the picture.
EXAMPLES: dict[str, tuple[int, str]] = {
    "video.denoise": (3, "video.png"),
    "vision.reach": (6, "vision.png"),
    "long_text.read": (4, ""),
    "packed.pack": (1, ""),
    "scores.bias": (0, ""),
    "heads.mix": (2, ""),
    "blocks.select": (1, "blocks.png"),
    "training.train": (0, "training.png"),
}


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(str(ROOT))
    state = torch.random.get_rng_state()
    yield
    torch.random.set_rng_state(state)


def quick(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """What the example prints."""
    if EXAMPLES[name][1]:
        pytest.importorskip("matplotlib")
        pytest.importorskip("skimage")
    import_module(f"examples.{name}").main(["--quick", "--out", str(tmp_path)])
    return capsys.readouterr().out


@pytest.mark.parametrize("name", EXAMPLES)
def test_it_is_exact(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = quick(name, tmp_path, capsys)
    lines, picture = EXAMPLES[name]
    found = EXACT.findall(told)
    assert "WRONG" not in told
    assert len(found) == lines
    for rows, error in found:
        assert int(rows) >= 256 and 0 <= float(error) < 5e-6
    others = re.findall(r"(?:differs? by at most|relative error) (\S+?)[;\s]", told)
    assert len(others) == {"packed.pack": 4, "scores.bias": 14, "training.train": 1}.get(name, 0)
    assert all(0 <= float(error) < 3e-5 for error in others)
    assert told.count("decoding the last token gives its row: True") == 4 * (
        name == "long_text.read"
    )
    drawn = sorted(p.name for p in tmp_path.iterdir())
    assert drawn == ([picture] if picture else [])
    if picture:
        assert (tmp_path / picture).stat().st_size > 5000


def test_every_example_is_listed() -> None:
    shown = (ROOT / "examples" / "README.md").read_text(encoding="utf-8")
    for name in EXAMPLES:
        assert f"python -m examples.{name}`" in shown
        assert (ROOT / "examples" / name.replace(".", "/")).with_suffix(".py").exists()
    for folder in (ROOT / "examples").iterdir():
        if folder.is_dir() and folder.name != "__pycache__":
            assert f"]({folder.name})" in shown, folder


class Rolled:
    """A kernel that sees the wrong keys: those of the query `by` places on."""

    def __init__(self, kernel: Any, by: int) -> None:
        self.kernel, self.by = kernel, by

    def __call__(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return self.kernel(q, k, v).roll(self.by, 2)


def test_the_check_finds_wrong_keys() -> None:
    check = import_module("examples.check")
    narrow = maskdsl.load("std/sliding_window").bind(n=128, window=7, heads=2)
    wide = narrow.pattern.bind(n=128, window=8, heads=2)
    right = maskdsl.compile(narrow, head_dim=16)
    assert check.exactness(narrow, right, 16).startswith("exact in 256 rows")
    assert "WRONG" in check.exactness(wide, right, 16)
    assert "WRONG" in check.exactness(narrow, Rolled(right, 1), 16)


def test_the_check_is_dense_attention() -> None:
    check = import_module("examples.check")
    mask = maskdsl.load("std/causal").bind(n=48, heads=2, kv_heads=1)
    q, k, v = torch.randn(2, 2, 48, 8), torch.randn(2, 1, 48, 8), torch.randn(2, 1, 48, 8)
    wanted = torch.nn.functional.scaled_dot_product_attention(
        q.double(), k.double(), v.double(), is_causal=True, enable_gqa=True
    )
    rows = check.dense_rows(mask, q, k, v, 16, 32)
    np.testing.assert_allclose(rows, wanted[:, :, 16:], atol=1e-12)
