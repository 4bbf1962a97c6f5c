"""The command line, as a user types it: in this process, but for what only a process shows."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import maskdsl
from maskdsl.cli import app, complete, main

COMMAND = [sys.executable, "-c", "from maskdsl.cli import main; main()"]
NATTEN = (
    "std/natten2d", "y=16", "x=16", "window=[5,5]", "stride=[1,1]", "dilation=[1,1]",
    "causal=[false,false]",
)  # fmt: skip


class Run:
    """Runs `maskdsl ...` and gives (stdout, stderr)."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.capsys = capsys

    def __call__(self, *args: str, code: int = 0) -> tuple[str, str]:
        found: Any = 0
        try:
            main(list(args))
        except SystemExit as stop:
            found = stop.code or 0
        out, err = self.capsys.readouterr()
        assert found == code, (found, out, err)
        return out, err

    def json(self, *args: str) -> Any:
        """Everything on standard output, as JSON."""
        out, err = self(*args, "--json")
        assert not err
        return json.loads(out, parse_constant=lambda x: pytest.fail(f"{x} is no JSON"))


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("COLUMNS", "100")
    return Run(capsys)


def process(*args: str, **options: Any) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "COLUMNS": "100", **options.pop("env", {})}
    return subprocess.run([*COMMAND, *args], capture_output=True, text=True, env=env, **options)


# Masks and plans


def test_show_in_the_terminal(run: Run) -> None:
    out, _ = run(
        "show", "std/sliding_window", "n=64", "window=32", "--q-tile", "16", "--kv-tile", "16"
    )
    assert out.splitlines()[:4] == ["++......", "##++....", "++##++..", "..++##++"]
    assert "3 full, 6 partial, 7 empty" in out


def test_show_prints_json(run: Run) -> None:
    found = run.json(
        "show", "std/sliding_window", "n=64", "window=32", "--q-tile", "16", "--kv-tile", "16"
    )
    assert found["cells"] == ["+...", "#+..", "+#+.", ".+#+"]
    assert found["tiles"] == {"empty": 7, "full": 3, "partial": 6}
    assert found["pairs"] == sum(min(i + 1, 32) for i in range(64))


def test_show_and_plan_save_pictures(run: Run, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    image = pytest.importorskip("PIL.Image")
    file = tmp_path / "new" / "mask.png"
    out, err = run(
        "plan", "std/natten1d", "x=48", "window=9", "--q-tile", "8", "--kv-tile", "8",
        "-o", str(file),
    )  # fmt: skip
    assert str(file) in err and "query tiles: 6 of 8" in out
    pixels = image.open(file).convert("RGB")
    assert pixels.size[0] > 1000
    colors = {c for _, c in pixels.getcolors(2**24)}
    assert {(242, 166, 90), (42, 111, 151)} <= colors  # partial tiles; the keys of a query


def test_plan_of_a_target_and_of_segments(run: Run) -> None:
    out, _ = run("plan", *NATTEN, "--target", "sm_90", "--head-dim", "64")
    mask = maskdsl.load("std/natten2d").bind(
        y=16, x=16, window=[5, 5], stride=[1, 1], dilation=[1, 1], causal=[False, False]
    )
    kernel = maskdsl.compile(mask, 64, torch.bfloat16, backend="triton", target="sm_90")
    assert out == kernel.plan.explain() + "\n"
    found = run.json("plan", "std/causal", "n=1024", "heads=2", "--target", "sm_90")
    assert found["q_tiles"] == ["128"] and found["kv_tiles"] == ["64"]
    assert found["rows"] == [{"heads": [0, 1], "fewest": 2, "most": 16, "mean": 9.0}]
    found = run.json(
        "plan", "std/block_diffusion", "n=32", "size=4", "--q-tile", "16,16", "--kv-tile", "16,16"
    )
    assert found["q_tiles"] == ["16", "16"]


# Predictions


def test_simulate_prints_json(run: Run) -> None:
    p = run.json(
        "simulate", "std/sliding_window", "n=8192", "window=1024", "--device", "h100",
        "--q-tile", "128", "--kv-tile", "128",
    )  # fmt: skip
    assert p["speedup"] > 1
    assert p["bounds"]["flops"] == pytest.approx(8192**2 / (8192 * 1024 - 1024 * 1023 / 2))


def test_numbers_without_end_are_null(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "none.mask"
    file.write_text("pattern none over (n) keep q.n > 1000")
    assert run.json("simulate", str(file), "n=64")["bounds"]["flops"] is None


def test_sweep_over_values_devices_and_tiles(run: Run) -> None:
    found = run.json(
        "sweep", "std/sliding_window", "n=8192", "window=512,2048", "--device", "h100",
        "--device", "a100", "--tile", "128:64", "--tile", "64",
    )  # fmt: skip
    lines = found["predictions"]
    assert len(lines) == 8 and [p["time"] for p in lines] == sorted(p["time"] for p in lines)
    chosen = {(p["choice"]["window"], p["device"], p["q_lanes"], p["kv_lanes"]) for p in lines}
    assert len(chosen) == 8 and (2048, "a100", 128, 64) in chosen
    out, _ = run(
        "sweep", *NATTEN[:3], "window=[3,3],[5,5]", *NATTEN[4:], "--top", "1", "--device", "h100"
    )
    assert "[3, 3]" in out and "[5, 5]" not in out


# Kernels


def test_compile_saves_sources(run: Run, tmp_path: Path) -> None:
    out, err = run(
        "compile", "std/causal", "n=512", "--head-dim", "64", "--target", "sm_90", "--json",
        "--no-resources", "-o", str(tmp_path / "kernels"),
    )  # fmt: skip
    found = json.loads(out)
    assert err.count("saved") == 3
    mask = maskdsl.load("std/causal").bind(n=512)
    kernel = maskdsl.compile(mask, 64, torch.bfloat16, backend="triton", target="sm_90")
    assert found["key"] == kernel.key and found["target"] == "sm_90"
    saved = {p.stem: p.read_text() for p in (tmp_path / "kernels").iterdir()}
    assert saved == kernel.sources


@pytest.mark.slow
def test_compile_says_what_a_kernel_takes(run: Run) -> None:
    found = run.json("compile", "std/causal", "n=512", "--head-dim", "64", "--target", "sm_90")
    assert found["resources"]["forward"]["registers"] > 32
    assert found["resources"]["backward"]["instructions"]["HGMMA"] > 0


def test_emit_writes_a_file(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "kernel.py"
    _, err = run(
        "emit", "std/causal", "n=64", "--head-dim", "16", "--dtype", "fp16", "-o", str(file)
    )
    assert "TRITON_INTERPRET=1 python" in err
    out, _ = run("emit", "std/causal", "n=64", "--head-dim", "16", "--dtype", "fp16")
    assert out == file.read_text()
    assert f"MaskDSL {maskdsl.__version__}" in out


def test_bench_measures_what_it_says(run: Run) -> None:
    found = run.json(
        "bench", *NATTEN, "heads=2", "--head-dim", "16", "--direction", "both",
        "--against", "dense", "--against", "masked", "--repeats", "2", "--warmup", "1",
    )  # fmt: skip
    assert set(found["times"]) == {"maskdsl", "dense", "masked"} and not found["failed"]
    for times in found["times"].values():
        assert set(times) == {"forward", "backward"}
        assert all(0 < t["least"] <= t["median"] and t["calls"] == 2 for t in times.values())
    out, _ = run("bench", "std/documents", "n=64", "--head-dim", "16", "--repeats", "1")
    assert "this kernel (median of 1)" in out


# Upkeep


def test_cache(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("maskdsl.runtime.cache_listing")
    monkeypatch.setenv("MASKDSL_CACHE_DIR", str(tmp_path))
    assert run.json("cache", "path")["path"].startswith(str(tmp_path))
    assert run.json("cache", "ls") == []
    mask = maskdsl.load("std/causal").bind(n=32)
    kernel = maskdsl.compile(mask, 16, backend="triton", target="sm_90", q_tile=16, kv_tile=16)
    kernel(*(torch.zeros(1, 1, 32, 16) for _ in range(3)))
    found = run.json("cache", "ls")
    assert [(e["key"], e["kind"]) for e in found] == [(kernel.key, "kernel")]
    assert kernel.key in run("cache", "ls")[0]
    assert "1 of 1 entries count" in run("cache", "verify")[1]
    where = Path(run("cache", "path")[0].strip())
    (where / f"{kernel.key}.py").write_text("import os")
    assert kernel.key in run("cache", "verify", code=1)[0]
    assert run.json("cache", "clear")["keys"] == 1
    assert run.json("cache", "ls") == []


def test_calibrate_wants_a_gpu(run: Run, tmp_path: Path) -> None:
    pytest.importorskip("maskdsl.runtime.calibrate")
    if torch.cuda.is_available():
        pytest.skip("there is one")
    assert "there is none here" in run("calibrate", str(tmp_path / "a.toml"), code=1)[1]


# Texts


def test_new_patterns_check_and_are_formatted(run: Run, tmp_path: Path) -> None:
    for over, extents in (("text", "n=64"), ("image", "y=8 x=8"), ("video", "t=2 h=8 w=8")):
        file = tmp_path / f"my_{over}.mask"
        _, err = run("new", str(file.with_suffix("")), "--over", over)
        assert str(file) in err
        run("fmt", "--check", str(file))
        found = run.json("check", str(file))
        assert found[0]["name"] == f"my_{over}" and found[0]["params"]
        run("show", str(file), *extents.split())
        before = file.read_text()
        _, err = run("new", str(file), code=1)
        assert "exists already" in err and file.read_text() == before
    assert "cannot be the name" in run("new", str(tmp_path / "3d"), code=1)[1]
    assert "--over is one of" in run("new", str(tmp_path / "a"), "--over", "sound", code=1)[1]


def test_check_tells_what_patterns_take(run: Run) -> None:
    found = run.json("check", "std/documents", "std/natten2d")
    assert [p["name"] for p in found] == ["documents_full", "documents", "natten2d"]
    assert found[1]["inputs"] == [{"name": "doc", "type": "int[batch, n]"}]
    assert found[2]["axes"] == ["y", "x"]
    assert found[2]["params"][0] == {"name": "window", "type": "int[2]", "default": None}


# Values


def test_tables_come_from_files(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "p.mask"
    file.write_text("pattern p(table: bool[n]) over (n) keep table[k.n]")
    data = np.arange(64) % 4 == 0
    np.save(tmp_path / "t.npy", data)
    (tmp_path / "t.json").write_text(json.dumps(data.tolist()))
    for name in ("t.npy", "t.json"):
        assert run.json("show", str(file), "n=64", f"table=@{tmp_path / name}")["pairs"] == 16 * 64
    (tmp_path / "bad.json").write_text("[1,")
    (tmp_path / "bad.npy").write_text("no")
    for value, cause in (
        ("@none.npy", "none.npy cannot be read"),
        (f"@{tmp_path / 'bad.json'}", "is no .json file"),
        (f"@{tmp_path / 'bad.npy'}", "is no .npy file"),
        ("@t.csv", "from a .npy or a .json file"),
    ):
        _, err = run("show", str(file), "n=64", f"table={value}", code=1)
        assert cause in err and err.count("\n") == 1


@pytest.mark.parametrize(
    ("args", "cause"),
    [
        (("show", "std/radail", "t=2"), "did you mean 'std/radial'"),
        (("show", "none.mask"), "none.mask: cannot be read"),
        (("show", "std/radial", "t=2", "s=x"), "'x' is not a number"),
        (("show", "std/radial", "t"), "not of the form NAME=VALUE"),
        (("show", "std/radial", "t=2", "t=3"), "t is given twice"),
        (("show", "std/radial", "t=3"), "lacks the extent of s"),
        (("show", "std/causal", "n=9", "--q-tile", "4y4"), "written as sizes per axis"),
        (("show", "std/causal", "n=9", "--head", "3"), "no head 3"),
        (("plan", "std/causal", "n=9", "--query", "99", "-o", "x.png"), "query 99"),
        (("simulate", "std/causal", "n=64", "--device", "h1000"), "unknown device"),
        (("simulate", "std/causal", "n=64", "--dtype", "int3"), "dtype"),
        (("sweep", "std/causal", "n=64", "m=3"), "nothing called 'm'"),
        (("sweep", "std/causal", "n=64,x"), "'x' is not a number"),
        (("compile", "std/causal", "n=64", "--dtype", "int8"), "dtype is bf16"),
        (("compile", "std/causal", "n=64", "--target", "sm_12"), "there is no target"),
        (("emit", "std/causal", "n=64", "--scale", "-1"), "positive scale"),
        (("emit", "std/causal", "n=64", "-o", "/proc/none/x.py"), "cannot be written"),
        (("bench", "std/causal", "n=64", "--against", "magic"), "--against is one of"),
        (("bench", "std/causal", "n=64", "--direction", "up"), "--direction is one of"),
        (("bench", "std/causal", "n=64", "--batch", "0"), "--batch must be"),
        (("simulate", "std/causal", "n=64", "-o", "x.foo"), "x.foo: Format 'foo'"),
        (("simulate", "std/causal", "n=64", "-o", "/proc/none/x.png"), "cannot be written"),
        (("new", "/"), "is not the name of a pattern"),
        (("report", "std/causal", "n=64", "--vary", "m=3", "-o", "x.html"), "--vary takes one of"),
        (("report", "std/causal", "n=64", "--vary", "m"), "NAME=VALUE,VALUE"),
    ],
)
def test_errors_are_lines_and_not_tracebacks(run: Run, args: tuple[str, ...], cause: str) -> None:
    _, err = run(*args, code=1)
    assert cause in err and "Traceback" not in err
    assert err.count("\n") == 1


def test_wrong_use_is_another_exit_code(run: Run) -> None:
    assert "No such command" in run("shew", code=2)[1]
    assert "No such option" in run("show", "std/causal", "--fast", code=2)[1]
    assert "Missing argument" in run("show", code=2)[1]
    assert "--repeats" in run("bench", "std/causal", "n=64", "--repeats", "0", code=2)[1]


def test_version_and_help(run: Run) -> None:
    assert run("--version")[0] == f"maskdsl {maskdsl.__version__}\n"
    names = [c.name or c.callback.__name__ for c in app.registered_commands]
    out, _ = run("--help")
    for name in names:
        assert name in out
        text, _ = run(name, "--help")
        assert f"maskdsl {name} " in text, name  # an example
        assert "\b" not in text and "\\[" not in text, name


# What only a process shows


def test_a_closed_pipe_ends_quietly() -> None:
    script = f"{COMMAND[0]} -c '{COMMAND[2]}' emit std/causal n=64 --head-dim 16 | head -1"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True)
    assert done.stdout.startswith('"""') and done.stderr == ""


def test_an_interrupt_ends_quietly() -> None:
    # torch is imported by then: modules may swallow an interrupt while they are
    ready = "import maskdsl.cli.measure; from maskdsl.cli import main"
    ready += "; print('ready', flush=True); main()"
    command = [sys.executable, "-c", ready, "bench", "std/causal", "n=4096", "--repeats", "99999"]
    started = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert started.stdout is not None and started.stdout.readline() == "ready\n"
    time.sleep(0.5)
    started.send_signal(signal.SIGINT)
    out, err = started.communicate(timeout=60)
    assert "Traceback" not in err and out == "" and started.returncode == 130


def test_completion() -> None:
    line = "maskdsl show std/natten2d y=3 s"
    env = {"_MASKDSL_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": "4"}
    done = process(env=env)
    assert done.stdout.split() == ["stride="], done.stderr


def test_what_is_offered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert complete.specs("std/slid") == ["std/sliding_tile", "std/sliding_window"]
    assert complete.devices("h") == ["h100", "h200"]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.mask").write_text("pattern mine over (n)")
    assert complete.specs("m") == ["mine.mask"]
    assert complete.specs("no/such/folder/") == []
