"""RMS norm by `torch_npu.npu_rms_norm`: a weight of x's dtype, float32 inside."""

from __future__ import annotations

import torch

from glmc.kernels.npu import FLOATS, Contract, vendor

CONTRACT = Contract("torch_npu.npu_rms_norm", "torch_npu 2.1", "torch_npu 2.14.0 docstring", FLOATS)


def accepts(site) -> str | None:
    if "weight" not in site:
        return f"{CONTRACT.op} needs a weight"
    return CONTRACT.refusal(site["x"][0], site["weight"][0])


def run(x: torch.Tensor, weight: torch.Tensor | None = None, *, eps: float) -> torch.Tensor:
    """x [..., H], weight [H] -> [..., H] in x's dtype."""
    return vendor("torch_npu").npu_rms_norm(x, weight, epsilon=eps)[0]
