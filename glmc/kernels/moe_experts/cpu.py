"""Tokens through their chosen experts: one pass over the experts that were chosen, two products each, no sorted copies."""

from __future__ import annotations

import torch
from torch.nn import functional

from glmc.kernels import opaque
from glmc.kernels.linear.cpu import rows as product


def accepts(site) -> str | None:
    return None


@opaque("moe_experts", "(Tensor x, Tensor experts, Tensor weights, Tensor gate_up, Tensor down) -> Tensor")
def _moe_experts(x: torch.Tensor, experts: torch.Tensor, weights: torch.Tensor, gate_up: torch.Tensor, down: torch.Tensor,
                 ) -> torch.Tensor:
    tokens, top = experts.shape
    each = torch.empty(tokens, top, x.shape[1])
    places: dict[int, list[tuple[int, int]]] = {}
    for i, row in enumerate(experts.tolist()):
        for j, expert in enumerate(row):
            places.setdefault(expert, []).append((i, j))
    for expert, where in places.items():
        token, slot = torch.tensor(where).unbind(1)
        gate, up = product(x[token], gate_up[expert], None).chunk(2, dim=-1)
        each[token, slot] = product(functional.silu(gate) * up, down[expert], None).float()
    return (each * weights.unsqueeze(-1)).sum(1).to(x.dtype)


@torch.library.register_fake("glmc::moe_experts")
def _(x: torch.Tensor, experts: torch.Tensor, weights: torch.Tensor, gate_up: torch.Tensor, down: torch.Tensor):
    return torch.empty_like(x)


def run(x: torch.Tensor, experts: torch.Tensor, weights: torch.Tensor, gate_up: torch.Tensor, down: torch.Tensor,
        ) -> torch.Tensor:
    """x [T, H], experts int64 [T, K] below E, weights float32 [T, K], gate_up [E, 2I, H], down [E, H, I] -> [T, H]."""
    return torch.ops.glmc.moe_experts(x, experts, weights, gate_up, down)
