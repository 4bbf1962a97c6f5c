"""Every block of code of every page: texts of the language parse, Python runs and prints what is
shown below it, commands run, excerpts are what they are excerpts of.

`<!-- not run: REASON -->` before a block leaves it out: Python is then only compiled.
"""

from __future__ import annotations

import contextlib
import io
import re
import shlex
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from pages import PAGES, ROOT, Block, blocks, commands
from typer.testing import CliRunner

import maskdsl
from maskdsl.cli import app
from maskdsl.language.parse import parse_text

OPTIONAL = ("natten", "transformers", "diffusers")  # what pages about others import
WIDTH = "120"


@pytest.fixture(autouse=True)
def _as_a_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """In an empty folder, with a terminal that is wide enough."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", WIDTH)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="flex_attention called without")
        warnings.filterwarnings("ignore", message="return_lse is deprecated")  # natten gives it
        yield
    torch._dynamo.reset()


def run_command(line: str) -> str:
    program, *words = shlex.split(line, comments=True)
    assert program == "maskdsl", line
    done = CliRunner().invoke(app, words, prog_name="maskdsl", catch_exceptions=False)
    assert done.exit_code == 0, f"{line}: {done.output}"
    return done.output


def run_python(text: str, page: str, namespace: dict[str, Any]) -> str:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(text, f"{page}: a python block", "exec"), namespace)
    return out.getvalue()


def run(block: Block, page: str, namespace: dict[str, Any]) -> str | None:
    """What the block prints; None for what prints nothing by itself."""
    skipped = re.match(r"<!-- (not run|excerpt): (.+) -->$", block.before)
    if skipped and skipped[1] == "excerpt":
        assert block.text in (ROOT / skipped[2]).read_text(), f"not in {skipped[2]}"
    elif skipped:
        assert len(skipped[2]) > 10, "a reason is needed"
        if block.language == "python":
            compile(block.text, page, "exec")
    elif block.language == "python":
        return run_python(block.text, page, namespace)
    elif block.language in ("bash", "sh", "console"):
        return "".join(map(run_command, block.text.splitlines()))
    elif block.language == "mask":
        only_defs = not parse_text(block.text).patterns
        maskdsl.parse(block.text + "\npattern p over (n)" * only_defs)
    return None


@pytest.mark.parametrize("page", PAGES)
def test_blocks(page: str) -> None:
    text = PAGES[page].read_text()
    for package in OPTIONAL:
        if re.search(rf"^(import|from) {package}\b", text, re.M):
            pytest.importorskip(package)
    namespace: dict[str, Any] = {}
    printed: str | None = None
    for block in blocks(PAGES[page]):
        for line in commands(block.between):
            assert run_command(line).strip()
        if block.title:
            Path(block.title).write_text(block.text)
        if block.language == "text" and block.follows and printed is not None:
            assert printed.rstrip() == block.text.rstrip()
            printed = None
        else:
            printed = run(block, page, namespace)


def test_a_block_that_fails_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = {
        "python": "```python\nprint(1)\n```\n\n```text\n2\n```\n",
        "bash": "```bash\nmaskdsl check std/nothing\n```\n",
        "command": "Text\n\n    maskdsl show std/causal\n",
        "mask": "```mask\npattern p over\n```\n",
        "excerpt": "<!-- excerpt: README.md -->\n```python\nno such line\n```\n",
        "reason": "<!-- not run: no -->\n```bash\nls\n```\n",
    }
    for name, text in wrong.items():
        page = tmp_path / f"{name}.md"
        page.write_text(text)
        monkeypatch.setitem(PAGES, name, page)
        with pytest.raises((AssertionError, maskdsl.MaskError)):
            test_blocks(name)
