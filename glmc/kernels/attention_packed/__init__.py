"""The op `attention_packed`, and its plain form: one attention of torch's for each sequence."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch.nn import functional

from glmc.errors import RequestOutOfBounds


def by_sequence(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, ends: torch.Tensor, scale: float) -> torch.Tensor:
    """query, key, value [1, H, P, D] of one dtype, ends int [F + 1] from 0 to P -> [1, H, P, D].

    Where the tensors are on a device, the host waits for `ends`. Raises RequestOutOfBounds where they do not fit.
    """
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
