"""The layout of the code: imports run one way, files stay small."""

from __future__ import annotations

import ast
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


def test_files_are_about_one_idea() -> None:
    long = {p.name: n for p in ROOT.rglob("*.py") if (n := len(p.read_text().splitlines())) > 400}
    assert not long
