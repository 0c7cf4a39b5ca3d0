"""Attention over the cache by `torch_npu.npu_fused_infer_attention_score`, in the layout in which the cache lies (BSND).

Its mask says what is hidden. Keys and values must be contiguous: of one row the filled slots are, of several they are copied.
"""

from __future__ import annotations

import torch

from glmc.kernels.npu import HALVES, Contract, Limit, vendor

CONTRACT = Contract("torch_npu.npu_fused_infer_attention_score", "torch_npu 2.1, Atlas A2 and A3",
                    "Ascend/op-plugin docs/context/torch_npu-npu_fused_infer_attention_score.md", HALVES,
                    {"heads": Limit(most=256), "queries_per_key_head": Limit(most=64),
                     "width": Limit(least=16, most=512, multiple=16)})


def accepts(site) -> str | None:
    width, heads, kv_heads = site["query"][1][-1], site["query"][1][1], site["key"][1][1]
    if site["value"][1][-1] != width:
        return f"{CONTRACT.op} takes keys and values of one shape, found {width} and {site['value'][1][-1]} channels"
    return CONTRACT.refusal(*(site[n][0] for n in ("query", "key", "value")), heads=heads,
                            queries_per_key_head=heads // kv_heads, width=width)


def run(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, visible: torch.Tensor | None = None, *, scale: float,
        ) -> torch.Tensor:
    """query [B, H, S, D], key [B, Hkv, L, D], value [B, Hkv, L, D], visible bool [B, 1, S, L] or all -> [B, H, S, D]."""
    q, k, v = (t.transpose(1, 2).contiguous() for t in (query, key, value))
    hidden = None if visible is None else visible.logical_not().expand(-1, 1, q.shape[1], k.shape[1]).contiguous()
    out, _ = vendor("torch_npu").npu_fused_infer_attention_score(
        q, k, v, atten_mask=hidden, num_heads=q.shape[2], num_key_value_heads=k.shape[2], scale=scale, input_layout="BSND",
        sparse_mode=0)
    return out.transpose(1, 2)
