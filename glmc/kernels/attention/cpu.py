"""Attention of new tokens over the cache's filled slots, query heads grouped over their key head.

One new token: the group takes the place of the query rows, so every key and value is read once.
Many new tokens: keys and values are repeated, which costs little beside the products.
"""

from __future__ import annotations

import torch
from torch.nn import functional


def accepts(site) -> str | None:
    return None


def run(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, visible: torch.Tensor | None = None, *, scale: float,
        ) -> torch.Tensor:
    """query [B, H, S, D], key [B, Hkv, L, D], value [B, Hkv, L, V], visible bool [B, 1, S, L] or all -> [B, H, S, V]."""
    rows, heads, tokens, width = query.shape
    groups = heads // key.shape[1]
    if isinstance(tokens, int) and tokens == 1:
        grouped = query.reshape(rows, key.shape[1], groups, width)
        scores = (grouped.float().unsqueeze(3) * key.float().unsqueeze(2)).sum(-1) * scale
        weights = torch.softmax(scores if visible is None else scores.masked_fill(~visible, float("-inf")), dim=-1)
        out = (weights.unsqueeze(-1) * value.float().unsqueeze(2)).sum(3)
        return out.to(query.dtype).reshape(rows, heads, 1, value.shape[-1])
    if groups > 1:
        key = key.repeat_interleave(groups, dim=1)
        value = value.repeat_interleave(groups, dim=1)
    return functional.scaled_dot_product_attention(query, key, value, attn_mask=visible, scale=scale)
