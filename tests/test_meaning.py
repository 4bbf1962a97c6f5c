"""Random programs against their meaning in plain Python; bounds contain all values."""

from __future__ import annotations

import numpy as np
import pytest
from python_meaning import NoValueError, kept
from random_patterns import random_case, wild_case

import maskdsl
from maskdsl.ir import bounds
from maskdsl.ir.definition import positions
from maskdsl.ir.evaluate import evaluate_all
from maskdsl.ir.nodes import postorder


@pytest.mark.parametrize("seed", range(5000, 5150))
def test_dense_is_the_meaning_in_python(seed: int) -> None:
    case = random_case(seed, small=True)
    mask = case.mask()
    for head in range(mask.heads):
        assert (mask.dense(head=head) == kept(case.text, case.values, head)).all(), case.text


@pytest.mark.parametrize("seed", range(6000, 6200))
def test_evaluation_errors_are_those_of_python(seed: int) -> None:
    """Divisions, powers and roundings anywhere, guarded or not: refused if and only if some pair
    fails.
    """
    text, values = wild_case(seed)
    try:
        want = kept(text, values, 0)
    except NoValueError:
        with pytest.raises(maskdsl.EvalError):
            maskdsl.parse(text).bind(**values)
        return
    assert (maskdsl.parse(text).bind(**values).dense() == want).all(), text


@pytest.mark.parametrize("seed", range(7000, 7060))
def test_bounds_contain_the_values(seed: int) -> None:
    """Of every node: over all pairs (`low`, `high`) and, for truths, on random boxes of pairs."""
    case = random_case(seed, small=True)
    program = case.mask().program
    block = program.only
    n, m = program.query_tokens, program.key_tokens
    leaves = {k: x[:, None] for k, x in positions(block.queries, "q", np.arange(n)).items()}
    leaves |= {k: x[None, :] for k, x in positions(block.keys, "k", np.arange(m)).items()}
    leaves["head"] = np.int64(0)
    nodes = [x for x in postorder(block.keep) if x.op != "wide"]
    for node, value in zip(nodes, evaluate_all(tuple(nodes), leaves, {}), strict=True):
        assert np.all(value >= node.low) and np.all(value <= node.high), node.op
    rng = np.random.default_rng(seed)
    truth = np.broadcast_to(evaluate_all((block.keep,), leaves, {})[0], (n, m))
    if any(x.op == "head" for x in nodes):
        return
    shape_q, shape_k = program.query_shape, program.key_shape
    for _ in range(30):
        corners = {}
        inside = []
        for side, axes, shape in (
            ("q", block.queries.axes, shape_q),
            ("k", block.keys.axes, shape_k),
        ):
            mask = np.ones(shape, dtype=bool)
            for axis, (name, extent) in enumerate(axes):
                low, high = np.sort(rng.integers(0, extent, 2))
                corners[side, name] = bounds.lanes(
                    np.array([low]), {(side, name): (1, np.array([high - low + 1]))}, 1
                )
                index = np.arange(extent)
                ok = (index >= low) & (index <= high)
                mask &= ok.reshape([-1 if a == axis else 1 for a in range(len(shape))])
            inside.append(mask.reshape(-1))
        always, possibly, _ = bounds.truth_on(block.keep, corners, 1)
        box = truth[np.ix_(*inside)]
        assert not always[0] or box.all()
        assert possibly[0] or not box.any()


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_float_tables_of_one_sign(sign: float) -> None:
    """What lies outside of them is 0, a float."""
    pattern = maskdsl.parse(
        "pattern p(weight: float[heads]) over (n) score logit - weight[head] * 2.0"
    )
    mask = pattern.bind(n=3, heads=2, weight=[sign, 2 * sign])
    assert (mask.scores(np.zeros((3, 3)), head=1) == -4 * sign).all()
