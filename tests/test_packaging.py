"""The wheel: what is in it, what it asks for, and that it works without the repository."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from email.message import Message
from email.parser import Parser
from pathlib import Path
from typing import NamedTuple

import pytest

import maskdsl

ROOT = Path(__file__).parent.parent
NAMES = {"skimage": "scikit-image", "PIL": "scikit-image"}  # modules that are called otherwise


class Built(NamedTuple):
    wheel: Path
    sdist: Path


def run(*command: object, **options: object) -> str:
    """What it prints. Python variables of this process do not reach it."""
    env = {n: x for n, x in os.environ.items() if not n.startswith(("PYTHON", "TRITON"))}
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, env=env, **options)  # type: ignore[call-overload]
    assert done.returncode == 0, done.stdout + done.stderr
    return str(done.stdout)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """A source distribution, and the wheel that is built of it."""
    pytest.importorskip("build")
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    shutil.copytree(
        ROOT / "maskdsl", source / "maskdsl", ignore=shutil.ignore_patterns("__pycache__")
    )
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, source)
    (wheel,), (sdist,) = out.glob("*.whl"), out.glob("*.tar.gz")
    return Built(wheel, sdist)


@pytest.fixture(scope="module")
def python(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of an environment that holds the wheel, and beside it this one's packages, but for ours."""
    home = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", "--without-pip", home)
    found = home / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", found]
    run(*pip, "install", "-q", "--no-deps", "--no-index", built.wheel)
    (site,) = home.glob("lib/python*/site-packages")
    (site / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return found


def metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as file:
        (name,) = (n for n in file.namelist() if n.endswith(".dist-info/METADATA"))
        return Parser().parsestr(file.read(name).decode())


def test_every_file_is_in_the_wheel_and_nothing_else(built: Built) -> None:
    tracked = subprocess.check_output(["git", "ls-files", "maskdsl"], cwd=ROOT, text=True).split()
    assert [f for f in tracked if f.endswith(".mask")]
    with zipfile.ZipFile(built.wheel) as file:
        names = set(file.namelist())
    assert not set(tracked) - names
    assert {n.partition("/")[0] for n in names} == {
        "maskdsl",
        f"maskdsl-{maskdsl.__version__}.dist-info",
    }
    with tarfile.open(built.sdist) as file:
        names = {n.partition("/")[2] for n in file.getnames()}
    assert not {*tracked, "pyproject.toml", "README.md", "LICENSE"} - names


def test_the_version_is_said_once(built: Built) -> None:
    assert metadata(built.wheel)["Version"] == maskdsl.__version__
    assert maskdsl.__version__ not in (ROOT / "pyproject.toml").read_text()
    assert f"## [{maskdsl.__version__}]" in (ROOT / "CHANGELOG.md").read_text()


def requirements(built: Built) -> tuple[set[str], set[str]]:
    """Names of what is always asked for, and of what extras ask for."""
    found: tuple[set[str], set[str]] = set(), set()
    for line in metadata(built.wheel).get_all("Requires-Dist") or []:
        found["extra ==" in line].add(re.split(r"[\[ ;<>=!~]", line)[0].lower())
    return found


def imported() -> dict[str, bool]:
    """Modules of others that the package imports; whether `import maskdsl` may need them."""
    found: dict[str, bool] = {}
    for path in (ROOT / "maskdsl").rglob("*.py"):
        tree = ast.parse(path.read_text())
        top = {id(n) for n in tree.body}
        for node in ast.walk(tree):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [a.name for a in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module]
            for name in {n.partition(".")[0] for n in names}:
                if name != "maskdsl" and name not in sys.stdlib_module_names:
                    found[name] = found.get(name, False) or id(node) in top
    return found


def test_what_is_imported_is_asked_for(built: Built) -> None:
    always, extra = requirements(built)
    modules = {NAMES.get(n, n).lower(): needed for n, needed in imported().items()}
    assert not modules.keys() - always - extra
    unused = always - modules.keys() - {"tomli"}
    assert not unused
    assert {"torch", "numpy", "lark", "jinja2"} <= {n for n, needed in modules.items() if needed}


EXERCISE = """
import sys, numpy, torch, maskdsl
from maskdsl.simulator import device_names, engine_names, load_engine
assert maskdsl.__file__.startswith(sys.prefix), maskdsl.__file__
from pathlib import Path
for path in (Path(maskdsl.__file__).parent / "language" / "std").glob("*.mask"):
    if path.stem != "functions":
        maskdsl.load(f"std/{path.stem}")
mask = maskdsl.load("std/sliding_window").bind(n=96, window=20, heads=2)
q, k, v = (torch.randn(1, 2, 96, 16, requires_grad=True) for _ in range(3))
seen = torch.from_numpy(mask.dense())
want = torch.nn.functional.scaled_dot_product_attention(q, k, v, seen)
for backend in ("torch", "reference"):
    out = maskdsl.compile(mask, 16, backend=backend)(q, k, v)
    torch.testing.assert_close(out, want)
    out.sum().backward()
sources = maskdsl.compile(mask, 16, torch.bfloat16, backend="triton", target="sm_90").sources
assert all(text.startswith("# ") for text in sources.values()) and len(sources) == 3
for device in device_names():
    assert maskdsl.simulate(mask, head_dim=64, device=device).time > 0
assert engine_names() and all(map(load_engine, engine_names()))
assert len(device_names()) >= 6
print("all of it")
"""


def test_it_works_from_an_empty_folder(python: Path, tmp_path: Path) -> None:
    assert run(python, "-I", "-c", EXERCISE, cwd=tmp_path) == "all of it\n"
    assert not [*tmp_path.iterdir()]


def test_its_command_works(python: Path, tmp_path: Path) -> None:
    command = python.parent / "maskdsl"
    out = run(command, "show", "std/causal", "n=8", "--q-tile", "4", "--kv-tile", "4", cwd=tmp_path)
    assert out.startswith("++..\n##++\n")  # a tile is two characters wide


def test_its_command_knows_its_version(python: Path, tmp_path: Path) -> None:
    out = run(python.parent / "maskdsl", "--version", cwd=tmp_path)
    assert out == f"maskdsl {maskdsl.__version__}\n"


USER = """
import torch

import maskdsl

mask: maskdsl.Mask = maskdsl.load("std/causal").bind(n=8)
kernel = maskdsl.compile(mask, head_dim=16)
time: float = maskdsl.simulate(mask, device="h100").time
maskdsl.compile(mask, head_dim="16")
reveal_type(mask.pairs)
"""


@pytest.mark.slow
def test_its_types_reach_mypy(python: Path, tmp_path: Path) -> None:
    """A wrong argument is found, and nothing is Any."""
    pytest.importorskip("mypy")
    (tmp_path / "user.py").write_text(USER)
    command = [sys.executable, "-m", "mypy", "--strict", "--python-executable", str(python)]
    done = subprocess.run(
        [*command, "user.py"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("user.py")]
    assert len(lines) == 2, done.stdout
    assert 'user.py:9: error: Argument "head_dim" to "compile" has incompatible type' in lines[0]
    assert re.search(r'user.py:10: note: Revealed type is "(builtins\.)?int"', lines[1])
