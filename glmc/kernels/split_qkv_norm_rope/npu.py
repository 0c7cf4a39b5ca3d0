"""Packed QKV by `split_qkv_rmsnorm_rope` of sgl-kernel-npu, for every mode: prefill and decode.

sin comes before cos in the vendor's order, so everything is passed by name. The norm is taken if and only if the model has
one; RoPE runs in either case, over the table's width. With three rows of positions the table's rows are selected before the
op. It writes no cache: k and v go to their slots after it.
"""

from __future__ import annotations

import torch

from glmc.kernels.npu import FLOATS, Contract, Limit, vendor
from glmc.kernels.pick_lanes import npu as pick_lanes

MODULE = "sgl_kernel_npu.norm.split_qkv_rmsnorm_rope"
CONTRACT = Contract(f"{MODULE}.split_qkv_rmsnorm_rope", "sgl-kernel-npu after 2026-06-02 (float32 throughout)",
                    "sgl-kernel-npu f425bdf1", FLOATS,
                    {"head_dim": Limit(power=True), "remainder_of_heads": Limit(least=0, most=0)})


def accepts(site) -> str | None:
    heads, kv_heads = site["heads"], site["kv_heads"]
    if site["read"] != site["write"]:
        return f"{CONTRACT.op} leaves channels where they stand; here pairs become halves"
    if "q_bias" in site and "q_weight" not in site:
        return f"{CONTRACT.op} adds a bias only after a norm"
    if "keys" in site and site["keys"][0] != site["qkv"][0]:
        return f"the cache is {site['keys'][0]}, the heads are {site['qkv'][0]}"
    width = site["qkv"][1][-1] // (heads + 2 * kv_heads)
    return CONTRACT.refusal(site["qkv"][0], head_dim=width, remainder_of_heads=heads % kv_heads)


def run(qkv: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, q_weight: torch.Tensor | None = None,
        k_weight: torch.Tensor | None = None, q_bias: torch.Tensor | None = None, k_bias: torch.Tensor | None = None,
        keys: torch.Tensor | None = None, values: torch.Tensor | None = None, slots: torch.Tensor | None = None, *,
        heads: int, kv_heads: int, eps: float | None, read: int, write: int, axis_map: tuple[int, ...] | None,
        ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """qkv [..., (heads + 2 kv_heads) D], cos and sin [..., n] -> q [..., heads, D], k and v [..., kv_heads, D].

    For the other arguments see `glmc.split_qkv_norm_rope` on the CPU: they mean the same.
    """
    lead, width = qkv.shape[:-1], qkv.shape[-1] // (heads + 2 * kv_heads)
    if axis_map is not None:
        cos, sin = (pick_lanes.run(t, axis_map) for t in (cos, sin))

    def table(t: torch.Tensor) -> torch.Tensor:
        flat = t.expand(*lead, t.shape[-1]).reshape(-1, 1, 1, t.shape[-1])
        return torch.cat((flat, flat), dim=-1)

    q, k, v = vendor(MODULE).split_qkv_rmsnorm_rope(
        input=qkv.reshape(-1, qkv.shape[-1]).contiguous(), sin=table(sin), cos=table(cos), q_hidden_size=heads * width,
        kv_hidden_size=kv_heads * width, head_dim=width, eps=eps if q_weight is not None else None, q_weight=q_weight,
        k_weight=k_weight, q_bias=q_bias, k_bias=k_bias, is_neox_style=read == -2)
    q, k, v = q.view(*lead, heads, width), k.view(*lead, kv_heads, width), v.view(*lead, kv_heads, width)
    if keys is None or values is None:
        return q, k, v
    rows = torch.arange(lead[0], device=qkv.device).unsqueeze(1)
    return q, keys.index_put_((rows, slots), k), values.index_put_((rows, slots), v)
