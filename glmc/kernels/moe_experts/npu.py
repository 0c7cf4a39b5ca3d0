"""Tokens through their chosen experts: sorted by expert, two grouped products with the gate between, and back in float32."""

from __future__ import annotations

import torch

from glmc.kernels.grouped_mm import npu as grouped_mm
from glmc.kernels.moe_experts import by_expert
from glmc.kernels.npu import vendor

CONTRACT = grouped_mm.CONTRACT


def accepts(site) -> str | None:
    experts, packed, hidden = site["gate_up"][1]
    return CONTRACT.refusal(*(site[n][0] for n in ("x", "gate_up", "down")), experts=experts, inner=max(packed, hidden))


def run(x: torch.Tensor, experts: torch.Tensor, weights: torch.Tensor, gate_up: torch.Tensor, down: torch.Tensor,
        ) -> torch.Tensor:
    """x [T, H], experts int64 [T, K] below E, weights float32 [T, K], gate_up [E, 2I, H], down [E, H, I] -> [T, H]."""
    tokens, top = experts.shape
    order, ends, back = by_expert(experts, down.shape[0])
    both = grouped_mm.run(x[order // top], gate_up.transpose(1, 2), ends)
    rows = grouped_mm.run(vendor("torch_npu").npu_swiglu(both, dim=-1), down.transpose(1, 2), ends)
    each = rows[back].view(tokens, top, -1).float()
    return (each * weights.unsqueeze(-1)).sum(1).to(x.dtype)
