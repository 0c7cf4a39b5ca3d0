"""The indexer: every slot's score in one kernel, float32 from the product on, then torch's choice of the best.

A program takes SLOTS keys once, for a few tokens of a row: all heads' products, ReLU, and their weighted sum; a slot that a
token does not see scores minus infinity. Products of narrow numbers are exact in float32, so narrow ones are not widened first.

H heads (HEADS the rows of the matrix unit that they fill) of D channels, EACH tokens a program, L slots in tiles of SLOTS.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from glmc.kernels import too_wide
from glmc.kernels.triton import blocks, launch, power, rows_of

MOST_HEADS, WIDEST = 128, 256
"""Heads, and channels of one, that a program still holds."""
_EACH = 8
"""Tokens that share a read of the keys."""


def accepts(site) -> str | None:
    heads, width = site["query"][1][-2:]
    return too_wide("an indexer's head", width, WIDEST) or too_wide("an indexer's row of heads", heads, MOST_HEADS)


@triton.jit(do_not_specialize=["tokens", "slots"])
def lightning_indexer_kernel(query, index, shares, visible, scores, tokens, slots, scale, head_scale, Q_TOKEN: tl.constexpr,
                             K_ROW: tl.constexpr, K_SLOT: tl.constexpr, S_TOKEN: tl.constexpr, H: tl.constexpr,
                             HEADS: tl.constexpr, D: tl.constexpr, WIDE: tl.constexpr, SLOTS: tl.constexpr,
                             EACH: tl.constexpr):
    groups = (tokens + EACH - 1) // EACH
    row, first = (tl.program_id(0) // groups).to(tl.int64), tl.program_id(0) % groups * EACH
    head, channel, slot = tl.arange(0, HEADS), tl.arange(0, WIDE), tl.program_id(1) * SLOTS + tl.arange(0, SLOTS)
    k = tl.load(index + row * K_ROW + slot.to(tl.int64)[None, :] * K_SLOT + channel[:, None],
                mask=(slot < slots)[None, :] & (channel < D)[:, None], other=0.0)
    for number in range(first, tl.minimum(first + EACH, tokens)):
        token = row * tokens + number
        q = tl.load(query + token * Q_TOKEN + head[:, None] * D + channel[None, :],
                    mask=(head < H)[:, None] & (channel < D)[None, :], other=0.0)
        score = tl.dot(q, k, input_precision="ieee") * scale
        share = tl.load(shares + token * S_TOKEN + head, mask=head < H, other=0.0).to(tl.float32) * head_scale
        score = tl.where(score < 0.0, 0.0, score)  # what is not a number stays one
        total = tl.sum(score * share[:, None], axis=0)
        seen = tl.load(visible + token * slots + slot, mask=slot < slots, other=0) != 0
        tl.store(scores + token * slots + slot, tl.where(seen, total, float("-inf")), mask=slot < slots)


def run(query: torch.Tensor, index: torch.Tensor, shares: torch.Tensor, visible: torch.Tensor, *, scale: float,
        head_scale: float, top: int) -> torch.Tensor:
    """query [B, S, H, D], index [B, L, 1, D], shares [B, S, H], visible bool [B, 1, S, L] -> int32 [B, S, top] below L.

    L is at least `top`. Of slots that are not visible any may be among the chosen; the choice comes in no set order.
    """
    rows, tokens, heads, width = query.shape
    slots = index.shape[1]
    asked, asked_row = rows_of(query.flatten(-2))
    shares, shares_row = rows_of(shares)
    index = index if index.stride(-1) == 1 else index.contiguous()
    visible = visible.expand(rows, 1, tokens, slots).contiguous()
    scores = torch.empty((rows, tokens, slots), dtype=torch.float32, device=query.device)
    launch(lightning_indexer_kernel, (rows * blocks(tokens, _EACH), blocks(slots, 64)), asked, index, shares, visible, scores,
           tokens, slots, float(scale), float(head_scale), Q_TOKEN=asked_row, K_ROW=index.stride(0), K_SLOT=index.stride(1),
           S_TOKEN=shares_row, H=heads, HEADS=max(power(heads), 16), D=width, WIDE=max(power(width), 16), SLOTS=64, EACH=_EACH,
           warps=4)
    return scores.topk(top, dim=-1, sorted=False).indices.to(torch.int32)
