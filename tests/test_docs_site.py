"""The site: it builds without a warning, loads nothing from elsewhere, and leaves nothing out."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from pages import DOCS, PAGES, ROOT

import maskdsl

RESOURCE = re.compile(r"<(?:script|img|iframe|link)\b[^>]*?\s(?:src|href)=[\"']?(\w+:)?//[^>]*>")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("mkdocs")
    pytest.importorskip("mkdocstrings_handlers.python")
    out = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(out)],
        cwd=ROOT, capture_output=True, text=True, check=False,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )  # fmt: skip
    assert done.returncode == 0 and "WARNING" not in done.stderr, done.stderr
    return out


def test_pages_load_nothing_from_elsewhere(site: Path) -> None:
    pages = [*site.rglob("*.html")]
    assert len(pages) > len([*DOCS.rglob("*.md")])  # and that of a missing page
    for page in pages:
        found = [m[0] for m in RESOURCE.finditer(page.read_text()) if "canonical" not in m[0]]
        assert not found, page
    assert RESOURCE.search('<script async src="https://somewhere/x.js"></script>')


def test_markup_is_not_shown_as_text(site: Path) -> None:
    """Lists and tables that Python-Markdown takes for paragraphs, fences that it leaves."""
    for page in site.rglob("*.html"):
        text = re.sub(r"<(pre|code|script|style)\b.*?</\1>", "", page.read_text(), flags=re.S)
        text = re.sub(r"<[^>]+>", "", text)
        assert not re.findall(r"^\s*(?:[*|] .*|```.*)$", text, re.M), page


def test_docstrings_are_in_the_reference(site: Path) -> None:
    text = re.sub(r"<[^>]+>", "", (site / "reference.html").read_text())
    for known in ("natural log-sum-exp", "Raises BindError", "size: lanes, a power of two"):
        assert known in re.sub(r"\s+", " ", text)


def test_everything_public_is_in_the_reference() -> None:
    names = re.findall(r"^::: [\w.]+?\.(\w+)$", (DOCS / "reference.md").read_text(), re.M)
    assert not {*maskdsl.__all__} - {*names}


def test_every_page_is_in_the_navigation() -> None:
    listed = re.findall(r": ([\w/.-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.M)
    assert sorted(listed) == sorted(str(p.relative_to(DOCS)) for p in DOCS.rglob("*.md"))


def test_every_document_is_looked_at() -> None:
    documents = {p for p in ROOT.glob("*.md") if p.name != "CHANGELOG.md"} | {*DOCS.rglob("*.md")}
    assert documents == {*PAGES.values()}
