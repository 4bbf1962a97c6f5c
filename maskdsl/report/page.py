"""`report`: the page itself, one HTML file that loads nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import jinja2
import numpy as np
import torch
from markupsafe import Markup
from pygments import highlight  # type: ignore[import-untyped]
from pygments.formatters import HtmlFormatter  # type: ignore[import-untyped]
from pygments.lexers import PythonLexer  # type: ignore[import-untyped]

from maskdsl.errors import BindError, CompileError
from maskdsl.ir.definition import arrays_of
from maskdsl.language.highlight import MaskLexer
from maskdsl.pattern import Mask
from maskdsl.planner import Plan
from maskdsl.planner.layout import kernel_lanes
from maskdsl.report.picture import Drawn
from maskdsl.report.speed import Predictions, label, parse_vary
from maskdsl.runtime.compile import compile as compile_mask
from maskdsl.simulator import load_device

MAX_BYTES = 2_000_000
STYLES = {"light": "xcode", "dark": "github-dark"}
PLAIN = 64  # lanes of plain tiles, in the picture of layouts


@dataclass(frozen=True)
class Report:
    """html: the page. notes: what it could not show, and why."""

    html: str
    notes: tuple[str, ...]


def report(
    mask: Mask,
    *,
    version: str,
    head_dim: int = 128,
    batch: int = 1,
    heads: int | None = None,
    dtype: torch.dtype = torch.bfloat16,
    device: str = "h200",
    vary: tuple[str, Sequence[Any]] | None = None,
    inputs: Mapping[str, Any] | None = None,
) -> Report:
    """A page about a mask.

    version: of the package, which the page names. heads: that share a mask of one head, in the
    predictions. device: that tiles and the kernel are for, and of predictions over other things.
    vary: a parameter and its values to predict; by default a stride, where there is one. inputs:
    arrays by name, for masks that inputs decide: without them the page shows the tiles that may be
    visited, not single pairs. Raises MaskError.
    """
    program = mask.closed()
    given = _given(mask, inputs or {})
    target = load_device(device).target
    plan, sources, why = _kernel(mask, head_dim, dtype, target)
    drawn = Drawn(mask, plan, _layouts(mask, plan, head_dim), given)
    options: dict[str, Any] = {"head_dim": head_dim, "batch": batch, "heads": heads, "dtype": dtype}
    varied = None if vary is None else parse_vary(mask, *vary)
    predictions = Predictions(mask, device, options, varied)
    notes = [f"single pairs are not shown: {drawn.inexact}"] if drawn.inexact else []
    if drawn.left_out:
        notes.append(f"{drawn.left_out} further kinds of heads are not drawn")
    notes += [f"no kernel is shown: {why}"] if why else []
    page = _environment().get_template("page.html.j2")
    bound = {n: _short(x) for n, x in mask.values.items()}
    html = page.render(
        name=plan.name,
        version=version,
        bound=bound,
        shape=mask.shape,
        kv_heads=mask.kv_heads,
        spaces=[_space(program.queries), _space(program.keys)],
        shared=program.shared,
        inputs=[(a.name, a.type, a.dims, a.name in given) for a in program.inputs],
        pairs=plan.pairs,
        density=None if plan.pairs is None else mask.density,
        plan=plan,
        explained=plan.explain(),
        head_dim=head_dim,
        dtype=str(dtype).removeprefix("torch."),
        batch=batch,
        heads=heads or mask.heads,
        device=device,
        target=target,
        tables=predictions.tables,
        inexact=drawn.inexact,
        drawn=drawn,
        data=json.dumps(drawn.data, separators=(",", ":")).replace("<", "\\u003c"),
        functions=Markup(drawn.functions),
        pattern=_coloured(mask.pattern.source.strip("\n") + "\n", MaskLexer()),
        sources=[(title, _coloured(text, PythonLexer())) for title, text in sources],
        why=why,
        styles={mode: _style(style) for mode, style in STYLES.items()},
    )
    if len(html.encode()) > MAX_BYTES:
        raise BindError(f"the page would be larger than {MAX_BYTES // 10**6} MB")
    return Report(html, tuple(notes))


def _given(mask: Mask, inputs: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The inputs as arrays: all of them or none. Raises BindError."""
    if not inputs:
        return {}
    arrays = arrays_of(mask.closed().inputs, inputs, 0)
    return {n: np.asarray(x) for n, x in arrays.items()}


def _layouts(mask: Mask, plan: Plan, head_dim: int) -> list[tuple[str, Any]]:
    """(label, what makes its plan)."""
    plain = plan.program.queries, plan.program.keys

    def flat(lanes: int) -> Any:
        """Tiles along the last axis alone: runs of tokens."""
        sides = [tuple((1,) * (len(s.axes) - 1) + (lanes,) for s in segments) for segments in plain]
        return lambda: mask.plan(*(x if plan.program.segmented else x[0] for x in sides))

    lanes = kernel_lanes(head_dim)
    return [
        ("Chosen for the kernel", lambda: plan),
        (f"Searched, {PLAIN} by {PLAIN} lanes", lambda: mask.plan(lanes=PLAIN)),
        (f"Runs of {PLAIN} along the last axis", flat(PLAIN)),
        (f"Runs of {max(lanes)} along the last axis", flat(max(lanes))),
    ]


def _kernel(
    mask: Mask, head_dim: int, dtype: torch.dtype, target: str
) -> tuple[Plan, list[tuple[str, str]], str]:
    """The plan; (title, text) of the kernels, or why there are none."""
    titles = {"forward": "Forward", "dq": "Gradients of queries", "dkv": "Gradients of keys"}
    try:
        kernel = compile_mask(mask, head_dim, dtype, backend="triton", target=target)
        return kernel.plan, [(titles[n], text) for n, text in kernel.sources.items()], ""
    except CompileError as e:
        return mask.plan(target=target, head_dim=head_dim), [], str(e).splitlines()[0]


def _space(segments: Sequence[Any]) -> str:
    return " then ".join(
        f"{s.name or ''}({', '.join(f'{a} = {n:,}' for a, n in s.axes)})" for s in segments
    )


def _short(value: Any) -> str:
    text = label(value)
    return text if len(text) <= 60 else f"an array {np.shape(value)}"


def _coloured(text: str, lexer: Any) -> Markup:
    """Escaped by the formatter."""
    return Markup(highlight(text, lexer, HtmlFormatter(nowrap=True)))


def _style(name: str) -> Markup:
    rules = HtmlFormatter(style=name, cssclass="code").get_style_defs(".code")
    kept = [line for line in rules.splitlines() if line.startswith(".code .")]
    return Markup("\n".join(kept))


@cache
def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.PackageLoader("maskdsl.report"),
        undefined=jinja2.StrictUndefined,
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
