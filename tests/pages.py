"""The documents, and the blocks of code in them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = {
    str(path.relative_to(ROOT)): path
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md")))
}


class Block(NamedTuple):
    language: str
    title: str  # a file's name, or ""
    text: str
    before: str  # the line before its fence
    follows: bool  # nothing but white space since the block before
    between: str  # the text since the block before


def blocks(path: Path) -> Iterator[Block]:
    text, end = path.read_text(encoding="utf-8"), 0
    fence = re.compile(r'^```([\w-]*)(?: title="([\w.]+)")?\n(.*?)^```$', re.M | re.S)
    for found in fence.finditer(text):
        between = text[end : found.start()]
        before = between.strip().rpartition("\n")[2]
        yield Block(found[1], found[2] or "", found[3], before, not between.strip(), between)
        end = found.end()
    yield Block("", "", "", "", False, text[end:])


def commands(text: str) -> list[str]:
    """The lines of a text that are indented commands of ours."""
    return re.findall(r"^ {4}(maskdsl .*)$", text, re.M)
