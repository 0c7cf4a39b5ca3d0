"""A matrix times rows of activations, each weight read once.

One row: multiply and sum in float32, which the compiler turns into loops at memory speed.
Many rows in bfloat16 on a CPU without bfloat16 products: the library's path there is 20 times slower than float32, so the
matrix is widened block by block into a small scratch that stays in the cache, and multiplied in float32.
Otherwise the library's product.
"""

from __future__ import annotations

import torch
from torch.nn import functional

from glmc.kernels import opaque

_BLOCK = 512  # output rows widened at a time; measured flat from 256 to 1024


def accepts(site) -> str | None:
    return None


@opaque("linear_rows", "(Tensor x, Tensor weight, Tensor? bias) -> Tensor")
def rows(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """x [..., I], weight [O, I], bias [O] or None -> [..., O], outside compiled code."""
    if x.dtype != torch.bfloat16 or torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return functional.linear(x, weight, bias)
    wide_rows = x.reshape(-1, x.shape[-1]).float()
    out = x.new_empty(wide_rows.shape[0], weight.shape[0])
    scratch = torch.empty(min(_BLOCK, weight.shape[0]), weight.shape[1])
    for start in range(0, weight.shape[0], _BLOCK):
        block = weight[start:start + _BLOCK]
        wide = scratch[: block.shape[0]].copy_(block)
        if bias is None:
            out[:, start:start + _BLOCK] = wide_rows @ wide.t()
        else:
            out[:, start:start + _BLOCK] = torch.addmm(bias[start:start + _BLOCK].float(), wide_rows, wide.t())
    return out.reshape(*x.shape[:-1], weight.shape[0])


@torch.library.register_fake("glmc::linear_rows")
def _(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])


def run(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """x [..., I], weight [O, I], bias [O] or None -> [..., O] in x's dtype."""
    count = x.numel() // x.shape[-1]
    if not (isinstance(count, int) and count == 1):
        if x.dtype == torch.bfloat16:
            return torch.ops.glmc.linear_rows(x, weight, bias)
        return functional.linear(x, weight, bias)
    out = (weight.float() * x.reshape(1, -1).float()).sum(-1)
    if bias is not None:
        out = out + bias.float()
    return out.to(x.dtype).reshape(*x.shape[:-1], -1)
