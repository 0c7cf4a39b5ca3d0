"""RMS norm of each head and RoPE in one pass over the head: the kernel of `rope`, with a weight."""

from __future__ import annotations

import torch

from glmc.kernels.rope import triton as rope

accepts = rope.accepts


def run(x: torch.Tensor, weight: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, *, eps: float, read: int, write: int,
        ) -> torch.Tensor:
    """x [..., H, D], weight [D], cos and sin [..., n] -> [..., H, D]; see `glmc.rope` for read and write."""
    return rope.start(x, cos, sin, weight, eps, read, write)
