"""The pages about integrations: their Python blocks run and print what they say."""

from __future__ import annotations

import pytest
import test_docs

PAGES = {
    "transformers.md": "transformers",
    "diffusers.md": "diffusers",
    "natten.md": "maskdsl",
}


@pytest.mark.parametrize(("page", "package"), PAGES.items())
def test_python_blocks_run(monkeypatch: pytest.MonkeyPatch, page: str, package: str) -> None:
    pytest.importorskip(package)
    path = test_docs.ROOT / "docs" / "integrations" / page
    monkeypatch.setitem(test_docs.DOCUMENTS, page, path)
    test_docs.test_python_blocks_run_and_print_what_they_say(page)


def test_every_page_is_tested() -> None:
    folder = test_docs.ROOT / "docs" / "integrations"
    assert {path.name for path in folder.glob("*.md")} == PAGES.keys()
