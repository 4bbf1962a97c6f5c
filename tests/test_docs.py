"""The manual says what the code does: its tables and pictures are true, and nothing is left out.
Its blocks are run with those of the other pages (test_docs_blocks.py).
"""

from __future__ import annotations

import ast
import importlib.util
import re
from functools import cache
from types import ModuleType

import numpy as np
import pytest
from pages import ROOT, blocks
from PIL import Image

import maskdsl
from maskdsl.language.builtins import BUILTINS
from maskdsl.language.diagnostics import RESERVED
from maskdsl.language.library import standard_functions
from maskdsl.language.parse import parse_text
from maskdsl.language.scope import PREDEFINED

PACKAGE = ROOT / "maskdsl"
STD = PACKAGE / "language" / "std"
MANUAL = ROOT / "docs" / "language.md"
FILES = sorted(p.stem for p in STD.glob("*.mask") if p.stem != "functions")


@cache
def load_script() -> ModuleType:
    """docs/pictures.py, which is no part of the package."""
    spec = importlib.util.spec_from_file_location("docs_pictures", ROOT / "docs" / "pictures.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def section(title: str) -> str:
    """A section of the manual, from its heading to the next of its rank."""
    rank = title.partition(" ")[0]
    found = re.search(
        rf"^{re.escape(title)}$(.*?)(?=^#{{1,{len(rank)}}} |\Z)", MANUAL.read_text(), re.M | re.S
    )
    assert found, f"no section '{title}'"
    return found[1]


def rows(text: str, first: str) -> list[list[str]]:
    """Rows of all tables of a text whose first column has this heading; `code` without its
    quotes.
    """
    found: list[list[str]] = []
    inside = False
    for line in text.splitlines():
        cells = [c.strip() for c in line.strip("|").split(" | ")] if line.startswith("|") else []
        if not cells:
            inside = False
        elif cells[0] == first:
            inside = True
        elif inside and not cells[0].startswith("---"):
            found.append(cells)
    return found


EXPRESSIONS = [(r[0].strip("`"), r[1].strip("`")) for r in rows(MANUAL.read_text(), "expression")]


@pytest.mark.parametrize(("expression", "value"), EXPRESSIONS)
def test_expressions_have_the_values_of_the_manual(expression: str, value: str) -> None:
    def keeps(condition: str) -> bool:
        text = f"pattern p over (n) keep {condition}"
        return bool(maskdsl.parse(text).bind(n=1).dense()[0, 0])

    is_bool = re.search(r"^(some|all|not|true|false) |[=<>] ", expression) is not None
    kind, colon, message = value.partition(": ")
    if colon:
        with pytest.raises(getattr(maskdsl, kind), match=re.escape(message)):
            keeps(expression if kind == "CheckError" or is_bool else f"({expression}) == 0")
        return
    if value in ("true", "false"):
        assert keeps(expression) == (value == "true")
        return
    number = "(-9223372036854775807 - 1)" if value == str(-(2**63)) else value
    assert keeps(f"({expression}) == {number}")
    if "." in value:  # a float: nothing that takes ints takes it
        with pytest.raises(maskdsl.CheckError):
            keeps(f"({expression}) // 1 == 0")
    else:
        assert keeps(f"({expression}) // 1 == {number}")


def test_there_are_expressions_to_test() -> None:
    assert len(EXPRESSIONS) > 60
    used = " ".join(e for e, _ in EXPRESSIONS)
    assert not [name for name in BUILTINS if f"{name}(" not in used]


def test_every_builtin_and_function_is_documented() -> None:
    signatures = [r[0].strip("`") for r in rows(section("## 9. Builtins"), "builtin")]
    assert {s.partition("(")[0] for s in signatures} == BUILTINS.keys()
    for signature in signatures:
        name, _, inside = signature.rstrip(")").partition("(")
        params = [p.partition(":")[0] for p in inside.split(", ")]
        wanted = BUILTINS[name].params
        assert wanted == ("...",) or list(wanted) == params, signature
    found = {}
    for row in rows(section("## 10. Standard functions"), "function"):
        name, _, inside = row[0].strip("`)").partition("(")
        found[name] = [p.partition("=")[0] for p in inside.split(", ")]
    assert found == {n: [p.name for p in d.params] for n, d in standard_functions().items()}


def test_reserved_and_predefined_words_are_listed() -> None:
    lists = re.findall(r"^```text\n(.*?)^```$", section("## 2. Lexical rules"), re.M | re.S)
    assert [set(words.split()) for words in lists] == [RESERVED, PREDEFINED]


def words_of(text: str) -> list[str]:
    return [w for line in text.splitlines() for w in line.partition("#")[0].split()]


@pytest.mark.parametrize("file", FILES)
def test_every_entry_is_documented_with_its_text_and_pictures(file: str) -> None:
    text = section(f"#### std/{file}")
    for what in ("* Parameters: ", "* At the edges: ", "* Source: "):
        assert what in text
    (shown,) = re.findall(r"^```mask\n(.*?)^```$", text, re.M | re.S)
    source = (STD / f"{file}.mask").read_text()
    assert words_of(shown) == words_of(source)
    for pattern in parse_text(source).patterns:
        assert f"](pictures/{pattern.name}.png)" in text


def test_the_manual_shows_the_standard_functions() -> None:
    texts = [words_of(b.text) for b in blocks(MANUAL) if b.language == "mask"]
    assert words_of((STD / "functions.mask").read_text()) in texts


def test_every_entry_of_the_manual_is_in_the_library() -> None:
    named = re.findall(r"^#### std/(\w+)$", MANUAL.read_text(), re.M)
    assert sorted(named) == FILES
    drawn = re.findall(r"\]\(pictures/(\w+)\.png\)", MANUAL.read_text())
    assert sorted(drawn) == sorted(load_script().entries())


def constants() -> dict[str, int]:
    """The limits in the sources, by module and name."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        module = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                name = node.targets[0].id
                if name.startswith("MAX_"):
                    found[f"{module}.{name}"] = eval(ast.unparse(node.value), {})
    return found


NO_LIMITS = {"language.layout.MAX_INDENT"}  # a matter of looks


def test_the_limits_are_those_of_the_code() -> None:
    known = constants()
    table = {r[2].strip("`"): r for r in rows(section("## 14. Limits"), "what")}
    for name, row in table.items():
        assert name in known, name
        assert eval(row[1].strip("`"), {}) == known[name], name
        for number in re.findall(r"(?:than|most|to) (\d+)", row[3]):
            assert int(number) == known[name], row
    rooms = ("language.", "planner.")
    assert not {n for n in known if n.startswith(rooms)} - table.keys() - NO_LIMITS


def chain_of_defs(count: int) -> str:
    calls = "".join(f"def f{i}() return f{i - 1}() " for i in range(1, count))
    return f"def f0() return 1 {calls}pattern p over (n) keep f{count - 1}() == 1"


SEGMENTS = " then ".join(f"s{i}(n{i})" for i in range(9))
PAST = {
    "language.parse.MAX_TEXT": "pattern p over (n)" + " " * 65519,
    "language.parse.MAX_NESTING": "pattern p over (n) keep " + "not " * 100 + "true",
    "language.parse.MAX_DIGITS": f"pattern p over (n) keep q.n < {2**63}",
    "language.parse.MAX_NAME": f"pattern {'p' * 201} over (n)",
    "language.spaces.MAX_AXES": "pattern p over (a, b, c, d, e)",
    "language.spaces.MAX_SEGMENTS": f"pattern p over {SEGMENTS}",
    "language.scope.MAX_CALLS": chain_of_defs(65),
    "language.scope.MAX_STEPS": "pattern p over (n) keep some i in 0 .. 50000: q.n == i",
    "language.check.MAX_NODES": "pattern p over (n) keep all i in 0 .. 8000: random(i, 0, 0) < q.n",
    "language.binding.MAX_TOKENS": "pattern p over (n)",
}


@pytest.mark.parametrize("name", PAST)
def test_past_a_limit_the_error_is_that_of_the_manual(name: str) -> None:
    (row,) = [r for r in rows(section("## 14. Limits"), "what") if r[2].strip("`") == name]
    kind, _, message = row[3].partition(": ")
    part = max(message.split("..."), key=len).strip()
    with pytest.raises(getattr(maskdsl, kind.strip("`")), match=re.escape(part)):
        maskdsl.parse(PAST[name]).bind(n=2**31 + 1 if "TOKENS" in name else 4)


def test_error_classes_are_listed() -> None:
    listed = {r[0].strip("`"): r[1].strip("`") for r in rows(section("## 13. Errors"), "class")}
    classes = [getattr(maskdsl, n) for n in maskdsl.__all__ if n.endswith("Error")]
    assert listed == {c.__name__: c.__bases__[1].__name__ for c in classes if len(c.__bases__) > 1}


@pytest.mark.parametrize("name", load_script().entries())
def test_pictures_are_drawn_from_the_library(name: str) -> None:
    path = ROOT / "docs" / "pictures" / f"{name}.png"
    assert path.exists(), "run python docs/pictures.py"
    assert path.stat().st_size <= 8192
    drawn = load_script().draw(name)
    with Image.open(path) as saved:
        assert saved.mode == "P"
        same = np.array_equal(np.asarray(saved.convert("RGB")), np.asarray(drawn.convert("RGB")))
        assert same, "run python docs/pictures.py"
