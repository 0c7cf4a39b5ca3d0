"""RMS norm of each head, then RoPE on its first 2n channels."""

from __future__ import annotations

import torch

from glmc.kernels.rms_norm import cpu as rms_norm
from glmc.kernels.rope import cpu as rope


def accepts(site) -> str | None:
    return None


def run(x: torch.Tensor, weight: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, *, eps: float, read: int, write: int,
        ) -> torch.Tensor:
    """x [..., H, D], weight [D], cos and sin [..., n] -> [..., H, D]; see `glmc.rope` for read and write."""
    return rope.run(rms_norm.run(x, weight, eps=eps), cos, sin, read=read, write=write)
