"""Tokens through their chosen experts; see the fusion `moe_experts`."""

from __future__ import annotations

import torch


def by_expert(experts: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """experts int64 [T, K] below `count` -> int64 [T K] each: the pairs sorted by expert, and where each pair then stands;
    between them int64 [count], the exclusive end of each expert's rows. Nothing is asked of the device."""
    ids, order = torch.sort(experts.reshape(-1))
    ends = torch.searchsorted(ids, torch.arange(count, device=ids.device), right=True)
    return order, ends, torch.empty_like(order).scatter_(0, order, torch.arange(order.shape[0], device=order.device))
