"""A matrix times few rows, read once at memory speed: multiply and sum in float32, which the compiler vectorises."""

from __future__ import annotations

import torch
from torch.nn import functional


def accepts(site) -> str | None:
    return None


def run(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """x [..., I], weight [O, I], bias [O] or None -> [..., O]; one row goes the vector way, more the matrix way."""
    rows = x.numel() // x.shape[-1]
    if not (isinstance(rows, int) and rows == 1):
        return functional.linear(x, weight, bias)
    out = (weight.float() * x.reshape(1, -1).float()).sum(-1)
    if bias is not None:
        out = out + bias.float()
    return out.to(x.dtype).reshape(*x.shape[:-1], -1)
