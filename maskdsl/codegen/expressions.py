"""Typed expressions as Triton source text, each part named and placed as early as it is known.

What is used more than once gets a name, and so does what depends on one side only where something
of both sides uses it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from maskdsl.codegen.memory import checked, only_compared
from maskdsl.codegen.operators import text_of
from maskdsl.codegen.sides import Stage, stages
from maskdsl.codegen.text import WIDTH, Key, Text, Width
from maskdsl.codegen.truths import in_24_bits
from maskdsl.ir.nodes import Array, Node

LINE = 100
_PREFIX = {
    "q": {
        Stage.ONCE: "once", Stage.ROW: "row", Stage.RUN: "run", Stage.KEY: "key",
        Stage.PAIR: "pair",
    },
    "k": {
        Stage.ONCE: "once", Stage.ROW: "key", Stage.RUN: "run", Stage.KEY: "row",
        Stage.PAIR: "pair",
    },
}  # fmt: skip


@dataclass(frozen=True)
class Statement:
    """`name = text`, of one stage; `parts` make up the text of a long
    chain.
    """

    stage: Stage
    name: str
    text: str
    parts: tuple[tuple[str, str], ...] = ()

    def lines(self, indent: int) -> list[str]:
        """The statement at this indentation; a long chain as `name = ...`, `name &= ...`."""
        line = f"{self.name} = {self.text}"
        if indent + len(line) <= LINE or not self.parts:
            return [line]
        first, *rest = self.parts
        return [f"{self.name} = {first[1]}", *(f"{self.name} {s}= {x}" for s, x in rest)]


@dataclass
class Printed:
    """What a kernel needs to evaluate expressions.

    statements: in order. roots: text of each root, for pairs; plain: at its own stage. needed: per
    root, the names it needs. helpers: functions used. arrays: tables and inputs read, by name.
    indexing: sides ("q", "k") whose coordinates index memory.
    """

    statements: list[Statement] = field(default_factory=list)
    roots: dict[str, Text] = field(default_factory=dict)
    plain: dict[str, Text] = field(default_factory=dict)
    needed: dict[str, frozenset[str]] = field(default_factory=dict)
    helpers: set[str] = field(default_factory=set)
    arrays: dict[str, Array] = field(default_factory=dict)
    indexing: set[str] = field(default_factory=set)

    @property
    def text(self) -> str:
        """Of everything."""
        texts = [s.text for s in self.statements]
        return " ".join([*texts, *(t.text for t in self.roots.values())])

    def of(self, stage: Stage, *roots: str) -> list[Statement]:
        """Statements of a stage that any of these roots needs."""
        return [
            s
            for s in self.statements
            if s.stage == stage and any(s.name in self.needed[r] for r in roots)
        ]


def print_roots(
    roots: Mapping[str, tuple[Node, bool]],
    coordinates: Mapping[tuple[str, str], str],
    last_axis: str,
    home: str = "q",
    numbers: dict[str, int] | None = None,
    counts: dict[Stage, int] | None = None,
) -> Printed:
    """Text of expressions over all pairs of a tile.

    roots: name to (node, exact). coordinates: (side, axis) to the variable that holds it.
    last_axis: the axis that moves within a run. home: the side whose tile a program holds.
    numbers: of tables without a name, by content; kernels of one module share them. counts: names
    given so far, by stage; what is printed into one kernel shares them.
    """
    stage = stages([n for n, _ in roots.values()], last_axis, home)
    numbers, counts = {} if numbers is None else numbers, {} if counts is None else counts
    return Printer(coordinates, stage, home, numbers, counts).run(roots)


class Printer:
    """One run: what was named so far."""

    def __init__(
        self,
        coordinates: Mapping[tuple[str, str], str],
        stage: Mapping[Node, Stage],
        home: str,
        numbers: dict[str, int],
        counts: dict[Stage, int],
    ) -> None:
        self.prefix = _PREFIX[home]
        self.coordinates = coordinates
        self.stage = stage
        self.has_float: dict[Node, bool] = {}
        for n in stage:  # arguments come before users
            self.has_float[n] = n.type == "float" or any(self.has_float[a] for a in n.args)
        self.width = Width(stage)
        self.compared = only_compared(stage)
        self.texts: dict[Key, Text] = {}
        self.named: set[Key] = set()
        self.counts = counts
        self.names: dict[Key, list[str]] = {}  # what each node needs, its own name last
        self.tops: dict[Key, str] = {}
        self.numbers = numbers
        self.out = Printed()

    def run(self, roots: Mapping[str, tuple[Node, bool]]) -> Printed:
        tops = {name: self._key(node, exact) for name, (node, exact) in roots.items()}
        self.tops = {k: n for n, k in tops.items() if self.stage[k[0]] == Stage.PAIR}
        order = self._order(list(tops.values()))
        self._choose(order, list(tops.values()))
        for key in order:
            text = self._short(key, text_of(self, key))
            leaf = key[0].op in ("const", "coord", "head", "batch", "logit")
            short = key not in self.named and len(text.text) <= WIDTH
            self.texts[key] = text if leaf or short else self.name(key, text)
        for name, key in tops.items():
            self.out.roots[name] = self.use(key, Stage.PAIR)
            self.out.plain[name] = self.texts[key]
            below = set(self._order([key]))
            needed = (n for k in below for n in self.names.get(k, ()))
            self.out.needed[name] = frozenset(needed)
        return self.out

    def _short(self, key: Key, text: Text) -> Text:
        """The text with its longest arguments named, if it is too long for a line."""
        args = sorted(self.args(key), key=lambda a: -len(self.texts[a].text))
        for arg in args if key[0].op != "load" else ():
            if len(text.text) <= WIDTH or not arg[0].args:
                break
            self.texts[arg] = self.name(arg, self.texts[arg])
            text = text_of(self, key)
        return text

    def _choose(self, order: list[Key], tops: list[Key]) -> None:
        """What gets a name."""
        uses: dict[Key, int] = {}
        for key in order:
            for i, arg in enumerate(self.args(key)):
                twice = key[0].op == "load" and checked(key[0], i)  # an index and its check
                uses[arg] = uses.get(arg, 0) + (2 if twice else 1)
                if self.stage[arg[0]] < self.stage[key[0]]:
                    self.named.add(arg)
        self.named |= {key for key, n in uses.items() if n > 1}
        self.named |= {key for key in tops if self.stage[key[0]] < Stage.PAIR}

    def _key(self, node: Node, exact: bool) -> Key:
        return node, exact or node.type == "int" or not self.has_float[node]

    def args(self, key: Key) -> list[Key]:
        exact = key[1] and not in_24_bits(key[0])
        return [self._key(a, exact) for a in key[0].args]

    def _order(self, tops: list[Key]) -> list[Key]:
        seen: set[Key] = set()
        order: list[Key] = []
        stack = [(k, False) for k in reversed(tops)]
        while stack:
            key, done = stack.pop()
            if done:
                order.append(key)
            elif key not in seen:
                seen.add(key)
                stack.append((key, True))
                stack.extend((a, False) for a in reversed(self.args(key)))
        return order

    def name(
        self,
        key: Key,
        text: Text,
        parts: tuple[tuple[str, str], ...] = (),
        stage: Stage | None = None,
    ) -> Text:
        """A new name for a node's text, or for a part of it that is known at an earlier stage."""
        if stage is None:
            stage = self.stage[key[0]]
            name = self.tops.get(key, "")
        else:
            same = (x.name for x in self.out.statements if (x.stage, x.text) == (stage, text.text))
            name = next(same, "")
            if name:
                self.names.setdefault(key, []).append(name)
                return Text(name)
        if not name:
            self.counts[stage] = self.counts.get(stage, -1) + 1
            name = f"{self.prefix[stage]}{self.counts[stage]}"
        self.names.setdefault(key, []).append(name)
        self.out.statements.append(Statement(stage, name, text.text, parts))
        return Text(name)

    def use(self, key: Key, at: Stage) -> Text:
        """A part as its user sees it: vectors spread over the pairs."""
        text, stage = self.texts[key], self.stage[key[0]]
        if at == Stage.PAIR and stage == Stage.ROW:
            return Text(f"{text.text}[:, None]")
        if at == Stage.PAIR and stage in (Stage.RUN, Stage.KEY):
            return Text(f"{text.text}[None, :]")
        return text
