"""RoPE on the first R channels, channel i paired with i + R/2: two products a half, no concatenated rotation."""

from __future__ import annotations

import torch


def accepts(site) -> str | None:
    return None


def run(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """x [B, H, S, D], cos and sin [B, 1, S, R] with equal halves or not -> [B, H, S, D]."""
    width = cos.shape[-1]
    half = width // 2
    low, high = x[..., :half], x[..., half:width]
    turned = (low * cos[..., :half] - high * sin[..., :half], high * cos[..., half:] + low * sin[..., half:])
    return torch.cat((*turned, x[..., width:]), dim=-1)
