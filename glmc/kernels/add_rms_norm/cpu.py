"""Residual add and RMS norm together; the sum goes on as the residual stream."""

from __future__ import annotations

import torch

from glmc.kernels import differ
from glmc.kernels.rms_norm import cpu as rms_norm


def accepts(site) -> str | None:
    return differ(site, "residual", "x")


def run(residual: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, *, eps: float) -> tuple[torch.Tensor, ...]:
    """residual, x [..., H], weight [H] -> (normed, sum), each [..., H]."""
    total = residual + x
    return rms_norm.run(total, weight, eps=eps), total
