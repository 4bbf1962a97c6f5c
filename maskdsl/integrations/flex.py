"""Masks for torch's FlexAttention: a `mask_mod`, its blocks from the plan, and a `score_mod`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from numbers import Integral
from typing import Any

import numpy as np
import torch
from torch.nn.attention.flex_attention import BlockMask

from maskdsl.codegen.tabulate import tabulate, tabulate_ints
from maskdsl.errors import BindError, CompileError
from maskdsl.integrations.traced import traced
from maskdsl.ir.definition import arrays_of
from maskdsl.ir.nodes import depends_on
from maskdsl.ir.program import Program
from maskdsl.pattern import Mask
from maskdsl.planner import HeadClass, Plan, Tile, make_plan
from maskdsl.planner.flattened import AXIS, flattened

MaskMod = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
ScoreMod = Callable[
    [torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor
]
_LEAVES = ("batch", "head", ("q", AXIS), ("k", AXIS))


def to_flex(
    mask: Mask,
    /,
    block_size: int | Sequence[int] = 128,
    device: torch.device | str = "cpu",
    **inputs: Any,
) -> tuple[MaskMod, BlockMask]:
    """(mask_mod, block mask) for `torch.nn.attention.flex_attention`, over flattened positions.

    block_size: tokens of a block of queries and of keys, powers of two: one number or a pair.
    inputs: arrays or tensors, as for a kernel; the mask_mod reads them. The block mask has one head
    where all heads see the same, and the inputs' batch where inputs decide: there it visits every
    block that may hold a pair. What the pattern leaves undefined is not seen. Score clauses are
    given by `score_mod`. Raises BindError, PlanError; CompileError for sinks, which FlexAttention
    does not have.
    """
    device = _device(device)
    program, tensors = _checked(mask, device, inputs)
    pair = (block_size,) * 2 if isinstance(block_size, Integral) else block_size
    if not isinstance(pair, Sequence) or len(pair) != 2:
        raise BindError(f"block_size is one number or a pair (queries, keys), not {block_size!r}")
    q_tile, kv_tile = (Tile.of(size, 1) for size in pair)
    plan = make_plan(program, mask.pattern.source, q_tile, kv_tile)
    keep, held = traced(tabulate(program.keep), _LEAVES, tensors, device, torch.float64)

    def mask_mod(
        b: torch.Tensor, h: torch.Tensor, q_idx: torch.Tensor, kv_idx: torch.Tensor
    ) -> torch.Tensor:
        places = (x.to(torch.int64) for x in (b, h, q_idx, kv_idx))
        return keep(*places, *held)

    return mask_mod, _block_mask(plan, _batch(program, tensors), mask_mod, device)


def score_mod(mask: Mask, /, device: torch.device | str = "cpu", **inputs: Any) -> ScoreMod:
    """The score clauses as a `score_mod` for `torch.nn.attention.flex_attention`; float inputs that
    require gradients get them. Errors as for `to_flex`; BindError where there is no score clause.
    """
    device = _device(device)
    program, tensors = _checked(mask, device, inputs)
    if program.score is None:
        raise BindError(f"{program.name} has no score clause: flex_attention needs no score_mod")
    root = tabulate_ints(program.score)
    single, held = traced(root, ("logit", *_LEAVES), tensors, device, torch.float32)
    double, _ = traced(root, ("logit", *_LEAVES), tensors, device, torch.float64)

    def score(
        score: torch.Tensor,
        b: torch.Tensor,
        h: torch.Tensor,
        q_idx: torch.Tensor,
        kv_idx: torch.Tensor,
    ) -> torch.Tensor:
        places = (x.to(torch.int64) for x in (b, h, q_idx, kv_idx))
        if score.dtype == torch.float64:
            return double(score, *places, *held)
        return single(score.to(torch.float32), *places, *held).to(score.dtype)

    return score


def _device(device: Any) -> torch.device:
    try:
        return torch.device(device)
    except (RuntimeError, TypeError):
        raise BindError(f"device is one that torch knows, not {device!r}") from None


def _checked(
    mask: Any, device: torch.device, given: Mapping[str, Any]
) -> tuple[Program, dict[str, torch.Tensor]]:
    """The program over flattened positions, and its inputs on the device."""
    if not isinstance(mask, Mask):
        raise BindError(f"to_flex takes a mask, not {type(mask).__name__}")
    program = mask.closed()
    if program.sink is not None:
        raise CompileError(
            f"{program.name} has a sink, which flex_attention does not know: "
            "use maskdsl.compile, or add it by the log-sum-exp"
        )
    tensors = {}
    for name, host in arrays_of(program.inputs, given, 0).items():
        x = given[name]
        if not isinstance(x, torch.Tensor):
            plain = {"b": np.bool_, "f": np.float64}.get(host.dtype.kind, np.int64)
            x = torch.from_numpy(np.array(host, dtype=plain))
        x = x if x.is_floating_point() or x.dtype == torch.bool else x.to(torch.int64)
        tensors[name] = x.to(device)
    return flattened(program), tensors


def _batch(program: Program, tensors: Mapping[str, torch.Tensor]) -> int:
    """How many block masks the inputs make: one where the pattern does not ask for the batch."""
    sizes = {
        a.name: tensors[a.name].shape[a.dims.index("batch")]
        for a in program.inputs
        if "batch" in a.dims
    }
    if len(set(sizes.values())) > 1:
        raise BindError(f"the inputs differ in batch: {sizes}")
    return next(iter(sizes.values()), 1) if depends_on([program.keep], "batch") else 1


def _block_mask(plan: Plan, batch: int, mask_mod: MaskMod, device: torch.device) -> BlockMask:
    """The plan's tiles as torch lists blocks. Built without `BlockMask.from_kv_blocks`, which sorts
    every block, visited or not, to list the columns.
    """
    classes = plan.head_classes
    shape = batch, plan.program.heads if len(classes) > 1 else 1, plan.q_tiles, plan.kv_tiles
    rows = _Lists(*shape), _Lists(*shape)
    columns = _Lists(*shape[:2], *shape[:1:-1]), _Lists(*shape[:2], *shape[:1:-1])
    for c in classes:
        heads = np.array(c.heads if len(classes) > 1 else (0,))
        row, column, full = _visits(plan, c)
        for kind, of_rows, of_columns in zip((~full, full), rows, columns, strict=True):
            of_rows.fill(heads, row[kind], column[kind])
            of_columns.fill(heads, column[kind], row[kind])
    (kv, full_kv), (q, full_q) = rows, columns
    return BlockMask(
        seq_lengths=(plan.program.query_tokens, plan.program.key_tokens),
        kv_num_blocks=torch.from_numpy(kv.counts).to(device),
        kv_indices=torch.from_numpy(kv.entries).to(device),
        full_kv_num_blocks=torch.from_numpy(full_kv.counts).to(device),
        full_kv_indices=torch.from_numpy(full_kv.entries).to(device),
        q_num_blocks=torch.from_numpy(q.counts).to(device),
        q_indices=torch.from_numpy(q.entries).to(device),
        full_q_num_blocks=torch.from_numpy(full_q.counts).to(device),
        full_q_indices=torch.from_numpy(full_q.entries).to(device),
        BLOCK_SIZE=(plan.q_grid_.tile.lanes, plan.kv_grid_.tile.lanes),
        mask_mod=mask_mod,
    )


class _Lists:
    """Per line of blocks the number of those listed, int32 (batch, heads, lines), and which they
    are, int32 (batch, heads, lines, length), 0 past that number.
    """

    def __init__(self, batch: int, heads: int, lines: int, length: int) -> None:
        self.counts = np.zeros((batch, heads, lines), dtype=np.int32)
        self.entries = np.zeros((batch, heads, lines, length), dtype=np.int32)

    def fill(self, heads: np.ndarray, line: np.ndarray, entry: np.ndarray) -> None:
        """List an entry in a line of each of these heads; entries of a line in the order given."""
        order = np.argsort(line, kind="stable")
        line, entry = line[order], entry[order]
        counts = np.bincount(line, minlength=self.counts.shape[-1])
        place = np.arange(len(line)) - np.repeat(np.cumsum(counts) - counts, counts)
        self.counts[:, heads] = counts
        self.entries[:, heads[:, None], line, place] = entry


def _visits(plan: Plan, c: HeadClass) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(row, column, whether full) of every block that may hold a pair, sorted by row and column;
    where inputs decide, whatever they hold.

    Torch pads the mask with false up to whole blocks, so that ragged ones are never full.
    """
    runs = c.runs
    copies = np.repeat(np.arange(len(runs.first)), runs.count)
    starts = np.cumsum(runs.count) - runs.count
    row = runs.row_of()[copies]
    column = runs.first[copies] + np.arange(len(copies)) - starts[copies]
    full = runs.full[copies]
    for place, grid in ((row, plan.q_grid_), (column, plan.kv_grid_)):
        if not grid.divisible:
            full &= place != grid.count - 1
    return row, column, full
