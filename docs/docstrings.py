"""Docstrings for the site: lines of the form `name: what it is` become items of a list."""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension, Object

ITEM = re.compile(r"([a-z_][\w, ]*): (?=\S)")


def with_lists(text: str) -> str:
    """The text with a list in place of every run of `name: ...` lines within a paragraph."""
    paragraphs = []
    for paragraph in text.split("\n\n"):
        lines: list[str] = []
        inside = False
        for line in paragraph.splitlines():
            found = ITEM.match(line)
            if found:
                lines += [""] * (bool(lines) and not inside)
                line = f"* **{found[1]}**: {line[found.end() :]}"
                inside = True
            elif inside and line.startswith("Raises "):
                lines.append("")
                inside = False
            elif inside:
                line = f"    {line}"
            lines.append(line)
        paragraphs.append("\n".join(lines))
    return "\n\n".join(paragraphs)


class HouseStyle(Extension):
    """Applies `with_lists` to every docstring that is read."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = with_lists(obj.docstring.value)
