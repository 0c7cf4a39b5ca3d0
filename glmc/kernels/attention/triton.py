"""Attention of one new token over the cache, split over the context: every split keeps its own maximum and sum, a second
kernel joins them. A block of slots of which nobody sees any is not read. Many new tokens: torch's own kernel.

B rows, H query heads over KV key heads (GROUP of them each, QUERIES the rows of the matrix unit that they fill), D channels,
V of a value, L slots in steps of SLOTS.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch.nn import functional

from glmc.kernels import too_wide
from glmc.kernels.triton import blocks, launch, power

WIDEST = 512
"""Channels of a head that one program still holds."""
_SPLITS = 64
"""The most pieces that a context is split into."""


def accepts(site) -> str | None:
    return too_wide("a head", max(site["query"][1][-1], site["value"][1][-1]), WIDEST)


@triton.jit(do_not_specialize=["slots", "share", "splits"])
def attention_kernel(query, key, value, visible, parts, sums, tops, slots, share, splits, scale, Q_ROW: tl.constexpr,
                     Q_HEAD: tl.constexpr, K_ROW: tl.constexpr, K_HEAD: tl.constexpr, K_SLOT: tl.constexpr,
                     V_ROW: tl.constexpr, V_HEAD: tl.constexpr, V_SLOT: tl.constexpr, KV: tl.constexpr, GROUP: tl.constexpr,
                     QUERIES: tl.constexpr, D: tl.constexpr, WIDE: tl.constexpr, V: tl.constexpr, VALUES: tl.constexpr,
                     SLOTS: tl.constexpr):
    row, head, split = (tl.program_id(0) // KV).to(tl.int64), tl.program_id(0) % KV, tl.program_id(1)
    member, channel, out = tl.arange(0, QUERIES), tl.arange(0, WIDE), tl.arange(0, VALUES)
    asked = query + row * Q_ROW + (head * GROUP + member)[:, None] * Q_HEAD + channel[None, :]
    q = tl.load(asked, mask=(member < GROUP)[:, None] & (channel < D)[None, :], other=0.0)
    keys, values = key + row * K_ROW + head * K_HEAD, value + row * V_ROW + head * V_HEAD
    top = tl.full((QUERIES,), float("-inf"), tl.float32)
    total, mixed = tl.zeros((QUERIES,), tl.float32), tl.zeros((QUERIES, VALUES), tl.float32)
    end = tl.minimum((split + 1) * share, slots)
    for start in range(split * share, end, SLOTS):
        slot = start + tl.arange(0, SLOTS)
        seen = slot < end
        if visible is not None:
            seen = seen & (tl.load(visible + row * slots + slot, mask=seen, other=0) != 0)
        if tl.max(seen.to(tl.int32), axis=0) > 0:
            far = slot.to(tl.int64)
            k = tl.load(keys + far[None, :] * K_SLOT + channel[:, None], mask=seen[None, :] & (channel < D)[:, None], other=0.0)
            score = tl.dot(q, k, input_precision="ieee") * scale
            score = tl.where(seen[None, :], score, float("-inf"))
            higher = tl.maximum(top, tl.max(score, axis=1))
            weight = tl.exp(score - higher[:, None])
            kept = tl.exp(top - higher)
            v = tl.load(values + far[:, None] * V_SLOT + out[None, :], mask=seen[:, None] & (out < V)[None, :], other=0.0)
            mixed = mixed * kept[:, None] + tl.dot(weight.to(v.dtype), v, input_precision="ieee")
            total = total * kept + tl.sum(weight, axis=1)
            top = higher
    at = ((row * KV + head) * GROUP + member) * splits + split
    tl.store(sums + at, total, mask=member < GROUP)
    tl.store(tops + at, top, mask=member < GROUP)
    tl.store(parts + at[:, None] * V + out[None, :], mixed, mask=(member < GROUP)[:, None] & (out < V)[None, :])


@triton.jit(do_not_specialize=["splits"])
def join_kernel(parts, sums, tops, y, splits, V: tl.constexpr, VALUES: tl.constexpr, MOST: tl.constexpr):
    head = tl.program_id(0).to(tl.int64)
    split, out = tl.arange(0, MOST), tl.program_id(1) * VALUES + tl.arange(0, VALUES)
    there = split < splits
    top = tl.load(tops + head * splits + split, mask=there, other=float("-inf"))
    weight = tl.where(there, tl.exp(top - tl.max(top, axis=0)), 0.0)
    total = tl.sum(weight * tl.load(sums + head * splits + split, mask=there, other=0.0), axis=0)
    at = (head * splits + split)[:, None] * V + out[None, :]
    part = tl.load(parts + at, mask=there[:, None] & (out < V)[None, :], other=0.0)
    mixed = tl.sum(part * weight[:, None], axis=0) / total
    tl.store(y + head * V + out, mixed.to(y.dtype.element_ty), mask=out < V)


def joined(parts: torch.Tensor, sums: torch.Tensor, tops: torch.Tensor, most: int, dtype: torch.dtype) -> torch.Tensor:
    """parts float32 [N, SPLITS, V] with their sums and maxima [N, SPLITS] -> [N, V]. most: a power of two, no fewer splits."""
    count, splits, wide = parts.shape
    y = torch.empty((count, wide), dtype=dtype, device=parts.device)
    launch(join_kernel, (count, blocks(wide, 64)), parts, sums, tops, y, splits, V=wide, VALUES=64, MOST=most, warps=4)
    return y


def run(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, visible: torch.Tensor | None = None, *, scale: float,
        ) -> torch.Tensor:
    """query [B, H, S, D], key [B, Hkv, L, D], value [B, Hkv, L, V], visible bool [B, 1, S, L] or all -> [B, H, S, V]."""
    rows, heads, tokens, width = query.shape
    if tokens > 1:
        return functional.scaled_dot_product_attention(query, key, value, attn_mask=visible, scale=scale, enable_gqa=True)
    kv, slots, wide = key.shape[1], key.shape[2], value.shape[-1]
    query, key, value = (t if t.stride(-1) == 1 else t.contiguous() for t in (query, key, value))
    if visible is not None:
        visible = visible.expand(rows, 1, 1, slots).contiguous()
    splits = min(max(blocks(slots, 256), 1), _SPLITS)
    share = blocks(blocks(slots, splits), 64) * 64
    parts = torch.empty((rows * heads, splits, wide), dtype=torch.float32, device=query.device)
    sums, tops = (torch.empty((rows * heads, splits), dtype=torch.float32, device=query.device) for _ in range(2))
    launch(attention_kernel, (rows * kv, splits), query, key, value, visible, parts, sums, tops, slots, share, splits,
           float(scale), Q_ROW=query.stride(0), Q_HEAD=query.stride(1), K_ROW=key.stride(0), K_HEAD=key.stride(1),
           K_SLOT=key.stride(2), V_ROW=value.stride(0), V_HEAD=value.stride(1), V_SLOT=value.stride(2), KV=kv,
           GROUP=heads // kv, QUERIES=max(power(heads // kv), 16), D=width, WIDE=max(power(width), 16), V=wide,
           VALUES=max(power(wide), 16), SLOTS=64, warps=4)
    return joined(parts, sums, tops, _SPLITS, query.dtype).view(rows, heads, 1, wide)
