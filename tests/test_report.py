"""The report page: what it holds, and what it shows in a browser."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import grid_cases
import numpy as np
import pytest
import torch
from browser import Browser, browser
from kernels import RADIAL

import maskdsl
from maskdsl.report import Report, report

TRAP = """# </script><script>document.title = "broken"</script> <b>&amp;</b> {{ 7 * 7 }}
pattern trap(window: int = 9)
over (n)
keep abs(q.n - k.n) < window or random(3, q.n // 4, k.n // 4) < 0.2
"""
MIXED = """pattern mixed(table: bool[n])
over (n)
keep causal(n) and (head < heads // 2 or (q.n - k.n) % 7 == 0)
keep table[k.n] and bit_count(q.n * 3 + k.n) == 4
keep (q.n - 30) // (k.n - 11) == -2
"""
SEGMENTS = """pattern segments
over image(h, w) then text(n)
keep image -> image: near(h, 1) and near(w, 2)
keep text -> text: causal(n)
keep any -> text: true
"""
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "trap": (TRAP, {"n": 80}),
    "mixed": (MIXED.replace("// (k.n - 11)", "// (2 * k.n - 11)"),
              {"n": 70, "heads": 4, "table": np.arange(70) % 9 == 0}),
    "segments": (SEGMENTS, {"h": 5, "w": 9, "n": 12}),
    "natten2d": ("std/natten2d", {"y": 12, "x": 18, "window": [5, 7], "stride": [1, 2],
                                  "dilation": [1, 1], "causal": [False, False]}),
    "radial": (RADIAL, {"t": 7, "s": 13, "decay": 0.95, "least": 6}),
    "natten3d": ("std/natten3d", {"t": 4, "y": 6, "x": 10, "window": [3, 3, 5],
                                  "stride": [1, 1, 1], "dilation": [1, 1, 1],
                                  "causal": [False] * 3}),
    "cross": ("pattern cross over (n) -> (m) keep k.m <= 2 * q.n", {"n": 20, "m": 50}),
}  # fmt: skip


def mask_of(name: str) -> maskdsl.Mask:
    text, values = CASES[name]
    read = maskdsl.load if text.startswith("std/") else maskdsl.parse
    return read(text).bind(**values)


def made(mask: maskdsl.Mask, **options: Any) -> Report:
    return report(mask, version="0.0.0", head_dim=32, dtype=torch.float16, **options)


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    found = {}
    for name in CASES:
        found[name] = folder / f"{name}.html"
        found[name].write_text(made(mask_of(name)).html)
    return found


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browser() as found:
        yield found


class Outline(HTMLParser):
    """Every tag with its attributes, and the text of headings."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def test_a_page_loads_nothing(pages: dict[str, Path]) -> None:
    for file in pages.values():
        text = file.read_text()
        assert len(text) < 500_000
        outline = Outline(text)
        for tag, attributes in outline.tags:
            assert tag not in ("link", "img", "iframe", "object", "embed", "base")
            assert "src" not in attributes
            assert (attributes.get("href") or "#").startswith("#")
        assert "url(" not in text and "@import" not in text
        assert [t for t, _ in outline.tags].count("script") == 2


def test_what_a_pattern_says_is_text(pages: dict[str, Path]) -> None:
    text = pages["trap"].read_text()
    assert "&lt;/script&gt;&lt;script&gt;" in text and "&amp;amp;" in text and "{{ 7 * 7 }}" in text
    assert text.count("</script>") == 2


def test_what_it_says(pages: dict[str, Path]) -> None:
    text = pages["natten2d"].read_text()
    mask = mask_of("natten2d")
    assert f"{mask.pairs:,}" in text
    for device in ("a100", "b200", "h100", "h200", "mi300x", "rtx4090"):
        assert f'<th scope="row">{device}</th>' in text
    assert "Values of stride, forward on h200" in text and "[2, 2]" in text
    assert 'class="n">natten2d_forward' in text or "natten2d_forward" in text
    plain = re.sub(r"<[^>]+>", "", text)
    assert "@triton.jit" in plain and "Gradients of keys" in plain


def test_what_it_cannot_show_is_said(tmp_path: Path) -> None:
    mask = maskdsl.load("std/documents").bind(n=60, heads=2)
    page = made(mask)
    assert "the input 'doc' decides" in page.notes[0] and "made without them" in page.html
    doc = np.arange(60)[None] // 13
    assert not made(mask, inputs={"doc": doc}).notes
    with pytest.raises(maskdsl.BindError, match="no input 'docs'"):
        made(mask, inputs={"docs": doc})
    wide = maskdsl.parse("pattern wide over (n) keep q.n ** 9 % 1000003 < 300000 + k.n")
    assert "beyond those of JavaScript" in made(wide.bind(n=64)).notes[0]


def test_many_kinds_of_heads() -> None:
    mask = maskdsl.parse("pattern p over (n) keep (q.n - k.n) % (head + 1) == 0")
    page = made(mask.bind(n=40, heads=11))
    assert page.notes == ("3 further kinds of heads are not drawn",)
    assert page.notes[0] in page.html


def test_without_a_kernel() -> None:
    """Kernels take a head_dim of 256 at most."""
    mask = maskdsl.load("std/causal").bind(n=64)
    page = report(mask, version="0.0.0", head_dim=300)
    assert "no kernel is shown" in page.notes[-1] and "No kernel is shown" in page.html


def test_vary() -> None:
    mask = maskdsl.load("std/sliding_window").bind(n=4096, window=256)
    text = made(mask, vary=("window", [128, 512])).html
    assert "Values of window" in text and "this page is about window = 256" in text
    with pytest.raises(maskdsl.BindError, match="--vary takes one of n, window"):
        made(mask, vary=("size", [1]))


def test_large_masks(tmp_path: Path, chromium: Browser) -> None:
    mask = maskdsl.load("std/sliding_window").bind(n=2**20, window=4096)
    file = tmp_path / "large.html"
    file.write_text(made(mask).html)
    assert file.stat().st_size < 500_000
    chromium.open(file)
    seen = chromium.run("take(700000); return document.getElementById('seen').textContent")
    dash = "\u2013"
    assert seen == (
        f"Query 700,000 (n = 700000) sees 4,096 of 1,048,576 keys: 695,905{dash}700,000."
    )
    assert not chromium.errors()


@pytest.mark.parametrize("name", CASES)
def test_the_page_knows_the_mask(name: str, pages: dict[str, Path], chromium: Browser) -> None:
    """Every pair, as the page's script has it, is that of the definition."""
    mask = mask_of(name)
    chromium.open(pages[name])
    heads = chromium.run("return D.shown.map((s) => s.head)")
    for head in heads:
        rows = chromium.run(
            "const found = []; for (let q = 0; q < D.queries; q++)"
            " found.push(Array.from(keysOf(arguments[0], 0, q)).join('')); return found;", head,
        )  # fmt: skip
        want = ["".join(str(int(x)) for x in row) for row in mask.dense(head=head)]
        assert rows == want
        single = chromium.run(
            "return [[0, 0], [3, 5], [11, 2]].map(([q, k]) => sees(arguments[0], 0, q, k))", head
        )
        dense = mask.dense(head=head)
        assert single == [bool(dense[q, k]) for q, k in ((0, 0), (3, 5), (11, 2))]
    assert not chromium.errors()


@pytest.mark.slow
def test_the_page_knows_the_library(chromium: Browser, tmp_path: Path) -> None:
    """As above, of every entry with an oracle."""
    file = tmp_path / "page.html"
    different = []
    for name, draw in sorted(grid_cases.CASES.items()):
        case = draw(np.random.default_rng(5))
        entry, _, pattern = name.partition(":")
        mask = maskdsl.load(f"std/{entry}", pattern or None).bind(**case.bound)
        page = made(mask, inputs=case.inputs)
        assert not page.notes, (name, page.notes)
        file.write_text(page.html)
        chromium.open(file)
        for head in chromium.run("return D.shown.map((s) => s.head)"):
            rows = chromium.run(
                "const found = []; for (let q = 0; q < D.queries; q++)"
                " found.push(Array.from(keysOf(arguments[0], 0, q))); return found;", head,
            )  # fmt: skip
            if not np.array_equal(rows, mask.dense(head=head, **case.inputs)):
                different.append((name, head))
    assert not different and not chromium.errors()


def test_inputs_at_hand_decide(tmp_path: Path, chromium: Browser) -> None:
    mask = maskdsl.load("std/documents").bind(n=60)
    doc = np.stack([np.arange(60) // 13, np.arange(60) // 29])
    file = tmp_path / "documents.html"
    file.write_text(made(mask, inputs={"doc": doc}).html)
    chromium.open(file)
    for batch in (0, 1):
        row = chromium.run("return Array.from(keysOf(0, arguments[0], 41))", batch)
        assert row == mask.dense(batch=batch, doc=doc)[41].astype(int).tolist()
    assert not chromium.run("return document.getElementById('batch-label').hidden")


def pixel(chromium: Browser, x: float, y: float) -> list[int]:
    """The colour of the picture of all pairs, at shares of its sides."""
    return chromium.run(
        "const c = document.getElementById('pairs');"
        "return Array.from(c.getContext('2d').getImageData(arguments[0] * c.width,"
        " arguments[1] * c.height, 1, 1).data).slice(0, 3)", x, y,
    )  # fmt: skip


KEPT, EMPTY = [42, 111, 151], [236, 236, 234]


def test_zooming_and_clicking(pages: dict[str, Path], chromium: Browser) -> None:
    chromium.open(pages["natten2d"])
    chromium.settle()
    assert pixel(chromium, 0.95, 0.02) == EMPTY
    script = """
        const canvas = document.getElementById("pairs"), box = canvas.getBoundingClientRect();
        const at = { clientX: box.left + box.width * arguments[0], pointerId: 1, bubbles: true,
                     clientY: box.top + box.height * arguments[1] };
        canvas.setPointerCapture = () => {};
        canvas.dispatchEvent(new PointerEvent("pointerdown", at));
        canvas.dispatchEvent(new PointerEvent("pointerup", at));
        return [state.query, document.getElementById("seen").textContent,
                [...document.querySelectorAll("#coordinates input")].map((x) => x.value)];
    """
    query, seen, coordinates = chromium.run(script, 0.5, 0.25)
    keys = int(mask_of("natten2d").dense()[query].sum())
    assert query == 216 // 4 and f"sees {keys} of 216 keys" in seen
    assert coordinates == [str(query // 18), str(query % 18)]
    for _ in range(6):
        chromium.run("document.getElementById('zoom-in').click()")
        chromium.settle()
    view = chromium.run("return state.view")
    assert view["w"] == view["h"] == 12
    query, key = int(view["y"]) + 3, int(view["x"]) + 3
    kept = bool(mask_of("natten2d").dense()[query, key])
    found = pixel(chromium, (key + 0.5 - view["x"]) / 12, (query + 0.5 - view["y"]) / 12)
    assert (found == KEPT) == kept
    chromium.run(
        "document.getElementById('pairs').dispatchEvent(new KeyboardEvent('keydown', {key: '0'}))"
    )
    assert chromium.run("return state.view") == {"x": 0, "y": 0, "w": 216, "h": 216}


def test_heads_differ(pages: dict[str, Path], chromium: Browser) -> None:
    chromium.open(pages["mixed"])
    labels = chromium.run("return [...document.getElementById('head').options].map((o) => o.text)")
    assert labels == ["head 0 and 1 like it", "head 2 and 1 like it"]
    chromium.run(
        "const s = document.getElementById('head'); s.value = 1;"
        "s.dispatchEvent(new Event('change'))"
    )
    assert chromium.run("return state.head") == 2
    assert not chromium.errors()


@pytest.mark.parametrize("width", [390, 1280])
def test_it_fits_a_phone_and_follows_the_colours(
    width: int, pages: dict[str, Path], chromium: Browser
) -> None:
    for dark in (False, True):
        chromium.open(pages["natten3d"], width=width, dark=dark)
        wide, inner = chromium.run("return [document.documentElement.scrollWidth, innerWidth]")
        assert wide <= inner
        paper = chromium.run("return getComputedStyle(document.body).backgroundColor")
        assert paper == ("rgb(20, 24, 29)" if dark else "rgb(255, 255, 255)")
        small = chromium.run(
            "return [...document.querySelectorAll('button, select, input')].filter("
            "(x) => x.offsetParent && x.getBoundingClientRect().height < 32).length"
        )
        assert small == 0
    unnamed = chromium.run(
        "return [...document.querySelectorAll('canvas, input, select, button')].filter((x) =>"
        " !x.closest('[hidden]') && !x.ariaLabel && !(x.labels && x.labels.length)"
        " && !x.textContent.trim()).length"
    )
    assert unnamed == 0
    assert not chromium.errors()


def test_it_prints(pages: dict[str, Path], chromium: Browser, tmp_path: Path) -> None:
    chromium.open(pages["radial"], dark=True)
    chromium.settle()
    chromium.print(tmp_path / "page.pdf")
    assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF")
    assert chromium.run("takeColours(true); return palette.kept") == "#2a6f97"
