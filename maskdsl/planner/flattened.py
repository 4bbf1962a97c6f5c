"""A pattern over flattened positions: one axis on either side, whatever its axes and segments."""

from __future__ import annotations

import math
from dataclasses import replace

from maskdsl.ir import integers, logic
from maskdsl.ir.integers import integer
from maskdsl.ir.nodes import Node
from maskdsl.ir.program import Block, Program, Segment
from maskdsl.ir.rewrite import substitute

AXIS = "index"


def flattened(program: Program) -> Program:
    """The same relation and scores in terms of flattened positions, over one axis called `index`.

    Error conditions are left out: binding reports what is certain to fail, and everything else has
    a value (see `ir.nodes`).
    """
    queries, keys = (
        Segment(None, ((AXIS, tokens),), 0) for tokens in (program.query_tokens, program.key_tokens)
    )
    q, k = _position("q", program.query_tokens), _position("k", program.key_tokens)
    keeps = []
    score = logit = Node("logit", "float", (), None, -math.inf, math.inf)
    for block in program.all_blocks:
        inside = logic.and_(_within(q, block.queries), _within(k, block.keys))
        leaves = {**_coordinates(q, "q", block.queries), **_coordinates(k, "k", block.keys)}
        keeps.append(logic.and_(inside, substitute(block.keep, leaves)))
        if block.score is not None:
            score = logic.select(inside, substitute(block.score, leaves), score)
    whole = Block(
        queries,
        keys,
        logic.or_(*keeps),
        logic.FALSE,
        None if score is logit else score,
        logic.FALSE,
    )
    return replace(program, queries=(queries,), keys=(keys,), blocks=((whole,),))


def _position(side: str, tokens: int) -> Node:
    return integers.make("coord", (), 0, tokens - 1, (side, AXIS))


def _within(index: Node, segment: Segment) -> Node:
    first = integers.compare("le", integer(segment.offset), index)
    return logic.and_(
        first, integers.compare("lt", index, integer(segment.offset + segment.tokens))
    )


def _coordinates(index: Node, side: str, segment: Segment) -> dict[Node, Node]:
    """Coordinates of a segment by flattened position; outside of the segment any that exist."""
    place = integers.sub(index, integer(segment.offset))
    found = {}
    for i, (name, extent) in enumerate(segment.axes):
        assert extent is not None
        coord = integers.make("coord", (), 0, extent - 1, (side, name))
        stride = math.prod(segment.shape[i + 1 :])
        at = integers.floordiv(place, integer(stride))
        found[coord] = integers.mod(at, integer(extent))
    return found
