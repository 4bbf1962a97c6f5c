"""The command line, as a user types it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from maskdsl.cli import main


def in_process(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *args: str
) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of `maskdsl ...`."""
    monkeypatch.setattr(sys, "argv", ["maskdsl", *args])
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0), *capsys.readouterr()


def run(*args: str, code: int = 0) -> tuple[str, str]:
    """(stdout, stderr) of `maskdsl ...` in a process of its own."""
    command = [sys.executable, "-c", "from maskdsl.cli import main; main()", *args]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "COLUMNS": "100"}
    )
    assert done.returncode == code, done.stderr
    return done.stdout, done.stderr


def test_show_in_the_terminal() -> None:
    out, _ = run(
        "show", "std/sliding_window", "n=64", "window=32", "--q-tile", "16", "--kv-tile", "16"
    )
    assert out.splitlines()[:4] == ["++......", "##++....", "++##++..", "..++##++"]
    assert "3 full, 6 partial, 7 empty" in out


def test_show_saves_a_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    image = pytest.importorskip("PIL.Image")
    file = tmp_path / "mask.png"
    run(
        "show",
        "std/natten1d",
        "x=48",
        "window=9",
        "--q-tile",
        "8",
        "--kv-tile",
        "8",
        "-o",
        str(file),
    )
    pixels = image.open(file).convert("RGB")
    assert pixels.size[0] > 1000
    colors = {c for _, c in pixels.getcolors(2**24)}
    assert {(242, 166, 90), (42, 111, 151)} <= colors  # partial tiles; the keys of a query


def test_simulate_prints_json() -> None:
    out, _ = run(
        "simulate", "std/sliding_window", "n=8192", "window=1024", "--device", "h100", "--json",
        "--q-tile", "128", "--kv-tile", "128",
    )  # fmt: skip
    p = json.loads(out)
    assert p["speedup"] > 1
    assert p["bounds"]["flops"] == pytest.approx(8192**2 / (8192 * 1024 - 1024 * 1023 / 2))


@pytest.mark.parametrize(
    ("args", "cause"),
    [
        (("show", "none.mask"), "none.mask: cannot be read"),
        (("show", "std/radial", "t=2", "s=x"), "'x' is not a number"),
        (("show", "std/radial", "t"), "not of the form NAME=VALUE"),
        (("show", "std/radial", "t=3"), "lacks the extent of s"),
        (("show", "std/causal", "n=9", "--q-tile", "4y4"), "written as sizes per axis"),
        (("show", "std/causal", "n=9", "--head", "3"), "no head 3"),
        (("simulate", "std/causal", "n=64", "--device", "h1000"), "unknown device"),
        (("simulate", "std/causal", "n=64", "--dtype", "int3"), "dtype"),
    ],
)
def test_errors_are_lines_and_not_tracebacks(
    args: tuple[str, ...],
    cause: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, _, err = in_process(monkeypatch, capsys, *args)
    assert code == 1
    assert cause in err and "Traceback" not in err
    assert err.count("\n") == 1


def test_an_error_ends_the_process_with_a_line() -> None:
    out, err = run("show", "std/radail", "t=2", code=1)
    assert out == "" and "did you mean 'std/radial'" in err and err.count("\n") == 1
