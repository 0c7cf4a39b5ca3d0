"""Latent attention in the steps of the CPU's kernel, closed for one new token a row, opened for many, with the products and the
softmax of `glmc.kernels.attention.mlir`."""

from __future__ import annotations

import torch
from torch.nn import functional

from glmc.kernels.attention import mlir as attention
from glmc.kernels.latent_attention.cpu import accepts

__all__ = ["accepts", "run"]


def run(q_plain: torch.Tensor, q_turned: torch.Tensor, latent: torch.Tensor, turned: torch.Tensor, kv_b: torch.Tensor,
        visible: torch.Tensor, chosen: torch.Tensor | None = None, *, scale: float) -> torch.Tensor:
    """q_plain [B, S, H, N], q_turned [B, S, H, E], latent [B, L, 1, R], turned [B, L, 1, E], kv_b [H (N + V), R], visible
    bool [B, 1, S, L], chosen int32 [B, S, T] below L -> [B, H, S, V]."""
    heads, plain = q_plain.shape[2:]
    if chosen is not None:
        slots = torch.arange(latent.shape[1], device=chosen.device)
        visible = visible & (chosen.unsqueeze(-1) == slots).any(2).unsqueeze(1)
    if not (isinstance(q_plain.shape[1], int) and q_plain.shape[1] == 1):
        query = torch.cat((q_plain.transpose(1, 2), q_turned.transpose(1, 2)), -1)
        both = functional.linear(latent.squeeze(2), kv_b).unflatten(-1, (heads, kv_b.shape[0] // heads)).transpose(1, 2)
        key = torch.cat((both[..., :plain], turned.transpose(1, 2).expand(-1, heads, -1, -1)), -1)
        return attention.run(query, key, both[..., plain:], visible, scale=scale)
    parts, rows = kv_b.float().unflatten(0, (heads, kv_b.shape[0] // heads)), latent.squeeze(2).float()
    asked = torch.einsum("bhn,hnr->bhr", q_plain.squeeze(1).float(), parts[:, :plain])
    scores = asked @ rows.transpose(1, 2) + q_turned.squeeze(1).float() @ turned.squeeze(2).float().transpose(1, 2)
    weights, total = attention.shares(scores * scale + torch.where(visible.squeeze(1), 0.0, float("-inf")))
    return torch.einsum("bhr,hvr->bhv", weights / total @ rows, parts[:, plain:]).to(q_plain.dtype).unsqueeze(2)
