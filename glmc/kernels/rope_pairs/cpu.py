"""RoPE on the first R channels, channel 2i paired with 2i + 1: a view as pairs, two products each."""

from __future__ import annotations

import torch


def accepts(site) -> str | None:
    return None


def run(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """x [B, H, S, D], cos and sin [B, 1, S, R], already repeated for each pair -> [B, H, S, D]."""
    width = cos.shape[-1]
    even, odd = x[..., 0:width:2], x[..., 1:width:2]
    first = even * cos[..., 0::2] - odd * sin[..., 0::2]
    second = odd * cos[..., 1::2] + even * sin[..., 1::2]
    return torch.cat((torch.stack((first, second), dim=-1).flatten(-2), x[..., width:]), dim=-1)
