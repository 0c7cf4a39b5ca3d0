"""A quantised matrix decoded: tiles of it inside the kernels that multiply, or all of it before a product with many rows.

Codes become half floats by moving their bits, the same on every GPU: e2m1 and e4m3 have a half's layout but for the offset of
the exponent. The power of two that this leaves out, 2^14 and 2^8, is folded into the scale of the group.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from glmc.kernels.dequantise import Coded
from glmc.kernels.triton import blocks, launch, power


def accepts(site) -> str | None:
    return None


def operand(weight: torch.Tensor | Coded,
            ) -> tuple[tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None], dict[str, Any]]:
    """A matrix for a kernel that calls `tile_of`: its tensors (weights or codes, scales, factors), and its constants."""
    if isinstance(weight, Coded):
        return ((weight.codes, weight.scales, weight.factors),
                {"W_ROW": weight.codes.stride(-2), "S_ROW": weight.scales.stride(-2),
                 "F_ROW": 0 if weight.factors is None else weight.factors.stride(-1), "FORM": weight.form,
                 "GROUP": weight.group})
    return (weight, None, None), {"W_ROW": weight.stride(-2), "S_ROW": 0, "F_ROW": 0, "FORM": None, "GROUP": 1}


@triton.jit
def _half(bits):
    return bits.to(tl.float16, bitcast=True).to(tl.float32)


@triton.jit
def _e4m3(code):
    """2^-8 of the value of an e4m3 byte."""
    wide = code.to(tl.uint16)
    return _half(((wide & 128) << 8) | ((wide & 127) << 7))


@triton.jit
def tile_of(matrix, scales, rows, start, good, W_ROW: tl.constexpr, S_ROW: tl.constexpr, I: tl.constexpr,  # noqa: E741
            FORM: tl.constexpr, GROUP: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    """Inputs `start` to `start + BK` of the rows int64 [BN, 1] of a matrix, [BN, BK]: as they are, or decoded to float32 but
    for the factors. `good`: which rows are there. BK is a power of two, and `start` a multiple of it."""
    if FORM is None:
        at = (start + tl.arange(0, BK))[None, :]
        values = tl.load(matrix + rows * W_ROW + at, mask=good & (at < I), other=0.0)
    else:
        if FORM == "F8":
            at = (start + tl.arange(0, BK))[None, :]
            codes = tl.load(matrix + rows * W_ROW + at, mask=good & (at < I), other=0)
            values = _e4m3(codes)
        else:
            at = (start // 2 + tl.arange(0, BK // 2))[None, :]
            codes = tl.load(matrix + rows * W_ROW + at, mask=good & (at < I // 2), other=0).to(tl.uint16)
            values = tl.interleave(_half(((codes & 8) << 12) | ((codes & 7) << 9)),
                                   _half(((codes & 128) << 8) | ((codes & 112) << 5)))
        EACH: tl.constexpr = GROUP if GROUP < BK else BK
        group = (start // GROUP + tl.arange(0, BK // EACH))[None, :]
        scale = tl.load(scales + rows * S_ROW + group, mask=good & (group * GROUP < I), other=0)
        if FORM == "MX4":
            scale = ((scale.to(tl.int32) + 14) << 23).to(tl.float32, bitcast=True)
        elif FORM == "NV4":
            scale = _e4m3(scale) * 4194304.0
        else:
            scale = scale * 256.0
        values = tl.reshape(tl.reshape(values, (BN, BK // EACH, EACH)) * scale[:, :, None], (BN, BK))
    return values


@triton.jit
def dequantise_kernel(matrix, scales, factors, y, W_ROW: tl.constexpr, S_ROW: tl.constexpr, F_ROW: tl.constexpr,
                      I: tl.constexpr, O: tl.constexpr, FORM: tl.constexpr, GROUP: tl.constexpr, BN: tl.constexpr,  # noqa: E741
                      BK: tl.constexpr):
    output = (tl.program_id(0) * BN + tl.arange(0, BN)).to(tl.int64)[:, None]
    start = tl.program_id(1) * BK
    values = tile_of(matrix, scales, output, start, output < O, W_ROW, S_ROW, I, FORM, GROUP, BN, BK)
    if factors is not None:
        values = values * tl.load(factors + output * F_ROW, mask=output < O, other=0.0)
    at = (start + tl.arange(0, BK))[None, :]
    tl.store(y + output * I + at, values.to(y.dtype.element_ty), mask=(output < O) & (at < I))


def run(weight: Coded, dtype: torch.dtype) -> torch.Tensor:
    """The matrix [..., O, I] in `dtype`, rounded once."""
    y = torch.empty(weight.shape, dtype=dtype, device=weight.codes.device)
    outputs, inputs = y.numel() // weight.shape[-1], weight.shape[-1]
    (codes, scales, factors), constants = operand(weight)
    along = min(max(power(inputs), 16), 512)
    launch(dequantise_kernel, (blocks(outputs, 8), blocks(inputs, along)), codes, scales, factors, y, I=inputs, O=outputs,
           BN=8, BK=along, **constants, warps=4)
    return y
