"""Packed QKV to attention's inputs: views of the packed rows, each head normalised and turned, k and v to their slots."""

from __future__ import annotations

import torch

from glmc.kernels.pick_lanes import cpu as pick_lanes
from glmc.kernels.rms_norm import cpu as rms_norm
from glmc.kernels.rope import cpu as rope


def accepts(site) -> str | None:
    return None


def run(qkv: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, q_weight: torch.Tensor | None = None,
        k_weight: torch.Tensor | None = None, q_bias: torch.Tensor | None = None, k_bias: torch.Tensor | None = None,
        keys: torch.Tensor | None = None, values: torch.Tensor | None = None, slots: torch.Tensor | None = None, *,
        heads: int, kv_heads: int, eps: float | None, read: int, write: int, axis_map: tuple[int, ...] | None,
        ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """qkv [..., (heads + 2 kv_heads) D], cos and sin [..., n] -> q [..., heads, D], k and v [..., kv_heads, D].

    q_weight, k_weight [D]: normalise each head by `eps`; q_bias, k_bias [D] are added after that.
    keys, values [B, L, kv_heads, D] and slots int64 [B, S]: k and v are written there and the caches returned instead.
    axis_map: cos and sin are [A, ..., n] and each lane reads its own row. For read and write see `glmc.rope`.
    """
    width = qkv.shape[-1] // (heads + 2 * kv_heads)
    q_end, k_end = heads * width, (heads + kv_heads) * width
    if axis_map is not None:
        cos, sin = (pick_lanes.run(t, list(axis_map)) for t in (cos, sin))

    def turned(part: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None) -> torch.Tensor:
        part = part.unflatten(-1, (part.shape[-1] // width, width))
        if weight is not None:
            part = rms_norm.run(part, weight, eps=eps)  # type: ignore[arg-type]  # eps: with weights
        return rope.run(part if bias is None else part + bias, cos, sin, read=read, write=write)

    q, k = turned(qkv[..., :q_end], q_weight, q_bias), turned(qkv[..., q_end:k_end], k_weight, k_bias)
    v = qkv[..., k_end:].unflatten(-1, (kv_heads, width))
    if keys is None:
        return q, k, v
    rows = torch.arange(qkv.shape[0], device=qkv.device).unsqueeze(1)
    return q, keys.index_put_((rows, slots), k), values.index_put_((rows, slots), v)  # type: ignore[union-attr]  # with keys
