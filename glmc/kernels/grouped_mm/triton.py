"""Rows sorted by expert times each expert's matrix: every program owns rows of one expert, found without asking the device.

R rows in tiles of BM, I inner channels in steps of BK, O columns in tiles of BN. A tile knows its expert, its first row and
the end of that expert's rows; the grid has room for the worst split, and a tile beyond the last expert returns at once.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from glmc.kernels.dequantise import Coded
from glmc.kernels.dequantise.triton import operand, tile_of
from glmc.kernels.triton import blocks, launch, power


def accepts(site) -> str | None:
    return None


@triton.jit
def grouped_mm_kernel(x, weight, scales, factors, y, places, tile_expert, tile_first, ends, ROW: tl.constexpr,
                      W_ROW: tl.constexpr, S_ROW: tl.constexpr, F_ROW: tl.constexpr, FORM: tl.constexpr, GROUP: tl.constexpr,
                      W_E: tl.constexpr, W_I: tl.constexpr, I: tl.constexpr, O: tl.constexpr, E: tl.constexpr,  # noqa: E741
                      TOP: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    tile = tl.program_id(0)
    expert = tl.load(tile_expert + tile)
    if expert < E:
        row = tl.load(tile_first + tile) + tl.arange(0, BM)
        good = (row < tl.load(ends + expert))[:, None]
        source = row
        if places is not None:
            source = tl.load(places + row, mask=row < tl.load(ends + expert), other=0) // TOP
        column = (tl.program_id(1) * BN + tl.arange(0, BN))[None, :]
        inner = tl.arange(0, BK)
        rows = x + source.to(tl.int64)[:, None] * ROW
        outputs = expert.to(tl.int64) * O + tl.program_id(1) * BN + tl.arange(0, BN)
        matrix = weight + expert.to(tl.int64) * W_E + column * W_ROW
        total = tl.zeros((BM, BN), tl.float32)
        for start in range(0, I, BK):
            at = start + inner
            a = tl.load(rows + at[None, :], mask=good & (at < I)[None, :], other=0.0)
            if FORM is None:
                b = tl.load(matrix + at.to(tl.int64)[:, None] * W_I, mask=(at < I)[:, None] & (column < O), other=0.0)
            else:
                b = tl.trans(tile_of(weight, scales, outputs[:, None], start, tl.trans(column < O), W_ROW, S_ROW, I, FORM,
                                     GROUP, BN, BK)).to(a.dtype)
            total = tl.dot(a, b, total, input_precision="ieee")
        if factors is not None:
            total *= tl.load(factors + outputs[None, :] * F_ROW, mask=column < O, other=0.0)
        out = y + row.to(tl.int64)[:, None] * O + column
        tl.store(out, total.to(y.dtype.element_ty), mask=good & (column < O))


def tiles(ends: torch.Tensor, rows: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Expert and first row of each tile of `size` rows, for ends int [E]; tiles beyond the last have the expert E.

    There are at most rows / size + E tiles, however the rows are spread.
    """
    wide = ends.to(torch.int64)
    starts = torch.cat([wide.new_zeros(1), wide[:-1]])
    last = torch.cumsum((wide - starts + size - 1) // size, 0)
    tile = torch.arange(min(rows, rows // size + ends.shape[0]), device=ends.device)
    expert = torch.searchsorted(last, tile, right=True)
    known = expert.clamp(max=ends.shape[0] - 1)
    before = torch.cat([last.new_zeros(1), last[:-1]])[known]
    return expert, starts[known] + (tile - before) * size


def product(x: torch.Tensor, weight: torch.Tensor | Coded, ends: torch.Tensor, rows: int, places: torch.Tensor | None = None,
            top: int = 1) -> torch.Tensor:
    """x [T, I] sorted by expert, weight [E, O, I], ends int [E] (last row of each expert, exclusive) -> [R, O]; with places
    int64 [R] row r of the result comes from row places[r] // top of x."""
    count, columns, inner = weight.shape
    y = torch.empty((rows, columns), dtype=x.dtype, device=x.device)
    x = x.contiguous()
    (matrix, scales, factors), constants = operand(weight)
    coded, wide = isinstance(weight, Coded), x.dtype == torch.float32
    size = 16 if rows <= 32 * count or (coded and wide) else 64
    expert, first = tiles(ends, rows, size)
    # A decoded tile lies in registers, which float32 products without a matrix unit want for themselves.
    column = min(max(power(columns), 16), (16 if wide else 64) if coded else 128 if size == 64 else 64)
    launch(grouped_mm_kernel, (expert.shape[0], blocks(columns, column)), x, matrix, scales, factors, y, places, expert, first,
           ends, ROW=inner, **constants, W_E=matrix.stride(0), W_I=matrix.stride(2), I=inner, O=columns, E=count, TOP=top,
           BM=size, BN=column, BK=min(max(power(inner), 16), 64), warps=4, stages=3)
    return y


def run(x: torch.Tensor, weight: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
    """x [T, I] sorted by expert, weight [E, I, O], ends int [E] (last row of each expert, exclusive) -> [T, O]."""
    return product(x, weight.transpose(1, 2), ends, x.shape[0])
