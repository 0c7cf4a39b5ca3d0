"""Modulated layer norm: float32 inside, one rounding at the end."""

from __future__ import annotations

import torch
from torch.nn import functional


def accepts(site) -> str | None:
    return None


def run(x: torch.Tensor, factor: torch.Tensor, shift: torch.Tensor, *, eps: float) -> torch.Tensor:
    """x [B, S, H], factor and shift [B, 1, H] -> [B, S, H] in x's dtype."""
    normed = functional.layer_norm(x.float(), (x.shape[-1],), None, None, eps)
    return torch.addcmul(shift.float(), normed, factor.float()).to(x.dtype)
