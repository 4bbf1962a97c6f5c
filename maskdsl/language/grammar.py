"""The parser of the grammar, from tables made beforehand: making takes 60 ms, reading them 5."""

from __future__ import annotations

import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any

import lark
from lark import Lark
from lark.grammar import Rule
from lark.lexer import TerminalDef

GRAMMAR = Path(__file__).parent / "grammar.lark"
TABLES = Path(__file__).parent / "grammar.json"  # what `tables` gave for this grammar


@cache
def parser() -> Lark:
    """From the stored tables where they are of this grammar and this lark, else made anew."""
    try:
        stored = json.loads(TABLES.read_text(), object_pairs_hook=_numbered)
        if stored["made_for"] == _made_for():
            read: Lark = Lark._load_from_dict(  # type: ignore[no-untyped-call]
                stored["data"], stored["memo"]
            )
            return read
    except (OSError, ValueError, KeyError, TypeError):
        pass  # absent or damaged: only slower
    return make()


def make() -> Lark:
    return Lark(
        GRAMMAR.read_text(),
        parser="lalr",
        lexer="basic",
        propagate_positions=True,
        maybe_placeholders=True,
    )


def tables() -> str:
    """The tables as JSON text; how states are numbered is lark's whim."""
    data, memo = make().memo_serialize([TerminalDef, Rule])
    found = {"made_for": _made_for(), "data": data, "memo": memo}
    return json.dumps(found, separators=(",", ":")) + "\n"


def _made_for() -> list[str]:
    return [lark.__version__, hashlib.sha256(GRAMMAR.read_bytes()).hexdigest()]


def _numbered(pairs: list[tuple[str, Any]]) -> dict[Any, Any]:
    """States and symbols are numbered; JSON's keys are texts."""
    return {int(k) if k.isdecimal() else k: v for k, v in pairs}
