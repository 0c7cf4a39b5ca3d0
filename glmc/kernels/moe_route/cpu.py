"""Sigmoid routing with a correction for the choice alone. One group needs no mask."""

from __future__ import annotations

import torch


def accepts(site) -> str | None:
    return None


def run(logits: torch.Tensor, bias: torch.Tensor, *, groups: int, kept: int, top: int, normalise: bool, scale: float,
        ) -> tuple[torch.Tensor, torch.Tensor]:
    """logits float32 [T, E], bias float32 [E] -> weights float32 [T, top] and experts int64 [T, top], in no set order."""
    scores = torch.sigmoid(logits)
    choice = scores + bias
    if kept < groups:
        grouped = choice.unflatten(-1, (groups, -1))
        best = grouped.topk(2, dim=-1).values.sum(-1)
        chosen = best.topk(kept, dim=-1, sorted=False).indices
        allowed = (chosen.unsqueeze(-1) == torch.arange(groups, device=logits.device)).any(-2)
        choice = grouped.masked_fill(~allowed.unsqueeze(-1), float("-inf")).flatten(-2)
    experts = choice.topk(top, dim=-1, sorted=False).indices
    weights = scores.gather(-1, experts)
    if normalise:
        weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
    return weights * scale, experts
