"""Attention inside each of several sequences that lie packed behind each other, as vision towers take images."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch.nn import functional

from glmc.errors import RequestOutOfBounds
from glmc.kernels import opaque


def accepts(site) -> str | None:
    return None


@opaque("attention_packed", "(Tensor query, Tensor key, Tensor value, Tensor ends, float scale) -> Tensor")
def _attention_packed(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, ends: torch.Tensor, scale: float):
    bounds, rows = ends.tolist(), query.shape[2]
    if not bounds or bounds[0] != 0 or bounds[-1] != rows or any(a > b for a, b in pairwise(bounds)):
        raise RequestOutOfBounds("the bounds of the packed sequences do not fit", field="ends",
                                 expected=f"from 0 upwards to {rows}, the number of rows", found=bounds)
    out = query.new_empty(query.shape)
    for start, end in pairwise(bounds):
        if end > start:
            own = slice(start, end)
            out[:, :, own] = functional.scaled_dot_product_attention(
                query[:, :, own], key[:, :, own], value[:, :, own], scale=scale)
    return out


@torch.library.impl("glmc::attention_packed", "Meta")
def _(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, ends: torch.Tensor, scale: float) -> torch.Tensor:
    return query.new_empty(query.shape)


def run(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, ends: torch.Tensor, scale: float) -> torch.Tensor:
    """query, key, value [1, H, P, D] of one dtype, ends int [F + 1] from 0 to P -> [1, H, P, D].

    Row p sees the rows of its own sequence, ends[i] <= p < ends[i + 1]. Raises RequestOutOfBounds where ends do not fit.
    """
    return torch.ops.glmc.attention_packed(query, key, value, ends, scale)
