"""The formatter keeps the program and its comments, and changes nothing twice; the lexer knows
every word.
"""

from __future__ import annotations

import random
import re
from dataclasses import fields, is_dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from random_trees import exprs, files
from test_parse import EVERYTHING
from typer.testing import CliRunner

import maskdsl
from maskdsl.cli import app
from maskdsl.language import syntax
from maskdsl.language.format import format_text, print_expr, print_file, print_signature
from maskdsl.language.grammar import parser
from maskdsl.language.layout import WIDTH
from maskdsl.language.library import STD
from maskdsl.language.parse import MAX_TEXT, parse_text

ROOT = Path(__file__).parent.parent
DESIGN = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
EXAMPLES = "\n".join(
    line
    for line in DESIGN.partition("### Grammar")[0].splitlines()
    if line.startswith("    ") and "--" not in line
)
FILES = sorted([*STD.glob("*.mask"), *(ROOT / "examples").rglob("*.mask")])
TEXTS = {"everything": EVERYTHING, "design": EXAMPLES} | {
    p.stem: p.read_text(encoding="utf-8") for p in FILES
}
random_files = settings(
    max_examples=80, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True
)
each_text = pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)


def exact(tree: Any) -> Any:
    """A tree without its spans that tells `1`, `1.0` and `true` apart."""
    if is_dataclass(tree):
        parts = [getattr(tree, f.name) for f in fields(tree) if f.compare]
        return type(tree).__name__, [exact(p) for p in parts]
    if isinstance(tree, tuple):
        return [exact(x) for x in tree]
    return type(tree).__name__, tree


def expr_of(text: str) -> syntax.Expr:
    return parse_text(f"def f() return {text}").defs[0].value


def comments(text: str) -> list[str]:
    return [c.rstrip() for c in re.findall(r"#[^\n]*", text)]


def check(text: str) -> str:
    """The canonical form, after the promises that hold for every text."""
    formatted = format_text(text)
    assert exact(parse_text(formatted)) == exact(parse_text(text))
    assert comments(formatted) == comments(text)
    assert format_text(formatted) == formatted
    return formatted


def test_the_design_has_its_examples() -> None:
    assert len(parse_text(EXAMPLES).patterns) == 4


@each_text
def test_texts_keep_their_meaning(text: str) -> None:
    formatted = check(text)
    assert all(len(line.partition("#")[0].rstrip()) <= WIDTH for line in formatted.splitlines())
    assert "\n\n\n" not in formatted
    file = parse_text(text)
    assert exact(parse_text(print_file(file))) == exact(file)


@given(exprs)
@random_files
def test_random_expressions_print_and_parse(e: syntax.Expr) -> None:
    text = print_expr(e)
    assert "\n" not in text
    assert exact(expr_of(text)) == exact(e)
    assert exact(parse_text(check(f"def f() return {text}")).defs[0].value) == exact(e)


@given(files())
@random_files
def test_random_files_print_and_parse(file: syntax.File) -> None:
    text = print_file(file)
    assert exact(parse_text(text)) == exact(file)
    assert format_text(text) == text


@given(files(), st.randoms(use_true_random=False))
@random_files
def test_comments_and_parentheses_anywhere(file: syntax.File, rng: random.Random) -> None:
    text = print_file(file)
    lines = check(_disturbed(text, rng)).splitlines()
    bare = "\n".join(line.partition("#")[0] for line in lines)
    assert "".join(bare.split()) == "".join(text.split())  # no parenthesis more than needed


@each_text
def test_comments_anywhere_in_real_texts(text: str) -> None:
    rng = random.Random(0)
    for _ in range(5):
        check(_disturbed(re.sub("#.*", "", text), rng))


def _disturbed(text: str, rng: random.Random) -> str:
    """The text with parentheses around literals, and other white space and comments."""
    tokens = []
    for token in parser().lex(text):
        wraps = rng.randrange(3) if token.type in ("INT", "FLOAT", "TRUE", "FALSE") else 0
        tokens += ["("] * wraps + [str(token)] + [")"] * wraps
    out = []
    for n, (token, following) in enumerate(pairwise([*tokens, "("])):
        separators = [" ", " ", "\n", "\n\n \n", f" # {n}\n", f"#{n}  \n\n# {n}b\n"]
        if {token, following} & set("()[],"):
            separators += ["", ""]
        out += [token, rng.choice(separators)]
    return "".join(out)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("((a))+(b*c)-(d-e)", "a + b * c - (d - e)"),
        ("(a+b)+c", "(a + b) + c"),
        ("(a and b)or not(c or d)", "a and b or not (c or d)"),
        ("(a and b)and c", "(a and b) and c"),
        ("(-2)**2 - -(2**(-x))", "(-2) ** 2 - -2 ** -x"),
        ("(a**b)**c**d", "(a ** b) ** c ** d"),
        ("(a<b)==(c in d..e)", "(a < b) == (c in d .. e)"),
        ("(if a then b else c)+(sum i in 0..3:i)", "(if a then b else c) + (sum i in 0 .. 3: i)"),
        ("if(if a then b else c)then(d)else(e)", "if if a then b else c then d else e"),
        ("sum i in not(a in b)..3:i", "sum i in not (a in b) .. 3: i"),
        ("sum i in (if a then b else c in d)..(e in f):i",
         "sum i in if a then b else (c in d) .. e in f: i"),
        ("f((a),x=(b))", "f(a, x=b)"),
        ("t[(0),-1] + int((1_000)) * 1e-3", "t[0, -1] + int(1000) * 0.001"),
    ],
)  # fmt: skip
def test_parentheses_are_those_needed(text: str, expected: str) -> None:
    assert print_expr(expr_of(text)) == expected
    assert exact(expr_of(expected)) == exact(expr_of(text))


UGLY = """

# The file.


# Near tokens.
def f(a: axis, # the axis
  b: int = 2_000 # the size
  , c: float=1e-3) # end of header
let z = (   a + ((b)) # after b
   )

let w = f(1, x=2)let v=(if aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa then b else
 if c then ddddddddddddddddddddddddddddddd else g)
return a and # first
  b and # second
  # own
  (c or d)
  # the end of f

pattern p(window: int[heads, 3]) over video(t, s) then text(n)
keep video -> any,text->text: 0<=q.n-k.n<1 or
(first_function_of_some_length(q.n) + second_function(q.n)+third)>1
# the end
"""
PRETTY = """\
# The file.

# Near tokens.
def f(
    a: axis,  # the axis
    b: int = 2_000,  # the size
    c: float = 1e-3
)  # end of header
let z = a + b  # after b

let w = f(1, x=2)
let v = if aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa then b
    else if c then ddddddddddddddddddddddddddddddd
    else g
return a  # first
    and b  # second
    # own
    and (c or d)
# the end of f

pattern p(window: int[heads, 3])
over video(t, s) then text(n)
keep video -> any, text -> text: 0 <= q.n - k.n < 1
    or first_function_of_some_length(q.n) + second_function(q.n) + third > 1
# the end
"""


def test_the_canonical_form() -> None:
    assert check(UGLY) == PRETTY


@pytest.mark.parametrize("text", ["", "\n \n", "# only\n\n\n# comments", "pattern f over (n)"])
def test_small_texts(text: str) -> None:
    formatted = check(text)
    assert formatted == "" or (formatted.endswith("\n") and not formatted.startswith("\n"))


@pytest.mark.parametrize(
    "value",
    [
        "(" * 98 + "n" + ")" * 98,
        "-" * 98 + "n",
        "not " * 98 + "n",
        "if a then b else " * 98 + "n",
        "if " * 98 + "n" + " then b else c" * 98,
        "f(" * 98 + "n" + ", 1)" * 98,
        "2 ** (1 - " * 32 + "n" + ")" * 32,
        "sum i in 0 .. 3: " * 98 + "n",
        "sum i in sum j in 0 .. 3: (j in a) .. 3: i",
        " + ".join(["q.n"] * 4_000),
        " or ".join(["a"] * 5_000),
        "f(" + "1," * 5_000 + "1)",
        "a # c\n" + "and b # d\n" * 2_000,
        "\n" * 60_000 + "a",
        "x" * 200 + " + " + "y" * 200,
    ],
    ids=range(15),
)
def test_deep_and_long_texts(value: str) -> None:
    check(f"def f() return {value}")


def test_a_text_at_its_limit_is_left_as_it_is() -> None:
    text = "pattern f over (n) keep " + "a" + "+a" * 17_000
    assert len(text) < MAX_TEXT < len(text.replace("+", " + "))
    assert format_text(text) == text


def test_wrong_texts_raise() -> None:
    with pytest.raises(maskdsl.ParseError, match=r"a\.mask:1:1"):
        format_text("patern f", "a.mask")


def test_signatures() -> None:
    text = print_signature(parse_text(EVERYTHING).patterns[0])
    assert text.splitlines() == [
        "pattern g(w: int[3], t: bool[n, _], k0: float = 0.001)",
        "over a(n, m) then b(l) -> c(k)",
        "input d[batch, _, 2 * w]: int",
        "input s[heads]: float",
    ]


@each_text
def test_the_lexer_knows_every_word(text: str) -> None:
    from pygments.token import Error

    from maskdsl.language.highlight import MaskLexer

    tokens = list(MaskLexer().get_tokens_unprocessed(text))
    assert "".join(value for _, _, value in tokens) == text
    assert not [value for _, kind, value in tokens if kind in Error]


def test_the_lexer_tells_words_apart() -> None:
    from pygments.lexers import load_lexer_from_file
    from pygments.token import Comment, Keyword, Name, Number, Operator

    import maskdsl.language.highlight as module

    lexer = load_lexer_from_file(module.__file__, "MaskLexer")
    text = "pattern f(w: int) over (n) # c\nkeep q.int_ in 0 .. 1_0 and int(1e-3) < interval"
    found = {value: kind for kind, value in lexer.get_tokens(text)}
    assert found["pattern"] is Keyword and found["over"] is Keyword
    assert found["f"] is Name.Function and found["int_"] is Name.Attribute
    assert found["interval"] is Name and found["q"] is Name.Builtin.Pseudo
    assert found["in"] is Operator.Word and found[".."] is Operator
    assert found["1_0"] is Number.Integer and found["1e-3"] is Number.Float
    assert found["# c"] is Comment.Single


def run(*args: str, given: str | bytes = "") -> Any:
    return CliRunner().invoke(app, args, given)


def test_the_command_rewrites_files(tmp_path: Path) -> None:
    ugly, pretty, wrong = (tmp_path / f"{n}.mask" for n in ("ugly", "pretty", "wrong"))
    ugly.write_text(UGLY)
    pretty.write_text(PRETTY)
    wrong.write_text("patern f")
    failed = run("fmt", str(ugly), str(wrong))
    assert isinstance(failed.exception, maskdsl.ParseError) and ugly.read_text() == UGLY
    listed = run("fmt", "--check", str(ugly), str(pretty))
    assert (listed.exit_code, listed.stdout) == (1, f"{ugly}\n") and ugly.read_text() == UGLY
    assert run("fmt", str(ugly), str(pretty)).exit_code == 0
    assert ugly.read_text() == pretty.read_text() == PRETTY
    assert run("fmt", "--check", str(ugly)).exit_code == 0


def test_the_command_reads_standard_input() -> None:
    assert run("fmt", "-", given=UGLY).stdout == PRETTY
    assert run("fmt", "-", given=PRETTY.replace("\n", "\r\n")).stdout == PRETTY
    assert run("fmt", "--check", "-", given=UGLY).exit_code == 1
    assert isinstance(run("fmt", "-", given=b"\xff").exception, maskdsl.ParseError)
    assert isinstance(run("fmt", "-", given="é" * MAX_TEXT).exception, maskdsl.ParseError)
    assert isinstance(run("fmt", "std/swin").exception, maskdsl.errors.BindError)


def test_check_prints_what_patterns_take() -> None:
    assert run("check", "std/swin").stdout.split("\n\n")[1].splitlines() == [
        "pattern swin(window: int[2], shift: int[2])",
        "over (y, x)",
    ]
    assert run("check", "std/swin", "--name", "swin3d").stdout.startswith("pattern swin3d(")
    assert isinstance(run("check", "std/swim").exception, maskdsl.errors.BindError)
