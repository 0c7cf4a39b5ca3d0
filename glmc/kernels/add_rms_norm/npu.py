"""Residual add and RMS norm by `torch_npu.npu_add_rms_norm`."""

from __future__ import annotations

import torch

from glmc.kernels import differ
from glmc.kernels.npu import FLOATS, Contract, vendor

CONTRACT = Contract("torch_npu.npu_add_rms_norm", "torch_npu 2.1", "torch_npu 2.14.0 docstring", FLOATS)


def accepts(site) -> str | None:
    return differ(site, "residual", "x") or CONTRACT.refusal(*(site[name][0] for name in ("residual", "x", "weight")))


def run(residual: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, *, eps: float) -> tuple[torch.Tensor, ...]:
    """residual, x [..., H], weight [H] -> (normed, sum), each [..., H]."""
    normed, _, total = vendor("torch_npu").npu_add_rms_norm(residual, x, weight, epsilon=eps)
    return normed, total
