"""The benchmark of predictions: its summary by hand, and a run scaled down on the CPU."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import tiles
from benchmarks.suite import load_workloads


def choice(lanes, predicted, seconds):
    return {"lanes": lanes, "predicted": predicted, "seconds": seconds}


def test_errors_and_what_following_the_prediction_costs() -> None:
    record = {
        "title": "one",
        "choices": [
            choice((128, 64), 1.1, 1.0),
            choice((64, 64), 0.9, 1.2),
            {"lanes": (256, 64), "refused": "too large"},
            choice((64, 32), 1.5, 1.5),
        ],
    }
    found = tiles.summary(record)
    assert found["choices"] == 3 and found["error"] == pytest.approx(0.1)
    assert found["mean_error"] == pytest.approx((0.1 + 0.25 + 0) / 3)
    assert found["loss"] == pytest.approx(0.2)  # 0.9 is predicted to be best, and takes 1.2
    other = {"title": "two", "choices": [{"lanes": (128, 64), "failed": "x"}]}
    text = tiles.table({"workloads": [record, other]})
    assert "| one | 3 | +10% | 12% | 1.20 |" in text and "| two | none |" in text
    assert "mean absolute error 10.0% over 1 workloads" in text and "at most 20.0% longer" in text


def test_ten_choices_the_default_first() -> None:
    for w in load_workloads().values():
        lanes = tiles.choices(w)
        assert len(set(lanes)) == 10
        assert lanes[0] == ((128, 128) if w.head_dim <= 64 else (128, 64))


def test_it_runs_scaled_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(tiles, "CHOICES", 2)
    path = tmp_path / "tiles.json"
    tiles.main(["--json", str(path), "--tiny", "--only", "window-32k"])
    (workload,) = json.loads(path.read_text())["workloads"]
    assert all(c["seconds"] > 0 and c["predicted"] > 0 for c in workload["choices"])
    assert workload["title"] in capsys.readouterr().out
