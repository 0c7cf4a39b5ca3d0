"""Attention inside each of several sequences that lie packed behind each other, as vision towers take images."""

from __future__ import annotations

import torch

from glmc.kernels import opaque
from glmc.kernels.attention_packed import by_sequence


def accepts(site) -> str | None:
    return None


opaque("attention_packed", "(Tensor query, Tensor key, Tensor value, Tensor ends, float scale) -> Tensor")(by_sequence)


@torch.library.impl("glmc::attention_packed", "Meta")
def _(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, ends: torch.Tensor, scale: float) -> torch.Tensor:
    return query.new_empty(query.shape)


def run(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, ends: torch.Tensor, scale: float) -> torch.Tensor:
    """query, key, value [1, H, P, D] of one dtype, ends int [F + 1] from 0 to P -> [1, H, P, D].

    Row p sees the rows of its own sequence, ends[i] <= p < ends[i + 1]. Raises RequestOutOfBounds where ends do not fit.
    """
    return torch.ops.glmc.attention_packed(query, key, value, ends, scale)
