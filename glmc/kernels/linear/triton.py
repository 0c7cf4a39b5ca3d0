"""A matrix times few rows of activations, each weight read once, and what follows the product in the same launch. Many rows:
the library's product, of a quantised matrix with all of it decoded before, and what follows it in launches of its own.

R rows of I inputs, O outputs. A program owns BN outputs and walks the inputs in blocks of BK; where there would be too few
programs, SPLIT of them share a row's inputs, SHARE each, and a second kernel adds their float32 sums in order and does what
follows. GATED: the matrix has rows for O/2 gates and then for as many ups; each gate's row is read beside its up's, and what is
stored is silu(gate) * up.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch.nn import functional

from glmc.kernels.dequantise import Coded
from glmc.kernels.dequantise import triton as dequantise
from glmc.kernels.dequantise.triton import operand, tile_of
from glmc.kernels.silu_mul import triton as silu_mul
from glmc.kernels.triton import blocks, launch, power, rows_of, warps_for

FEW = 16
"""Rows up to which a product reads weights rather than computes: one tile of the matrix unit."""
TERMS = 2
"""The most tensors that a product's launch adds to it."""
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


def tile(rows: int, outputs: int, inputs: int, size: int, gated: bool = False) -> Tile:
    """The cut for a matrix of so many outputs and inputs. size: bytes of what is multiplied; of one row, of a weight.

    Of rows only whether there is one matters. As measured on an H200: one row wants an output a program, read in the largest
    blocks that leave nothing over, and few warps where something is left; several rows want a tile of the matrix unit. Of a
    gated product a program reads the two rows of a gate and its up, which was not measured.
    """
    if rows == 1:
        whole = power(inputs) == inputs and inputs * size <= 8192
        along = inputs if whole else next((n for n in (2048, 1024) if inputs % (2 * n // size) == 0), 512) * 2 // size
        across, warps, stages = 2 if gated else 1, max(along * size // 1024, 1), 1
    else:
        across, along, warps, stages = 64, min(256 // size, power(inputs) // 2), 4, 3  # of one block float32 would spill
    along = max(min(power(inputs), along), 16)
    split = min(blocks(_PROGRAMS, blocks(outputs, across)), max(inputs // (4 * along), 1))
    return Tile(across, along, blocks(inputs, _share(inputs, along, split)), min(warps, 8), stages)


def _share(inputs: int, block: int, split: int) -> int:
    """Inputs of each of `split` programs: whole blocks."""
    return blocks(blocks(inputs, split), block) * block


@triton.jit
def rows_read(block, O: tl.constexpr, BN: tl.constexpr, GATED: tl.constexpr):  # noqa: E741
    """The matrix's rows of a block: BN in order, or half as many gates, each with its up behind it."""
    row = block * BN + tl.arange(0, BN)
    if GATED:
        row = row // 2 + row % 2 * (O // 2)
    return row


@triton.jit
def gate_times(gate, up):
    """silu(gate) * up, float32."""
    return gate / (1.0 + tl.exp(-gate)) * up


@triton.jit
def added(bias, first, second, row, output, good, FIRST: tl.constexpr, SECOND: tl.constexpr):
    """What is added to a product: bias and terms, float32 [outputs] or [outputs, rows], as `good` is."""
    total = tl.where(good, 0.0, 0.0)
    if bias is not None:
        total += tl.load(bias + (output + 0 * row), mask=good, other=0.0).to(tl.float32)
    if first is not None:
        total += tl.load(first + (row * FIRST + output), mask=good, other=0.0).to(tl.float32)
    if second is not None:
        total += tl.load(second + (row * SECOND + output), mask=good, other=0.0).to(tl.float32)
    return total


@triton.jit
def linear_row_kernel(x, weight, scales, factors, bias, first, second, y, W_ROW: tl.constexpr, S_ROW: tl.constexpr,
                      F_ROW: tl.constexpr, FORM: tl.constexpr, GROUP: tl.constexpr, I: tl.constexpr, O: tl.constexpr,  # noqa: E741
                      GATED: tl.constexpr, SPLIT: tl.constexpr, SHARE: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    output, split = rows_read(tl.program_id(0), O, BN, GATED), tl.program_id(1)
    good, wide = output < O, output.to(tl.int64)
    others = added(bias, first, second, 0, output, good, 0, 0)  # asked for before the weights, not waited for after them
    part = tl.zeros((BN, BK), tl.float32)
    for step in range(0, SHARE, BK):
        start = split * SHARE + step
        at = (start + tl.arange(0, BK))[None, :]
        row = tl.load(x + at, mask=at < I, other=0.0).to(tl.float32)
        part += tile_of(weight, scales, wide[:, None], start, good[:, None], W_ROW, S_ROW, I, FORM, GROUP, BN, BK,
                        ).to(tl.float32) * row
    total = tl.sum(part, axis=1)
    if factors is not None:
        total *= tl.load(factors + wide * F_ROW, mask=good, other=0.0)
    total += others
    if GATED:
        gate, up = tl.split(tl.reshape(total, (BN // 2, 2)))
        pair = tl.program_id(0) * (BN // 2) + tl.arange(0, BN // 2)
        tl.store(y + pair, gate_times(gate, up).to(y.dtype.element_ty), mask=pair < O // 2)
    else:
        tl.store(y + split * O + output, total.to(y.dtype.element_ty), mask=good)


@triton.jit(do_not_specialize=["rows"])
def linear_rows_kernel(x, weight, scales, factors, bias, first, second, y, rows, WIDE: tl.constexpr, X_ROW: tl.constexpr,
                       FIRST: tl.constexpr, SECOND: tl.constexpr, W_ROW: tl.constexpr, S_ROW: tl.constexpr, F_ROW: tl.constexpr,
                       FORM: tl.constexpr, GROUP: tl.constexpr, I: tl.constexpr, O: tl.constexpr, GATED: tl.constexpr,  # noqa: E741
                       SPLIT: tl.constexpr, SHARE: tl.constexpr, ROWS: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    output, split = rows_read(tl.program_id(0), O, BN, GATED)[:, None], tl.program_id(1)
    row = tl.arange(0, ROWS)[None, :]
    good, wide = output < O, output.to(tl.int64)
    there = (row < rows) & good
    total = tl.zeros((BN, ROWS), tl.float32)
    for step in range(0, SHARE, BK):
        start = split * SHARE + step
        at = start + tl.arange(0, BK)
        weights = tile_of(weight, scales, wide, start, good, W_ROW, S_ROW, I, FORM, GROUP, BN, BK)
        given = tl.load(x + row * X_ROW + at[:, None], mask=(row < rows) & (at < I)[:, None], other=0.0)
        if WIDE:
            given = given.to(tl.float32)
        total = tl.dot(weights.to(given.dtype), given, total, input_precision="ieee")
    if factors is not None:
        total *= tl.load(factors + wide * F_ROW, mask=good, other=0.0)
    total += added(bias, first, second, row, output, there, FIRST, SECOND)
    if GATED:
        gate, up = tl.split(tl.permute(tl.reshape(total, (BN // 2, 2, ROWS)), (0, 2, 1)))
        pair = (tl.program_id(0) * (BN // 2) + tl.arange(0, BN // 2))[:, None]
        tl.store(y + row * (O // 2) + pair, gate_times(gate, up).to(y.dtype.element_ty), mask=(row < rows) & (pair < O // 2))
    else:
        tl.store(y + (row * SPLIT + split) * O + output, total.to(y.dtype.element_ty), mask=there)


@triton.jit
def sum_of_parts(parts, row, output, good, O: tl.constexpr, SPLIT: tl.constexpr):  # noqa: E741
    total = tl.where(good, 0.0, 0.0)
    for split in range(SPLIT):
        total += tl.load(parts + (row * SPLIT + split) * O + output, mask=good, other=0.0)
    return total


@triton.jit
def add_parts_kernel(parts, bias, first, second, y, FIRST: tl.constexpr, SECOND: tl.constexpr, O: tl.constexpr,  # noqa: E741
                     GATED: tl.constexpr, SPLIT: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    MADE: tl.constexpr = O // 2 if GATED else O
    output = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    good = output < MADE
    total = sum_of_parts(parts, row, output, good, O, SPLIT) + added(bias, first, second, row, output, good, FIRST, SECOND)
    if GATED:
        up = MADE + output
        total = gate_times(total, sum_of_parts(parts, row, up, good, O, SPLIT) + added(bias, None, None, row, up, good, 0, 0))
    tl.store(y + row * MADE + output, total.to(y.dtype.element_ty), mask=good)


def _sum(made: torch.Tensor, terms: Sequence[torch.Tensor | float]) -> torch.Tensor:
    """Term by term, as torch adds."""
    for term in terms:
        made = made + term
    return made


def run(x: torch.Tensor, weight: torch.Tensor | Coded, bias: torch.Tensor | None = None,
        terms: Sequence[torch.Tensor | float] = (), *, gated: bool = False, wide: bool = False) -> torch.Tensor:
    """x [..., I], weight [O, I], bias [O] or None -> [..., O] in x's dtype.

    terms: at most TERMS that are added to the product. gated: without terms; of the O outputs the first half are gates and the
    others ups, and the result is silu(gate) * up, [..., O/2]. wide: x and weight are made float32 as they are read, and so is
    the result. All in float32 and rounded once, but for many rows, and for terms of another shape or dtype than the product:
    each is then a step of its own, with torch's spreading, widening and rounding.
    """
    count = x.numel() // x.shape[-1]
    if wide and (count > FEW or x.dtype not in (torch.bfloat16, torch.float16)):
        x = x.float()
    dtype = torch.float32 if wide else x.dtype
    if count > FEW:
        plain = dequantise.run(weight, dtype) if isinstance(weight, Coded) else weight.float() if wide else weight
        made = functional.linear(x, plain, bias)
        return silu_mul.run(*made.chunk(2, -1)) if gated else _sum(made, terms)
    outputs, inputs = weight.shape[0], x.shape[-1]
    kind = (*x.shape[:-1], outputs), dtype
    same = [term for term in terms if isinstance(term, torch.Tensor) and (term.shape, term.dtype) == kind]
    if len(same) < len(terms):
        return _sum(run(x, weight, bias, wide=wide), terms)
    if isinstance(weight, torch.Tensor) and weight.stride(-1) != 1:
        weight = weight.contiguous()
    (codes, scales, factors), matrix = operand(weight)
    rows, stride = rows_of(x)
    y = torch.empty((*x.shape[:-1], outputs // 2 if gated else outputs), dtype=dtype, device=x.device)
    size = codes.element_size() if count == 1 and isinstance(weight, torch.Tensor) else dtype.itemsize
    cut = tile(count, outputs, inputs, 2 * size if wide and count > 1 else size, gated)  # a block is held in both forms
    whole = cut.split == 1
    out = y if whole else torch.empty((count, cut.split, outputs), dtype=torch.float32, device=x.device)
    (first, one), (second, two) = [rows_of(same[n]) if n < len(same) else (None, 0) for n in range(TERMS)]
    after, distances, sizes = (bias, first, second), {"FIRST": one, "SECOND": two}, {"O": outputs, "SPLIT": cut.split}
    given = (rows, codes, scales, factors, *(after if whole else (None, None, None)), out)
    constants = {**matrix, **sizes, "I": inputs, "GATED": gated and whole, "SHARE": _share(inputs, cut.inputs, cut.split),
                 "BN": cut.outputs, "BK": cut.inputs, "warps": cut.warps, "stages": cut.stages}
    grid = blocks(outputs, cut.outputs), cut.split
    if count == 1:
        launch(linear_row_kernel, grid, *given, **constants)
    else:
        launch(linear_rows_kernel, grid, *given, count, WIDE=wide, X_ROW=stride, ROWS=FEW, **distances, **constants)
    if not whole:
        block = min(power(y.shape[-1]), 1024)
        launch(add_parts_kernel, (count, blocks(y.shape[-1], block)), out, *after, y, GATED=gated, BLOCK=block, **distances,
               **sizes, warps=warps_for(block))
    return y
