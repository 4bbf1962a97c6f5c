"""Templates to formatted text, and a digest of both."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

import jinja2

from maskdsl.codegen.expressions import LINE


def render(template: str, context: Mapping[str, Any]) -> str:
    """A template's text, without stray white space; empty lines as a formatter wants them."""
    text = _environment().get_template(template).render(e=context)
    text = re.sub(r"[ \t]+$", "", text, flags=re.MULTILINE)
    text = re.sub(r"\n{3,}(?=[ \t])", "\n\n", text)
    blocks = re.split(r"(?<=\n)\n\n+(?=@\w+\.jit)|(?<=\n)\n\n+(?=def )", text)
    blocks = [_without_unused(b) if re.match(r"@\w+\.jit", b) else b for b in blocks]
    text = "\n\n\n".join(blocks)
    return re.sub(r"\n{3,}", "\n\n\n", text).strip("\n") + "\n"


_ASSIGNMENT = re.compile(r"^ +(\w+) = .*[^(\[,\n]\n")


def _read(name: str, text: str) -> bool:
    """Whether a name stands anywhere but on the left of an assignment or in a comment."""
    text = re.sub(r"#.*", "", text)
    uses = re.findall(rf"^(.*\b{name}\b.*)$", text, re.M)
    return any(re.search(rf"\b{name}\b", re.sub(rf"^ +{name} = ", "", use)) for use in uses)


def _without_unused(kernel: str) -> str:
    """A function's text without assignments to names that it does not read."""
    while True:
        kept = [
            line
            for line in kernel.splitlines(keepends=True)
            if not (found := _ASSIGNMENT.match(line)) or _read(found[1], kernel)
        ]
        shorter = "".join(kept)
        if shorter == kernel:
            return kernel
        kernel = shorter


def digest(text: str) -> str:
    """16 hexadecimal digits."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def pack(items: Iterable[str], indent: int, outer: int = 0) -> str:
    """Items with commas, as many to a line as fit after `indent`; the first line is not indented.
    outer: indentation that the whole text gets later.
    """
    lines: list[str] = []
    for item in items:
        joined = f"{lines[-1]} {item}," if lines else ""
        if lines and outer + indent + len(joined) <= LINE:
            lines[-1] = joined
        else:
            lines.append(f"{item},")
    return ("\n" + " " * indent).join(lines)


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("maskdsl.codegen"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=False,
        autoescape=False,
    )
    environment.filters["pack"] = pack
    return environment
