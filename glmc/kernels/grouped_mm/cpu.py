"""Rows sorted by expert times each expert's matrix: only experts that have rows are touched."""

from __future__ import annotations

import torch

from glmc.kernels import opaque


def accepts(site) -> str | None:
    return None


@opaque("grouped_mm", "(Tensor x, Tensor weight, Tensor ends) -> Tensor")
def _grouped_mm(x: torch.Tensor, weight: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
    out = x.new_empty(x.shape[0], weight.shape[2])
    start = 0
    for expert, end in enumerate(ends.tolist()):
        if end > start:
            torch.mm(x[start:end], weight[expert], out=out[start:end])
            start = end
    return out


@torch.library.register_fake("glmc::grouped_mm")
def _(x: torch.Tensor, weight: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
    return x.new_empty(x.shape[0], weight.shape[2])


def run(x: torch.Tensor, weight: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
    """x [T, I] sorted by expert, weight [E, I, O], ends int [E] (last row of each expert, exclusive) -> [T, O]."""
    return torch.ops.glmc.grouped_mm(x, weight, ends)
