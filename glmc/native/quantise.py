"""Floats to the codes and scales of MXFP4, FP8 and NVFP4 as published quantisers make them: for weights that are drawn."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def quantised(matrix: torch.Tensor, form: str) -> tuple[Any, ...]:
    """A matrix [N, K] of floats as (codes, scales, factor, block), which `panels.pack_codes` takes. K is filled with zeros.

    MX4: the power of 2 that brings the largest of 32 to between 4 and 8 less a quarter. F8: the largest of 128 inputs becomes
    448. NV4: the largest of 16 becomes 6 times a scale, the largest scale 448 times the factor.
    """
    import torch

    whole = matrix.float()
    if form == "F8":
        grouped = torch.nn.functional.pad(whole, (0, -whole.shape[1] % 128)).unflatten(1, (-1, 128))
        scales = grouped.abs().amax(-1) / 448
        codes = (grouped / scales.where(scales > 0, 1.0).unsqueeze(-1)).flatten(1)[:, :whole.shape[1]]
        return codes.to(torch.float8_e4m3fn), scales, 1.0, (1, 128)
    each = 32 if form == "MX4" else 16
    grouped = torch.nn.functional.pad(whole, (0, -whole.shape[1] % 32)).unflatten(1, (-1, each))
    most = grouped.abs().amax(-1)
    if form == "MX4":
        bits = most.view(torch.int32) + (1 << 21)  # a quarter of the mantissa
        bytes_ = ((bits >> 23) - 2).clamp(1, 254)
        return _e2m1(grouped, (bytes_ << 23).view(torch.float32)), bytes_.to(torch.uint8), 1.0, (1, 32)
    factor = most.max() / (6 * 448)
    factor = factor.where(factor > 0, 1.0)
    scales = (most / 6 / factor).to(torch.float8_e4m3fn)
    return _e2m1(grouped, scales.float() * factor), scales, factor, (1, 16)


def _e2m1(grouped: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """[N, groups, inputs] by scales [N, groups] -> two codes a byte [N, K / 2], to nearest, ties to the even code."""
    import torch

    sizes = grouped.abs() / scales.where(scales > 0, 1.0).unsqueeze(-1)
    step = torch.where(sizes < 2, 0.5, torch.where(sizes < 4, 1.0, 2.0))
    sizes = ((sizes / step).round() * step).clamp(max=6.0)
    codes = torch.where(sizes < 2, sizes * 2, torch.where(sizes < 4, sizes + 2, sizes / 2 + 4)).to(torch.uint8)
    codes = (codes | (grouped < 0).to(torch.uint8) << 3).flatten(1)
    return codes[:, 0::2] | codes[:, 1::2] << 4
