"""Latent attention on CPU tensors: one new token a row reads the compressed slots, many open them first.

Opened, every slot costs a product with kv_b, which many tokens share; closed, kv_b's rows go into the query and the result,
and a slot costs no more than its own width. Both are the same sums in another order.
"""

from __future__ import annotations

import torch
from torch.nn import functional


def accepts(site) -> str | None:
    return None


def run(q_plain: torch.Tensor, q_turned: torch.Tensor, latent: torch.Tensor, turned: torch.Tensor, kv_b: torch.Tensor,
        visible: torch.Tensor, chosen: torch.Tensor | None = None, *, scale: float) -> torch.Tensor:
    """q_plain [B, S, H, N], q_turned [B, S, H, E], latent [B, L, 1, R], turned [B, L, 1, E], kv_b [H (N + V), R], visible
    bool [B, 1, S, L], chosen int32 [B, S, T] below L -> [B, H, S, V]."""
    batch, tokens, heads, plain = q_plain.shape
    slots = latent.shape[1]
    if chosen is not None:
        among = torch.zeros((batch, tokens, slots), dtype=torch.bool, device=latent.device)
        visible = visible & among.scatter_(-1, chosen.long(), True).unsqueeze(1)
    if isinstance(tokens, int) and tokens == 1:
        return _closed(q_plain, q_turned, latent, turned, kv_b, visible, scale)
    query = torch.cat((q_plain.transpose(1, 2), q_turned.transpose(1, 2)), -1)
    opened = functional.linear(latent.squeeze(2), kv_b).view(batch, slots, heads, kv_b.shape[0] // heads).transpose(1, 2)
    key = torch.cat((opened[..., :plain], turned.transpose(1, 2).expand(-1, heads, -1, -1)), -1)
    return functional.scaled_dot_product_attention(query, key, opened[..., plain:], attn_mask=visible, scale=scale)


def _closed(q_plain: torch.Tensor, q_turned: torch.Tensor, latent: torch.Tensor, turned: torch.Tensor, kv_b: torch.Tensor,
            visible: torch.Tensor, scale: float) -> torch.Tensor:
    """One new token a row, float32 inside."""
    heads, plain = q_plain.shape[2:]
    parts = kv_b.float().view(heads, kv_b.shape[0] // heads, kv_b.shape[1])
    rows = latent.squeeze(2).float()
    asked = torch.einsum("bhn,hnr->bhr", q_plain.squeeze(1).float(), parts[:, :plain])
    scores = asked @ rows.transpose(1, 2) + q_turned.squeeze(1).float() @ turned.squeeze(2).float().transpose(1, 2)
    weights = torch.softmax((scores * scale).masked_fill(~visible.squeeze(1), float("-inf")), dim=-1)
    return torch.einsum("bhr,hvr->bhv", weights @ rows, parts[:, plain:]).to(q_plain.dtype).unsqueeze(2)
