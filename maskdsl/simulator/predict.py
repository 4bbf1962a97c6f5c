"""`simulate`: the time of attention under a mask, before anything runs."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from maskdsl.errors import BindError
from maskdsl.pattern import Mask
from maskdsl.planner import Plan
from maskdsl.simulator.arguments import count
from maskdsl.simulator.bounds import bounds_of
from maskdsl.simulator.devices import Device, dtype_name, load_device
from maskdsl.simulator.engines import Engine, load_engine
from maskdsl.simulator.kernels import Compiled, KernelLike, check_code, is_kernel, known_of
from maskdsl.simulator.passes import find_direction
from maskdsl.simulator.plans import PlanLike
from maskdsl.simulator.prediction import Prediction
from maskdsl.simulator.run import Run
from maskdsl.simulator.shapes import few_queries, kv_heads_of, pairs_of, pieces_of, planned
from maskdsl.simulator.traffic import Tensors


def simulate(
    mask_or_plan: Mask | Plan | PlanLike | KernelLike,
    head_dim: int | None = None,
    batch: int = 1,
    heads: int | None = None,
    dtype: object = None,
    device: str | os.PathLike[str] | Device = "h200",
    direction: str = "forward",
    *,
    value_dim: int | None = None,
    queries: int | None = None,
    kv_heads: int | None = None,
    engine: str | Engine = "maskdsl",
    splits: int | None = None,
    lanes: tuple[int, int] | int | None = None,
    inputs: Mapping[str, Any] | None = None,
    compiled: Compiled = None,
) -> Prediction:
    """Predict the time of attention under a mask, and of dense attention with tiles of as many
    lanes.

    A mask is planned with the tiles that cost least by the same model (`layout_cost`). A kernel
    (what `maskdsl.compile` gives) brings its own plans, head sizes and dtype, and, where Triton is
    installed, the instructions of its machine code for the device's target. `heads` defaults to the
    mask's; a mask of one head may be asked about with any number, which all follow it. `head_dim`
    (128) is of q and k, `value_dim` (the same) of v. `dtype` is `"bf16"` (the default), `"fp16"`,
    `"tf32"`, `"fp32"` or a torch dtype; `device` a name, a `.toml` file or a `Device`; `direction`
    is `"forward"`, or `"backward"` for the backward pass alone. The model is described in
    `docs/simulator.md`.

    queries: only the last so many (decoding). kv_heads: of keys and values, the mask's by default.
    engine: whose kernels, `"maskdsl"` or `"natten"`. splits: pieces into which the keys of a row
    are cut; by default the fastest number where `queries` is given and 1 elsewhere. lanes: of the
    query and key tiles that a mask is planned with. inputs: arrays for inputs that decide which
    pairs are allowed, by name. compiled: what the machine code says, of the forward kernel or by
    name of the pass (`"forward"`, `"dq"`, `"dkv"`).

    Raises `BindError` for arguments that do not fit.
    """
    chosen, kernels = load_device(device), load_engine(engine)
    steps = find_direction(direction)
    check_code(compiled, steps)
    subject: Any = mask_or_plan
    plans: Mapping[str, PlanLike] = {}
    if is_kernel(subject):
        known = known_of(subject, steps, chosen, queries is None and compiled is None)
        for name, own, asked in (
            ("head_dim", known.head_dim, head_dim),
            ("value_dim", known.value_dim, value_dim),
            ("dtype", known.dtype, None if dtype is None else dtype_name(dtype)),
        ):
            if asked not in (None, own):
                raise BindError(f"{name} is {asked!r}, but the kernel was compiled for {own!r}")
        head_dim, value_dim, dtype = known.head_dim, known.value_dim, known.dtype
        subject, plans, compiled = known.subject, known.plans, compiled or known.compiled
    head_dim = count("head_dim", 128 if head_dim is None else head_dim)
    value_dim = count("value_dim", head_dim if value_dim is None else value_dim)
    batch = count("batch", batch)
    element = dtype_name("bf16" if dtype is None else dtype)
    if queries is not None:
        queries = count("queries", queries)
        if direction != "forward":
            raise BindError("queries= is for decoding, which has a forward pass alone")
    plan = subject
    if isinstance(subject, Mask):
        dims = head_dim, value_dim
        plan = planned(subject, dims, element, chosen, kernels, steps[-1], lanes, inputs)
    elif not hasattr(subject, "row_counts"):
        raise BindError(f"simulate takes a mask, a plan or a kernel, not {type(subject).__name__}")
    elif inputs is not None or lanes is not None:
        raise BindError("inputs and lanes can be given with a mask, not with a plan, which is made")
    own, total, keys = plan.mask_shape
    asked_heads = own if heads is None else count("heads", heads)
    if own not in (1, asked_heads):
        raise BindError(
            f"heads={asked_heads}, but the mask has {own}; only a mask of 1 head is repeated"
        )
    count("heads * batch", asked_heads * batch)
    groups = kv_heads_of(plan, asked_heads, kv_heads)
    few = None
    if queries is not None:
        dims, plans = (head_dim, value_dim), {}
        plan, few = few_queries(plan, queries, asked_heads, groups, dims, element, chosen, kernels)
    asked = total if queries is None else queries
    run = Run(
        {step.name: plans.get(step.name, plan) for step in steps},
        asked_heads // own * batch,
        Tensors(asked, keys, asked_heads * batch, groups * batch),
        head_dim,
        value_dim,
        element,
        chosen,
        kernels,
        pieces_of(splits, queries, kernels),
        compiled,
        few,
    )
    rows = run.forward_rows(plan)
    number, visited = sum(r.number for r in rows), sum(r.visited for r in rows)
    full = sum(r.full_tiles for r in rows)
    q_lanes, kv_lanes = run.lanes_of(plan)
    sparse = run.sparse(steps)
    read = any(run.code_of(p.name) for p in sparse.passes)
    return Prediction(
        device=chosen.name,
        engine=kernels.name,
        dtype=element,
        direction=direction,
        batch=batch,
        heads=asked_heads,
        kv_heads=groups,
        queries=asked,
        keys=keys,
        head_dim=head_dim,
        value_dim=value_dim,
        q_lanes=max(q_lanes),
        kv_lanes=max(kv_lanes),
        tiles={
            "empty": number * plan.kv_tiles - visited,
            "full": full,
            "partial": visited - full,
            "total": number * plan.kv_tiles,
        },
        bounds=bounds_of(plan, rows, pairs_of(plan, queries), own * asked * keys),
        costs="machine code" if read else "estimates",
        sparse=sparse,
        dense=run.dense(steps),
    )
