"""Rows sorted by expert times each expert's matrix, by `torch_npu.npu_grouped_matmul` with one tensor for all experts."""

from __future__ import annotations

import torch

from glmc.kernels.npu import FLOATS, Contract, Limit, vendor

CONTRACT = Contract("torch_npu.npu_grouped_matmul", "torch_npu 2.1, Atlas A2 and A3",
                    "Ascend/op-plugin docs/context/torch_npu-npu_grouped_matmul.md", FLOATS,
                    {"experts": Limit(least=2, most=1024), "inner": Limit(most=65535)})


def accepts(site) -> str | None:
    return None


def run(x: torch.Tensor, weight: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
    """x [T, I] sorted by expert, weight [E, I, O], ends int [E] (last row of each expert, exclusive) -> [T, O]."""
    return vendor("torch_npu").npu_grouped_matmul([x.contiguous()], [weight], group_list=ends.to(torch.int64), split_item=2,
                                                  group_type=0, group_list_type=0)[0]
