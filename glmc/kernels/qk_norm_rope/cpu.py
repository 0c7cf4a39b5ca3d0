"""RMS norm of each head, heads to the front, RoPE on the first R channels (halves)."""

from __future__ import annotations

import torch

from glmc.kernels.rms_norm import cpu as rms_norm
from glmc.kernels.rope_half import cpu as rope_half


def accepts(site) -> str | None:
    return None


def run(x: torch.Tensor, weight: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, *, eps: float) -> torch.Tensor:
    """x [B, S, H, D], weight [D], cos and sin [B, 1, S, R] -> [B, H, S, D]."""
    return rope_half.run(rms_norm.run(x, weight, eps=eps).transpose(1, 2), cos, sin)
