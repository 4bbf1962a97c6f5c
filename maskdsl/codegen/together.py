"""Several emitted modules as one text: what they share stands once, what they name alike but mean
differently gets names of its own.
"""

from __future__ import annotations

import ast
import io
import tokenize
from collections.abc import Mapping
from dataclasses import dataclass

_DROPPED = ("TYPES",)  # what only compiling ahead of time reads


@dataclass(frozen=True)
class Part:
    """A definition at the top of a module. name: what it defines. text: all of it, with comments on
    its lines. uses: names that stand in it.
    """

    name: str
    text: str
    uses: frozenset[str]


@dataclass(frozen=True)
class Together:
    """shared: texts of what all modules that have it mean alike. own: by module, texts of the rest
    in order. imports: lines. names: by module, what its names became.
    """

    imports: tuple[str, ...]
    shared: tuple[str, ...]
    own: Mapping[str, tuple[str, ...]]
    names: Mapping[str, Mapping[str, str]]


def join(sources: Mapping[str, str], renamed: Mapping[str, Mapping[str, str]]) -> Together:
    """Modules by name as one. renamed: by module, new names for some of its definitions.

    Other definitions that modules name alike with different meanings get the module's name before
    theirs, but for the first module.
    """
    parts = {module: _parts(text) for module, text in sources.items()}
    imports: dict[str, None] = {}
    for text in sources.values():
        imports |= dict.fromkeys(_imports(text))
    alone = _conflicts(parts) | {n for names in renamed.values() for n in names}
    first = next(iter(sources))
    names: dict[str, dict[str, str]] = {}
    for module, own in parts.items():
        names[module] = {
            p.name: renamed.get(module, {}).get(p.name)
            or (p.name if module == first else _prefixed(p.name, module))
            for p in own
            if p.name in alone
        }
    shared: dict[str, str] = {}
    rest: dict[str, list[str]] = {module: [] for module in sources}
    several = {n for n in shared_names(parts) if n not in alone}
    for module, own in parts.items():
        for p in own:
            if p.name in several:
                shared[p.name] = p.text
            else:
                rest[module].append(_with_names(p.text, names[module]))
    order = sorted(imports, key=lambda line: (line not in ("import math",), line.startswith("from"),
                                              len(line)))  # fmt: skip
    own_texts = {module: tuple(texts) for module, texts in rest.items()}
    return Together(tuple(order), tuple(shared.values()), own_texts, names)


def shared_names(parts: Mapping[str, list[Part]]) -> set[str]:
    """Names that several modules define."""
    found: dict[str, int] = {}
    for own in parts.values():
        for p in own:
            found[p.name] = found.get(p.name, 0) + 1
    return {name for name, n in found.items() if n > 1}


def _conflicts(parts: Mapping[str, list[Part]]) -> set[str]:
    """Names of several modules whose texts differ, or whose texts read such names."""
    texts: dict[str, set[str]] = {}
    uses: dict[str, set[str]] = {}
    for own in parts.values():
        for p in own:
            texts.setdefault(p.name, set()).add(p.text)
            uses.setdefault(p.name, set()).update(p.uses)
    several = shared_names(parts)
    found = {n for n in several if len(texts[n]) > 1}
    while True:
        more = {n for n in several - found if uses[n] & found}
        if not more:
            return found
        found |= more


def _prefixed(name: str, module: str) -> str:
    return f"{module.upper() if name.isupper() else module}_{name}"


def _imports(text: str) -> list[str]:
    nodes = ast.parse(text).body
    return [ast.unparse(n) for n in nodes if isinstance(n, (ast.Import, ast.ImportFrom))]


def _parts(text: str) -> list[Part]:
    """The definitions of a module in order, but for imports."""
    lines = text.splitlines()
    found = []
    for node in ast.parse(text).body:
        if isinstance(node, ast.FunctionDef):
            name, first = node.name, min([node.lineno, *(d.lineno for d in node.decorator_list)])
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            name, first = node.targets[0].id, node.lineno
        else:
            continue
        if name not in _DROPPED:
            own = "\n".join(lines[first - 1 : node.end_lineno])
            uses = {n.id for n in ast.walk(node) if isinstance(n, ast.Name)} - {name}
            found.append(Part(name, own, frozenset(uses)))
    return found


def _with_names(text: str, names: Mapping[str, str]) -> str:
    """The text with other names; attributes and arguments by name keep theirs."""
    tokens = list(tokenize.generate_tokens(io.StringIO(text + "\n").readline))
    lines = text.splitlines()
    depth = 0
    changes: list[tuple[int, int, int, str]] = []
    for i, token in enumerate(tokens):
        depth += {"(": 1, "[": 1, "{": 1, ")": -1, "]": -1, "}": -1}.get(token.string, 0)
        if token.type != tokenize.NAME or token.string not in names:
            continue
        given = depth > 0 and tokens[i + 1].string == "="
        if given or (i and tokens[i - 1].string == "."):
            continue
        (row, low), (_, high) = token.start, token.end
        changes.append((row - 1, low, high, names[token.string]))
    for row, low, high, name in reversed(changes):
        lines[row] = lines[row][:low] + name + lines[row][high:]
    return "\n".join(lines)
