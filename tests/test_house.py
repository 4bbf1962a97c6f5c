"""The layout of the code: imports run one way, files stay small."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent / "maskdsl"

# Each room may import from those it lists (and from itself and `errors`).
ROOMS = {
    "errors": set(),
    "ir": set(),
    "language": {"ir"},
    "planner": {"ir"},
    "pattern": {"language", "ir", "planner"},
    "simulator": {"pattern", "planner", "ir"},
    "codegen": {"planner", "ir"},
    "runtime": {"codegen", "simulator", "pattern", "planner", "language", "ir"},
    "pictures": {"pattern", "planner", "ir"},
    "tables": set(),
    "integrations": {"runtime", "codegen", "simulator", "pattern", "planner", "ir"},
    "natten": {"integrations"},
    "cli": {
        "report", "language", "pictures", "integrations", "runtime", "simulator", "pattern",
        "planner", "ir", "__version__",
    },
    "report": {
        "runtime", "codegen", "pictures", "simulator", "pattern", "planner", "language", "ir",
    },
}  # fmt: skip


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else "api"


def imports(path: Path) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            base = node.module
            found += [f"{base}.{a.name}" for a in node.names] if base == "maskdsl" else [base]
        elif isinstance(node, ast.Import):
            found += [a.name for a in node.names]
    return [name for name in found if name.startswith("maskdsl")]


def test_imports_run_one_way() -> None:
    wrong = []
    for path in ROOT.rglob("*.py"):
        own = path.relative_to(ROOT).parts[0].removesuffix(".py")
        if own == "__init__":
            continue
        allowed = ROOMS[own] | {own, "errors"}
        wrong += [f"{path.name}: {name}" for name in imports(path) if room(name) not in allowed]
    assert not wrong


def test_the_simulator_needs_neither_torch_nor_triton() -> None:
    for folder in ("errors.py", "ir", "language", "planner", "pattern.py", "simulator"):
        paths = [ROOT / folder] if folder.endswith(".py") else list((ROOT / folder).rglob("*.py"))
        for path in paths:
            text = path.read_text()
            assert "import torch" not in text and "import triton" not in text, path


WITHOUT_TORCH = """
import sys
import maskdsl
from maskdsl.cli import main
mask = maskdsl.load("std/sliding_window").bind(n=4096, window=512)
maskdsl.simulate(mask, head_dim=64, heads=8, device="h100")
assert not {"torch", "triton", "matplotlib"} & set(sys.modules)
assert {*maskdsl.__all__} <= {*dir(maskdsl)} and maskdsl.compile(mask, 64).backend
assert maskdsl.natten.na1d and not hasattr(maskdsl, "no_such_name")
"""


def test_torch_is_imported_where_it_is_needed() -> None:
    """Four seconds of every command otherwise."""
    subprocess.run([sys.executable, "-c", WITHOUT_TORCH], check=True)


def test_files_are_about_one_idea() -> None:
    long = {p.name: n for p in ROOT.rglob("*.py") if (n := len(p.read_text().splitlines())) > 400}
    assert not long
