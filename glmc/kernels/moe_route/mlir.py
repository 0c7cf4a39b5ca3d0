"""Sigmoid routing with a correction for the choice alone, by places: how many others a value is beaten by.

Importers make torch's topk a sort, which not all of them have; with as many experts as models have, counting is no slower.
"""

from __future__ import annotations

import torch


def accepts(site) -> str | None:
    return None


def places(x: torch.Tensor) -> torch.Tensor:
    """x [..., n] -> int64 [..., n], each value's place in falling order; of equal ones the first comes first."""
    number = torch.arange(x.shape[-1], device=x.device)
    other, own = x.unsqueeze(-2), x.unsqueeze(-1)
    return ((other > own) | ((other == own) & (number < number.unsqueeze(-1)))).to(torch.int64).sum(-1)


def run(logits: torch.Tensor, bias: torch.Tensor, *, groups: int, kept: int, top: int, normalise: bool, scale: float,
        ) -> tuple[torch.Tensor, torch.Tensor]:
    """logits float32 [T, E], bias float32 [E] -> weights float32 [T, top] and experts int64 [T, top], in falling order."""
    scores = torch.sigmoid(logits)
    choice = scores + bias
    if kept < groups:
        grouped = choice.unflatten(-1, (groups, -1))
        best = (grouped * (places(grouped) < 2).to(grouped.dtype)).sum(-1)
        hidden = torch.where(places(best) < kept, 0.0, float("-inf"))
        choice = (grouped + hidden.unsqueeze(-1)).flatten(-2)
    chosen = (places(choice).unsqueeze(-2) == torch.arange(top, device=logits.device).unsqueeze(-1)).to(torch.int64)
    experts = (chosen * torch.arange(logits.shape[-1], device=logits.device)).sum(-1)
    weights = (chosen.to(scores.dtype) * scores.unsqueeze(-2)).sum(-1)
    if normalise:
        weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
    return weights * scale, experts
