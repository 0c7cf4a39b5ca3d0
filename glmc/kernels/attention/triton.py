"""Attention over the cache, with softmax as the slots come: the products' sums, maxima and weights are float32.

One new token: split over the context; every split keeps its own maximum and sum, a second kernel joins them. A slot that is
not seen is not read. Many new tokens: a block of TOKENS of one head a program; how far each token sees is
found first, so that a program reads the slots that all of its tokens see without asking, and nothing behind the last.

Distances that differ from call to call are counted in EVEN elements, which tells the compiler how they are aligned.
B rows, H query heads over KV key heads (GROUP of them each, QUERIES the rows of the matrix unit that they fill), D channels
(WIDE the power of two above), V of a value (VALUES), L slots in steps of SLOTS.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from glmc.kernels import too_wide
from glmc.kernels.triton import blocks, launch, power

WIDEST = 512
"""Channels of a head that one program still holds."""
_SPLITS, _PROGRAMS = 128, 528
"""The most pieces that a context is split into, and programs that fill a device: four for each of 132 multiprocessors."""


def accepts(site) -> str | None:
    return too_wide("a head", max(site["query"][1][-1], site["value"][1][-1]), WIDEST)


@triton.jit
def tile_at(base, down, across, good, DOWN: tl.constexpr, HAS: tl.constexpr, HOLDS: tl.constexpr):
    """Load base[down * DOWN + across], across [HOLDS] of which HAS are there. good: which of `down` are, None for all."""
    places = base + down[:, None] * DOWN + across[None, :]
    if good is None:
        if HAS == HOLDS:
            loaded = tl.load(places)
        else:
            loaded = tl.load(places, mask=(across < HAS)[None, :], other=0.0)
    else:
        loaded = tl.load(places, mask=good[:, None] & (across < HAS)[None, :], other=0.0)
    return loaded


@triton.jit
def look(q, keys, values, seen, good, top, total, mixed, scale, K_SLOT: tl.constexpr, V_SLOT: tl.constexpr, D: tl.constexpr,
         WIDE: tl.constexpr, V: tl.constexpr, VALUES: tl.constexpr, SLOTS: tl.constexpr):
    """Take SLOTS slots from `keys` and `values` on into the running maximum, sum and mixture.

    seen: which token sees which, and good: which slots are there; None where all do.
    """
    slot = tl.arange(0, SLOTS)
    k = tile_at(keys, slot, tl.arange(0, WIDE), good, K_SLOT, D, WIDE)
    score = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
    if seen is not None:
        score = tl.where(seen, score, float("-inf"))
    higher = tl.maximum(top, tl.max(score, axis=1))
    base = tl.where(higher == float("-inf"), 0.0, higher)  # nothing seen so far
    weight, kept = tl.exp(score - base[:, None]), tl.exp(top - base)
    v = tile_at(values, slot, tl.arange(0, VALUES), good, V_SLOT, V, VALUES)
    mixed = tl.dot(weight.to(v.dtype), v, mixed * kept[:, None], input_precision="ieee")
    return higher, total * kept + tl.sum(weight, axis=1), mixed


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
        far, slot = tl.cast(start, tl.int64), start + tl.arange(0, SLOTS)
        seen = slot < end
        if visible is not None:
            seen = seen & (tl.load(visible + row * slots + slot, mask=seen, other=0) != 0)
        top, total, mixed = look(q, keys + far * K_SLOT, values + far * V_SLOT, seen[None, :], seen, top, total, mixed, scale,
                                 K_SLOT, V_SLOT, D, WIDE, V, VALUES, SLOTS)
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


@triton.jit(do_not_specialize=["slots"])
def reach_kernel(visible, full, end, slots, SLOTS: tl.constexpr):
    """Of one token: the first slot that it does not see, and the slot behind the last that it sees."""
    token = tl.program_id(0).to(tl.int64)
    seen = visible + token * slots
    slot = tl.arange(0, SLOTS)
    first, last = tl.full((SLOTS,), 2147483647, tl.int32), tl.zeros((SLOTS,), tl.int32)
    for start in range(0, slots, SLOTS):
        at = start + slot
        sees = tl.load(seen + at, mask=at < slots, other=0) != 0
        first = tl.minimum(first, tl.where(sees, 2147483647, at))
        last = tl.maximum(last, tl.where(sees, at + 1, 0))
    tl.store(full + token, tl.minimum(tl.min(first, axis=0), slots))
    tl.store(end + token, tl.max(last, axis=0))


@triton.jit(do_not_specialize=["tokens", "slots", "q_row", "q_head", "k_row", "k_head", "v_row", "v_head"])
def prompt_kernel(query, key, value, visible, full, end, y, tokens, slots, q_row, q_head, k_row, k_head, v_row, v_head, scale,
                  Q_TOKEN: tl.constexpr, K_SLOT: tl.constexpr, V_SLOT: tl.constexpr, H: tl.constexpr, GROUP: tl.constexpr,
                  D: tl.constexpr, WIDE: tl.constexpr, V: tl.constexpr, VALUES: tl.constexpr, TOKENS: tl.constexpr,
                  SLOTS: tl.constexpr, TAIL: tl.constexpr, EVEN: tl.constexpr):
    row, head = (tl.program_id(0) // H).to(tl.int64), tl.program_id(0) % H
    token = (tl.num_programs(1) - 1 - tl.program_id(1)) * TOKENS + tl.arange(0, TOKENS)  # those that see most come first
    channel, out, slot, there = tl.arange(0, WIDE), tl.arange(0, VALUES), tl.arange(0, TAIL), token < tokens
    asked = query + (row * q_row + head * q_head) * EVEN + token.to(tl.int64)[:, None] * Q_TOKEN + channel[None, :]
    q = tl.load(asked, mask=there[:, None] & (channel < D)[None, :], other=0.0)
    own = head // GROUP
    keys, values = key + (row * k_row + own * k_head) * EVEN, value + (row * v_row + own * v_head) * EVEN
    top = tl.full((TOKENS,), float("-inf"), tl.float32)
    total, mixed = tl.zeros((TOKENS,), tl.float32), tl.zeros((TOKENS, VALUES), tl.float32)
    sure, last = slots // SLOTS * SLOTS, slots
    if visible is not None:
        sure = tl.min(tl.load(full + row * tokens + token, mask=there, other=slots), axis=0) // SLOTS * SLOTS
        last = tl.max(tl.load(end + row * tokens + token, mask=there, other=0), axis=0)
    for start in range(0, sure, SLOTS):
        far = tl.cast(start, tl.int64)
        top, total, mixed = look(q, keys + far * K_SLOT, values + far * V_SLOT, None, None, top, total, mixed, scale, K_SLOT,
                                 V_SLOT, D, WIDE, V, VALUES, SLOTS)
    for start in range(sure, last, TAIL):
        far, good = tl.cast(start, tl.int64), start + slot < slots
        seen = there[:, None] & good[None, :]
        if visible is not None:
            mask = visible + (row * tokens + token)[:, None] * slots + (start + slot)[None, :]
            seen = tl.load(mask, mask=seen, other=0) != 0
        top, total, mixed = look(q, keys + far * K_SLOT, values + far * V_SLOT, seen, good, top, total, mixed, scale, K_SLOT,
                                 V_SLOT, D, WIDE, V, VALUES, TAIL)
    at = ((row * H + head) * tokens + token)[:, None] * V + out[None, :]
    tl.store(y + at, (mixed / total[:, None]).to(y.dtype.element_ty), mask=there[:, None] & (out < V)[None, :])


def run(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, visible: torch.Tensor | None = None, *, scale: float,
        ) -> torch.Tensor:
    """query [B, H, S, D], key [B, Hkv, L, D], value [B, Hkv, L, V], visible bool [B, 1, S, L] or all -> [B, H, S, V]."""
    query, key, value = (t if t.stride(-1) == 1 else t.contiguous() for t in (query, key, value))
    if visible is not None:
        visible = visible.expand(query.shape[0], 1, query.shape[2], key.shape[2]).contiguous()
    return (_one_token if query.shape[2] == 1 else _prompt)(query, key, value, visible, float(scale))


class Tile(NamedTuple):
    """How a prompt is cut: tokens of a program, slots a step, and where tokens see different ones; warps and stages."""

    tokens: int
    slots: int
    tail: int
    warps: int
    stages: int


def tile(width: int, exact: bool) -> Tile:
    """The cut for heads of `width` bytes; `exact` where the matrix unit is not used."""
    if exact:
        return Tile(32 if width <= 512 else 16, 16, 16, 8, 1)
    if width <= 256:
        return Tile(64, 32, 16, 4, 2) if width <= 128 else Tile(128, 64, 16, 8, 2)
    return Tile(64, 32, 16, 8, 2) if width <= 512 else Tile(32, 16, 16, 8, 2)


def _sizes(query: torch.Tensor, value: torch.Tensor) -> dict[str, int]:
    width, wide = query.shape[3], value.shape[3]
    return {"D": width, "WIDE": max(power(width), 16), "V": wide, "VALUES": max(power(wide), 16)}


def _prompt(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, visible: torch.Tensor | None, scale: float,
            ) -> torch.Tensor:
    (rows, heads, tokens, _), slots, wide = query.shape, key.shape[2], value.shape[3]
    sizes = _sizes(query, value)
    cut = tile(query.element_size() * max(sizes["WIDE"], sizes["VALUES"]), query.dtype is torch.float32)
    apart = [t.stride(dim) for t in (query, key, value) for dim in (0, 1)]
    even = math.gcd(16, *apart)
    full = end = None
    if visible is not None:
        full, end = (torch.empty((rows, tokens), dtype=torch.int32, device=query.device) for _ in range(2))
        launch(reach_kernel, (rows * tokens,), visible, full, end, slots, SLOTS=1024, warps=4)
    y = torch.empty((rows, heads, tokens, wide), dtype=query.dtype, device=query.device)
    launch(prompt_kernel, (rows * heads, blocks(tokens, cut.tokens)), query, key, value, visible, full, end, y, tokens, slots,
           *(distance // even for distance in apart), scale, **sizes, Q_TOKEN=query.stride(2), K_SLOT=key.stride(2),
           V_SLOT=value.stride(2), H=heads, GROUP=heads // key.shape[1], TOKENS=cut.tokens, SLOTS=cut.slots, TAIL=cut.tail,
           EVEN=even, warps=cut.warps, stages=cut.stages)
    return y


def _one_token(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, visible: torch.Tensor | None, scale: float,
               ) -> torch.Tensor:
    rows, heads = query.shape[:2]
    kv, slots, wide = key.shape[1], key.shape[2], value.shape[3]
    exact = query.dtype is torch.float32
    share = blocks(blocks(slots, min(blocks(_PROGRAMS, rows * kv), _SPLITS)), 64) * 64
    splits = blocks(slots, share)
    parts = torch.empty((rows * heads, splits, wide), dtype=torch.float32, device=query.device)
    sums, tops = (torch.empty((rows * heads, splits), dtype=torch.float32, device=query.device) for _ in range(2))
    launch(attention_kernel, (rows * kv, splits), query, key, value, visible, parts, sums, tops, slots, share, splits, scale,
           **_sizes(query, value), Q_ROW=query.stride(0), Q_HEAD=query.stride(1), K_ROW=key.stride(0), K_HEAD=key.stride(1),
           K_SLOT=key.stride(2), V_ROW=value.stride(0), V_HEAD=value.stride(1), V_SLOT=value.stride(2), KV=kv,
           GROUP=heads // kv, QUERIES=max(power(heads // kv), 16), SLOTS=16 if exact else 32, warps=8 if exact else 4,
           stages=2 if exact else 3)
    return joined(parts, sums, tops, _SPLITS, query.dtype).view(rows, heads, 1, wide)
