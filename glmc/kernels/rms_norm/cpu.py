"""Root-mean-square norm in one pass over the row: float32 inside, one rounding before the weight, as published."""

from __future__ import annotations

import torch


def accepts(site) -> str | None:
    return None


def run(x: torch.Tensor, weight: torch.Tensor | None = None, *, eps: float) -> torch.Tensor:
    """x [..., H], weight [H] or none -> [..., H] in the promoted dtype of both."""
    wide = x.float()
    scale = torch.rsqrt((wide * wide).sum(-1, keepdim=True) / x.shape[-1] + eps)
    normed = (wide * scale).to(x.dtype)
    return normed if weight is None else normed * weight
