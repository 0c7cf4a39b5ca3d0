"""RMS norm: one long row a program, or several short ones; float32 inside, one rounding at the store.

R rows of H elements, EACH of them a program, BLOCK the power of two above H.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from glmc.kernels import too_wide
from glmc.kernels.triton import blocks, launch, power, rows_of, warps_for

WIDEST = 32768
"""Elements of a row that one program still holds in registers."""


def accepts(site) -> str | None:
    return too_wide("a row", site["x"][1][-1], WIDEST)


def tile(width: int) -> tuple[int, int]:
    """(BLOCK, EACH): about 2048 elements a program where rows are short."""
    block = power(width)
    return block, max(1, 2048 // block)


@triton.jit
def scale_of(wide, eps, H: tl.constexpr):
    """1 / root mean square of each row of a tile."""
    return tl.rsqrt(tl.sum(wide * wide, axis=1, keep_dims=True) / H + eps)


@triton.jit(do_not_specialize=["rows"])
def rms_norm_kernel(x, weight, y, rows, eps, STRIDE: tl.constexpr, H: tl.constexpr, BLOCK: tl.constexpr, EACH: tl.constexpr):
    row = (tl.program_id(0) * EACH + tl.arange(0, EACH))[:, None].to(tl.int64)
    column = tl.arange(0, BLOCK)[None, :]
    inside = (row < rows) & (column < H)
    wide = tl.load(x + row * STRIDE + column, mask=inside, other=0.0).to(tl.float32)
    wide = wide * scale_of(wide, eps, H)
    if weight is not None:
        wide = wide * tl.load(weight + column, mask=column < H, other=0.0).to(tl.float32)
    tl.store(y + row * H + column, wide.to(y.dtype.element_ty), mask=inside)


def run(x: torch.Tensor, weight: torch.Tensor | None = None, *, eps: float) -> torch.Tensor:
    """x [..., H], weight [H] or None -> [..., H] in x's dtype."""
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    rows, stride = rows_of(x)
    block, each = tile(x.shape[-1])
    launch(rms_norm_kernel, (blocks(rows.shape[0], each),), rows, weight, y, rows.shape[0], eps,
           STRIDE=stride, H=x.shape[-1], BLOCK=block, EACH=each, warps=warps_for(block * each))
    return y
