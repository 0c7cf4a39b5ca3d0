"""The indexer in the steps of the CPU's kernel, but for the choice: compilers sort no slots whose number is not known, so a
slot is chosen by its place, which is how many others beat it. Every slot is compared with every other: long contexts are slow.
"""

from __future__ import annotations

import torch

from glmc.kernels import opaque
from glmc.kernels.lightning_indexer.cpu import accepts, totals
from glmc.kernels.moe_route.mlir import places

__all__ = ["accepts", "plain", "run"]


@opaque("best_slots", "(Tensor scores, int top) -> Tensor")
def best_slots(scores: torch.Tensor, top: int) -> torch.Tensor:
    """scores [B, S, L] -> int32 [B, S, top], in no set order; of equal scores torch's own choice."""
    return scores.topk(top, dim=-1).indices.to(torch.int32)


@torch.library.register_fake("glmc::best_slots")
def _(scores: torch.Tensor, top: int) -> torch.Tensor:
    return scores.new_empty((*scores.shape[:2], top), dtype=torch.int32)


def plain(scores: torch.Tensor, top: int) -> torch.Tensor:
    """`best_slots` in steps that every importer takes; of equal scores the first."""
    slots, order = torch.arange(scores.shape[-1]), torch.arange(top).unsqueeze(-1)
    return ((places(scores).unsqueeze(-2) == order).to(torch.int64) * slots).sum(-1).to(torch.int32)


def run(query: torch.Tensor, index: torch.Tensor, shares: torch.Tensor, visible: torch.Tensor, *, scale: float,
        head_scale: float, top: int) -> torch.Tensor:
    """query [B, S, H, D], index [B, L, 1, D], shares [B, S, H], visible bool [B, 1, S, L] -> int32 [B, S, top] below L.

    L is at least `top`. Of slots that are not visible any may follow the visible ones.
    """
    return torch.ops.glmc.best_slots(totals(query, index, shares, visible, scale, head_scale), top)
