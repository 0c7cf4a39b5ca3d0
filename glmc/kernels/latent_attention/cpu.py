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
    visible = allowed(visible, chosen, latent.shape[1])
    if isinstance(q_plain.shape[1], int) and q_plain.shape[1] == 1:
        return _closed(q_plain, q_turned, latent, turned, kv_b, visible, scale)
    return opened(q_plain, q_turned, latent, turned, kv_b, visible, scale)


def allowed(visible: torch.Tensor, chosen: torch.Tensor | None, slots: int) -> torch.Tensor:
    """bool [B, 1, S, L]: the visible slots, of the chosen ones where there is a choice."""
    if chosen is None:
        return visible
    among = torch.zeros((*chosen.shape[:2], slots), dtype=torch.bool, device=chosen.device)
    return visible & among.scatter_(-1, chosen.long(), True).unsqueeze(1)


def opened(q_plain: torch.Tensor, q_turned: torch.Tensor, latent: torch.Tensor, turned: torch.Tensor, kv_b: torch.Tensor,
           visible: torch.Tensor, scale: float) -> torch.Tensor:
    """Keys and values of every slot are made first; torch's own kernels, on any device."""
    batch, slots, heads, plain = *latent.shape[:2], *q_plain.shape[2:]
    query = torch.cat((q_plain.transpose(1, 2), q_turned.transpose(1, 2)), -1)
    both = functional.linear(latent.squeeze(2), kv_b).view(batch, slots, heads, kv_b.shape[0] // heads).transpose(1, 2)
    key = torch.cat((both[..., :plain], turned.transpose(1, 2).expand(-1, heads, -1, -1)), -1)
    return functional.scaled_dot_product_attention(query, key, both[..., plain:], attn_mask=visible, scale=scale)


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
