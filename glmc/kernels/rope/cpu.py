"""RoPE on the first 2n channels of each head: two products a channel, float32 or the heads' dtype as the table's is."""

from __future__ import annotations

import torch


def accepts(site) -> str | None:
    return None


def run(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, *, read: int, write: int) -> torch.Tensor:
    """x [..., H, D], cos and sin [..., n] with 2n <= D -> [..., H, D] in x's dtype.

    read, write: -2 where a lane's two channels stand n apart, -1 where they are neighbours.
    """
    lanes = cos.shape[-1]
    cos, sin = cos.unsqueeze(-2), sin.unsqueeze(-2)
    turn, keep = x[..., : 2 * lanes].to(cos.dtype), x[..., 2 * lanes:]
    first, second = (turn[..., 0::2], turn[..., 1::2]) if read == -1 else (turn[..., :lanes], turn[..., lanes:])
    turned = first * cos - second * sin, second * cos + first * sin
    if write == -1:
        return torch.cat((torch.stack(turned, dim=-1).flatten(-2).to(x.dtype), keep), dim=-1)
    return torch.cat((*(t.to(x.dtype) for t in turned), keep), dim=-1)
