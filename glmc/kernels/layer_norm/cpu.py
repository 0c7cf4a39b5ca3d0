"""Layer norm: float32 inside, one rounding at the end."""

from __future__ import annotations

import torch


def accepts(site) -> str | None:
    return None


def run(x: torch.Tensor, weight: torch.Tensor | None = None, bias: torch.Tensor | None = None, *, eps: float) -> torch.Tensor:
    """x [..., H], weight and bias [H] or None -> [..., H] in x's dtype."""
    wide = x.float()
    centred = wide - wide.mean(-1, keepdim=True)
    out = centred * torch.rsqrt((centred * centred).mean(-1, keepdim=True) + eps)
    if weight is not None:
        out = out * weight.float()
    if bias is not None:
        out = out + bias.float()
    return out.to(x.dtype)
