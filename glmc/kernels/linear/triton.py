"""A matrix times few rows of activations, each weight read once. Many rows: the library's product, of a quantised matrix with
all of it decoded before.

R rows of I inputs, O outputs. A program owns BN outputs and walks the inputs in blocks of BK; where there would be too few
programs, SPLIT of them share a row's inputs, SHARE each, and a second kernel adds their float32 sums in order.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch.nn import functional

from glmc.kernels.dequantise import Coded
from glmc.kernels.dequantise import triton as dequantise
from glmc.kernels.dequantise.triton import operand, tile_of
from glmc.kernels.triton import blocks, launch, power, rows_of, warps_for

FEW = 16
"""Rows up to which a product reads weights rather than computes: one tile of the matrix unit."""
_PROGRAMS = 264
"""Programs that fill a device: two for each of 132 multiprocessors."""


def accepts(site) -> str | None:
    return None


class Tile(NamedTuple):
    """How a product is cut: outputs and inputs a block, programs that share the inputs, warps and stages of each."""

    outputs: int
    inputs: int
    split: int
    warps: int
    stages: int


def tile(rows: int, outputs: int, inputs: int, size: int) -> Tile:
    """The cut for a matrix of so many outputs and inputs, times activations of `size` bytes.

    Of rows only whether there is one matters. As measured on an H200: one row wants an output a program, read in the largest
    blocks that leave nothing over, and few warps where something is left; several rows want a tile of the matrix unit.
    """
    if rows == 1:
        whole = power(inputs) == inputs and inputs * size <= 8192
        along = inputs if whole else next((n for n in (2048, 1024) if inputs % (2 * n // size) == 0), 512) * 2 // size
        across, warps, stages = 1, max(along * size // 1024, 1), 1
    else:
        across, along, warps, stages = 64, 256 // size, 4, 3
    along = min(max(power(inputs), 16), along)
    split = min(blocks(_PROGRAMS, blocks(outputs, across)), max(inputs // (4 * along), 1))
    return Tile(across, along, blocks(inputs, _share(inputs, along, split)), min(warps, 8), stages)


def _share(inputs: int, block: int, split: int) -> int:
    """Inputs of each of `split` programs: whole blocks."""
    return blocks(blocks(inputs, split), block) * block


@triton.jit
def linear_row_kernel(x, weight, scales, factors, bias, y, W_ROW: tl.constexpr, S_ROW: tl.constexpr, F_ROW: tl.constexpr,
                      FORM: tl.constexpr, GROUP: tl.constexpr, I: tl.constexpr, O: tl.constexpr, SPLIT: tl.constexpr,  # noqa: E741
                      SHARE: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    output, split = tl.program_id(0) * BN + tl.arange(0, BN), tl.program_id(1)
    good, wide = (output < O)[:, None], output.to(tl.int64)
    part = tl.zeros((BN, BK), tl.float32)
    for step in range(0, SHARE, BK):
        start = split * SHARE + step
        at = (start + tl.arange(0, BK))[None, :]
        row = tl.load(x + at, mask=at < I, other=0.0).to(tl.float32)
        part += tile_of(weight, scales, wide[:, None], start, good, W_ROW, S_ROW, I, FORM, GROUP, BN, BK).to(tl.float32) * row
    total = tl.sum(part, axis=1)
    if factors is not None:
        total *= tl.load(factors + wide * F_ROW, mask=output < O, other=0.0)
    if bias is not None:
        total += tl.load(bias + output, mask=output < O, other=0.0).to(tl.float32)
    tl.store(y + split * O + output, total.to(y.dtype.element_ty), mask=output < O)


@triton.jit(do_not_specialize=["rows"])
def linear_rows_kernel(x, weight, scales, factors, bias, y, rows, X_ROW: tl.constexpr, W_ROW: tl.constexpr,
                       S_ROW: tl.constexpr, F_ROW: tl.constexpr, FORM: tl.constexpr, GROUP: tl.constexpr, I: tl.constexpr,  # noqa: E741
                       O: tl.constexpr, SPLIT: tl.constexpr, SHARE: tl.constexpr, ROWS: tl.constexpr, BN: tl.constexpr,  # noqa: E741
                       BK: tl.constexpr):
    output, split = tl.program_id(0) * BN + tl.arange(0, BN), tl.program_id(1)
    row = tl.arange(0, ROWS)[None, :]
    good, wide = (output < O)[:, None], output.to(tl.int64)
    total = tl.zeros((BN, ROWS), tl.float32)
    for step in range(0, SHARE, BK):
        start = split * SHARE + step
        at = start + tl.arange(0, BK)
        weights = tile_of(weight, scales, wide[:, None], start, good, W_ROW, S_ROW, I, FORM, GROUP, BN, BK)
        given = tl.load(x + row * X_ROW + at[:, None], mask=(row < rows) & (at < I)[:, None], other=0.0)
        total = tl.dot(weights.to(given.dtype), given, total, input_precision="ieee")
    if factors is not None:
        total *= tl.load(factors + wide * F_ROW, mask=output < O, other=0.0)[:, None]
    if bias is not None:
        total += tl.load(bias + output, mask=output < O, other=0.0).to(tl.float32)[:, None]
    tl.store(y + (row * SPLIT + split) * O + output[:, None], total.to(y.dtype.element_ty), mask=(row < rows) & good)


@triton.jit
def add_parts_kernel(parts, bias, y, O: tl.constexpr, SPLIT: tl.constexpr, BLOCK: tl.constexpr):  # noqa: E741
    row = tl.program_id(0)
    output = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    for split in range(SPLIT):
        total += tl.load(parts + (row * SPLIT + split) * O + output, mask=output < O, other=0.0)
    if bias is not None:
        total += tl.load(bias + output, mask=output < O, other=0.0).to(tl.float32)
    tl.store(y + row * O + output, total.to(y.dtype.element_ty), mask=output < O)


def run(x: torch.Tensor, weight: torch.Tensor | Coded, bias: torch.Tensor | None = None) -> torch.Tensor:
    """x [..., I], weight [O, I], bias [O] or None -> [..., O] in x's dtype."""
    count = x.numel() // x.shape[-1]
    if count > FEW:
        return functional.linear(x, dequantise.run(weight, x.dtype) if isinstance(weight, Coded) else weight, bias)
    if isinstance(weight, torch.Tensor) and weight.stride(-1) != 1:
        weight = weight.contiguous()
    (codes, scales, factors), constants = operand(weight)
    outputs, inputs = codes.shape[0], x.shape[-1]
    rows, stride = rows_of(x)
    y = torch.empty((*x.shape[:-1], outputs), dtype=x.dtype, device=x.device)
    cut = tile(count, outputs, inputs, x.element_size())
    whole = cut.split == 1
    out = y if whole else torch.empty((count, cut.split, outputs), dtype=torch.float32, device=x.device)
    grid, given = (blocks(outputs, cut.outputs), cut.split), bias if whole else None
    constants |= {"I": inputs, "O": outputs, "SPLIT": cut.split, "SHARE": _share(inputs, cut.inputs, cut.split),
                  "BN": cut.outputs, "BK": cut.inputs, "warps": cut.warps, "stages": cut.stages}
    if count == 1:
        launch(linear_row_kernel, grid, rows, codes, scales, factors, given, out, **constants)
    else:
        launch(linear_rows_kernel, grid, rows, codes, scales, factors, given, out, count, X_ROW=stride, ROWS=FEW, **constants)
    if not whole:
        block = min(power(outputs), 1024)
        launch(add_parts_kernel, (count, blocks(outputs, block)), out, bias, y, O=outputs, SPLIT=cut.split, BLOCK=block,
               warps=warps_for(block))
    return y
