"""Modulated layer norm: a row is centred in registers before it is squared; float32 inside, one rounding at the store."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from glmc.kernels import too_wide
from glmc.kernels.rms_norm.triton import WIDEST, scale_of, tile
from glmc.kernels.triton import blocks, launch, rows_of, warps_for


def accepts(site) -> str | None:
    return too_wide("a row", site["x"][1][-1], WIDEST)


@triton.jit(do_not_specialize=["rows", "tokens", "step", "stride"])
def modulated_norm_kernel(x, factor, shift, y, rows, tokens, step, stride, eps, STRIDE: tl.constexpr, H: tl.constexpr,
                          BLOCK: tl.constexpr, EACH: tl.constexpr):
    row = (tl.program_id(0) * EACH + tl.arange(0, EACH))[:, None].to(tl.int64)
    column = tl.arange(0, BLOCK)[None, :]
    inside = (row < rows) & (column < H)
    wide = tl.load(x + row * STRIDE + column, mask=inside, other=0.0).to(tl.float32)
    wide = tl.where(inside, wide - tl.sum(wide, axis=1, keep_dims=True) / H, 0.0)
    wide = wide * scale_of(wide, eps, H)
    picture = row // tokens
    wide = wide * tl.load(factor + picture * step + column, mask=inside, other=0.0).to(tl.float32)
    wide = wide + tl.load(shift + picture * stride + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(y + row * H + column, wide.to(y.dtype.element_ty), mask=inside)


def run(x: torch.Tensor, factor: torch.Tensor, shift: torch.Tensor, *, eps: float) -> torch.Tensor:
    """x [B, S, H], factor and shift [B, 1, H] -> [B, S, H] in x's dtype."""
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    rows, stride = rows_of(x)
    by = [t if t.stride(-1) == 1 else t.contiguous() for t in (factor, shift)]
    block, each = tile(x.shape[-1])
    launch(modulated_norm_kernel, (blocks(rows.shape[0], each),), rows, *by, y, rows.shape[0], x.shape[1], by[0].stride(0),
           by[1].stride(0), eps, STRIDE=stride, H=x.shape[-1], BLOCK=block, EACH=each, warps=warps_for(block * each))
    return y
