"""Sigmoid routing by `torch_npu.npu_moe_gating_top_k`: groups by their two best, bias for the choice, weights normalised."""

from __future__ import annotations

import torch

from glmc.kernels.npu import FLOATS, Contract, Limit, vendor

CONTRACT = Contract("torch_npu.npu_moe_gating_top_k", "torch_npu 2.1, Atlas A2 and A3",
                    "Ascend/op-plugin docs/context/torch_npu-npu_moe_gating_top_k.md", FLOATS,
                    {"experts": Limit(most=2048), "group": Limit(least=3), "padded": Limit(most=2048)})


def accepts(site) -> str | None:
    if not site["normalise"]:
        return f"{CONTRACT.op} always normalises the weights"
    experts, groups = site["logits"][1][-1], site["groups"]
    each = experts // groups
    return CONTRACT.refusal(site["logits"][0], site["bias"][0], experts=experts, group=each,
                            padded=(each + 31) // 32 * 32 * groups)


def run(logits: torch.Tensor, bias: torch.Tensor, *, groups: int, kept: int, top: int, normalise: bool, scale: float,
        ) -> tuple[torch.Tensor, torch.Tensor]:
    """logits float32 [T, E], bias float32 [E] -> weights float32 [T, top] and experts int64 [T, top], in no set order."""
    weights, experts, _ = vendor("torch_npu").npu_moe_gating_top_k(
        logits, top, bias=bias, k_group=kept, group_count=groups, group_select_mode=1, renorm=0, norm_type=1, out_flag=False,
        routed_scaling_factor=scale, eps=1e-20)
    return weights, experts.to(torch.int64)
