"""The indexer on CPU tensors, all in float32."""

from __future__ import annotations

import torch


def accepts(site) -> str | None:
    return None


def totals(query: torch.Tensor, index: torch.Tensor, shares: torch.Tensor, visible: torch.Tensor, scale: float,
           head_scale: float) -> torch.Tensor:
    """What each slot counts for each token, float32 [B, S, L], -inf where it is not visible; arguments as of `run`."""
    keys = index.squeeze(2).float().transpose(1, 2).unsqueeze(1)
    scores = torch.relu((query.float() @ keys) * scale)
    total = ((shares.float() * head_scale).unsqueeze(2) @ scores).squeeze(2)
    return total.masked_fill(~visible.squeeze(1), float("-inf"))


def run(query: torch.Tensor, index: torch.Tensor, shares: torch.Tensor, visible: torch.Tensor, *, scale: float,
        head_scale: float, top: int) -> torch.Tensor:
    """query [B, S, H, D], index [B, L, 1, D], shares [B, S, H], visible bool [B, 1, S, L] -> int32 [B, S, top] below L.

    L is at least `top`. Of slots that are not visible any may follow the visible ones.
    """
    return totals(query, index, shares, visible, scale, head_scale).topk(top, dim=-1).indices.to(torch.int32)
