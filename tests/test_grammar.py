"""The parser's stored tables are those of the grammar, and nothing depends on their being there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from maskdsl.language import grammar

TEXT = "pattern f(w: int = 3) over (n) keep 0 <= q.n - k.n < w and not (k.n in 2 .. 5)"


@pytest.fixture
def fresh() -> None:
    grammar.parser.cache_clear()


def test_the_stored_tables_are_of_this_grammar(request: pytest.FixtureRequest) -> None:
    if request.config.getoption("--refresh-goldens"):
        grammar.TABLES.write_text(grammar.tables())
    stored = json.loads(grammar.TABLES.read_text())
    assert stored["made_for"] == json.loads(grammar.tables())["made_for"], "make golden"


def test_they_are_read_and_parse_alike(fresh: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grammar, "make", lambda: pytest.fail("made anew"))
    read = grammar.parser()
    monkeypatch.undo()
    made = grammar.make()
    for file in sorted((grammar.GRAMMAR.parent / "std").glob("*.mask")):
        one, other = (p.parse(file.read_text()) for p in (read, made))
        assert one == other
        places = (
            [(t.meta.start_pos, t.meta.end_pos) for t in x.iter_subtrees() if not t.meta.empty]
            for x in (one, other)
        )
        assert len({tuple(p) for p in places}) == 1


@pytest.mark.parametrize("text", [None, "", "{", "[]", "{}", '{"made_for": ["0", "x"]}'])
def test_others_are_made_anew(
    fresh: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str | None
) -> None:
    other = tmp_path / "grammar.json"
    if text is not None:
        other.write_text(text)
    monkeypatch.setattr(grammar, "TABLES", other)
    assert grammar.parser().parse(TEXT) == grammar.make().parse(TEXT)
    grammar.parser.cache_clear()
