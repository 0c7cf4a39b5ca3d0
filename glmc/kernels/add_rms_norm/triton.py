"""Residual add and RMS norm in one pass: the sum is rounded once, stored, and normalised as it was stored."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from glmc.kernels import differ, too_wide
from glmc.kernels.rms_norm.triton import WIDEST, scale_of, tile
from glmc.kernels.triton import blocks, launch, rows_of, warps_for


def accepts(site) -> str | None:
    return differ(site, "residual", "x") or too_wide("a row", site["x"][1][-1], WIDEST)


@triton.jit(do_not_specialize=["rows"])
def add_rms_norm_kernel(residual, x, weight, y, total, rows, eps, RESIDUAL: tl.constexpr, STRIDE: tl.constexpr, H: tl.constexpr,
                        BLOCK: tl.constexpr, EACH: tl.constexpr):
    row = (tl.program_id(0) * EACH + tl.arange(0, EACH))[:, None].to(tl.int64)
    column = tl.arange(0, BLOCK)[None, :]
    inside = (row < rows) & (column < H)
    left = tl.load(residual + row * RESIDUAL + column, mask=inside, other=0.0).to(tl.float32)
    right = tl.load(x + row * STRIDE + column, mask=inside, other=0.0).to(tl.float32)
    added = (left + right).to(total.dtype.element_ty)
    tl.store(total + row * H + column, added, mask=inside)
    wide = added.to(tl.float32)
    wide = wide * scale_of(wide, eps, H) * tl.load(weight + column, mask=column < H, other=0.0).to(tl.float32)
    tl.store(y + row * H + column, wide.to(y.dtype.element_ty), mask=inside)


def run(residual: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, *, eps: float) -> tuple[torch.Tensor, ...]:
    """residual, x [..., H], weight [H] -> (normed, sum), each [..., H]."""
    y, total = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for _ in range(2))
    (left, left_stride), (right, right_stride) = rows_of(residual), rows_of(x)
    block, each = tile(x.shape[-1])
    launch(add_rms_norm_kernel, (blocks(right.shape[0], each),), left, right, weight, y, total, right.shape[0], eps,
           RESIDUAL=left_stride, STRIDE=right_stride, H=x.shape[-1], BLOCK=block, EACH=each, warps=warps_for(2 * block * each))
    return y, total
