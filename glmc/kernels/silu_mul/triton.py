"""SiLU and multiply: gate and up may be two halves of one packed product, each with a row distance of its own."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from glmc.kernels import differ
from glmc.kernels.triton import blocks, launch, power, rows_of, warps_for


def accepts(site) -> str | None:
    return differ(site, "gate", "up")


@triton.jit(do_not_specialize=["rows"])
def silu_mul_kernel(gate, up, y, rows, GATE: tl.constexpr, UP: tl.constexpr, I: tl.constexpr, BLOCK: tl.constexpr):  # noqa: E741
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < I
    wide = tl.load(gate + row * GATE + column, mask=inside, other=0.0).to(tl.float32)
    times = tl.load(up + row * UP + column, mask=inside, other=0.0).to(tl.float32)
    wide = wide / (1.0 + tl.exp(-wide)) * times
    tl.store(y + row * I + column, wide.to(y.dtype.element_ty), mask=inside)


def run(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """gate, up [..., I] -> [..., I]."""
    y = torch.empty(gate.shape, dtype=gate.dtype, device=gate.device)
    (left, left_stride), (right, right_stride) = rows_of(gate), rows_of(up)
    width = gate.shape[-1]
    block = min(power(width), 2048)
    launch(silu_mul_kernel, (left.shape[0], blocks(width, block)), left, right, y, left.shape[0],
           GATE=left_stride, UP=right_stride, I=width, BLOCK=block, warps=warps_for(block))
    return y
