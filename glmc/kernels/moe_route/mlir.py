"""Sigmoid routing with a correction for the choice alone. The choice is a sorted topk, the one that importers take."""

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
        # Of the groups those are allowed that fewer than `kept` others beat; of equal ones the first.
        place = torch.arange(groups, device=logits.device)
        beats = (best.unsqueeze(-2) > best.unsqueeze(-1)) | ((best.unsqueeze(-2) == best.unsqueeze(-1)) & (
            place < place.unsqueeze(-1)))
        hidden = torch.where(beats.to(torch.int64).sum(-1) < kept, 0.0, float("-inf"))
        choice = (grouped + hidden.unsqueeze(-1)).flatten(-2)
    experts = choice.topk(top, dim=-1).indices
    weights = scores.gather(-1, experts)
    if normalise:
        weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
    return weights * scale, experts
