"""Latent attention of one new token over the compressed rows, which every head's query meets as they are (closed).

    asked = q_plain times kv_b's key rows,   mixed = softmax(asked rows^T + ...) rows,   y = mixed times kv_b's value rows

A slot's row is read once for all heads of a tile: it is their key, and turned over their value. With `chosen` the places of
the list are walked instead of the slots; of places that name one slot one counts. asked and mixed are rounded to the model's
dtype, as the opened keys and values of the replaced steps are, so that the matrix unit takes them; sums are float32.

Many new tokens are torch's: rows are opened, which they share (a head's slot costs N + E + V products, where closed it is
2 R + E), and scaled dot-product attention takes the choice as a mask, since no two tokens choose the same rows. So a prompt
costs all of its slots, chosen or not, as it does in the steps that are replaced.

B rows, H heads in tiles of HEADS, N plain channels, E turned ones, rows of R, V of a value, L slots in steps of SLOTS.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from glmc.kernels import too_wide
from glmc.kernels.attention.triton import joined
from glmc.kernels.latent_attention.cpu import allowed, opened
from glmc.kernels.triton import blocks, launch, power

WIDEST, MOST_TURNED = 512, 128
"""Channels of a compressed row, and turned ones, that one program still holds."""
_HEADS = 16
"""Heads that share a read of a row; the tiles of a row's heads are neighbours, which find it in the cache of the device."""
_SPLITS = 128
"""The most pieces that a context is split into."""
_PROGRAMS = 512
"""Programs that keep a GPU busy: more splits than that takes only make more parts to join."""


def accepts(site) -> str | None:
    return (too_wide("a compressed row", site["latent"][1][-1], WIDEST)
            or too_wide("the turned part of a head", site["turned"][1][-1], MOST_TURNED))


@triton.jit(do_not_specialize=["rows"])
def head_product_kernel(x, matrix, y, rows, X_ROW: tl.constexpr, X_HEAD: tl.constexpr, M_HEAD: tl.constexpr,
                        M_IN: tl.constexpr, M_OUT: tl.constexpr, H: tl.constexpr, IN: tl.constexpr, OUT: tl.constexpr,
                        ROWS: tl.constexpr, STEP: tl.constexpr, WIDE: tl.constexpr):
    """y [B, H, OUT] = x [B, H, IN] times a matrix [IN, OUT] of each head."""
    head, out = tl.program_id(0), tl.program_id(1) * WIDE + tl.arange(0, WIDE)
    row = (tl.program_id(2) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    total = tl.zeros((ROWS, WIDE), tl.float32)
    for start in range(0, IN, STEP):
        channel = start + tl.arange(0, STEP)
        given = tl.load(x + row[:, None] * X_ROW + head * X_HEAD + channel[None, :],
                        mask=(row < rows)[:, None] & (channel < IN)[None, :], other=0.0)
        part = tl.load(matrix + head * M_HEAD + channel[:, None] * M_IN + out[None, :] * M_OUT,
                       mask=(channel < IN)[:, None] & (out < OUT)[None, :], other=0.0)
        total += tl.dot(given, part, input_precision="ieee")
    at = y + (row[:, None] * H + head) * OUT + out[None, :]
    tl.store(at, total.to(y.dtype.element_ty), mask=(row < rows)[:, None] & (out < OUT)[None, :])


@triton.jit(do_not_specialize=["slots", "places"])
def claim_kernel(chosen, owner, slots, places, EACH: tl.constexpr):
    """Of the places that name a slot one becomes its owner; slots that no place names are not written."""
    row, place = tl.program_id(0).to(tl.int64), tl.program_id(1) * EACH + tl.arange(0, EACH)
    slot = tl.load(chosen + row * places + place, mask=place < places, other=0)
    tl.store(owner + row * slots + slot, place, mask=place < places)


@triton.jit(do_not_specialize=["slots", "places", "share", "splits"])
def latent_attention_kernel(asked, q_turned, latent, turned, visible, chosen, owner, parts, sums, tops, slots, places, share,
                            splits, scale, T_ROW: tl.constexpr, T_HEAD: tl.constexpr, L_ROW: tl.constexpr,
                            L_SLOT: tl.constexpr, E_ROW: tl.constexpr, E_SLOT: tl.constexpr, H: tl.constexpr,
                            HEADS: tl.constexpr, R: tl.constexpr, WIDE: tl.constexpr, E: tl.constexpr, TURNED: tl.constexpr,
                            SLOTS: tl.constexpr, LOOK: tl.constexpr):
    tiles = (H + HEADS - 1) // HEADS
    row, split = (tl.program_id(0) // tiles).to(tl.int64), tl.program_id(1)
    head = tl.program_id(0) % tiles * HEADS + tl.arange(0, HEADS)
    channel, lane = tl.arange(0, WIDE), tl.arange(0, TURNED)
    q = tl.load(asked + (row * H + head)[:, None] * R + channel[None, :], mask=(head < H)[:, None] & (channel < R)[None, :],
                other=0.0)
    t = tl.load(q_turned + row * T_ROW + head[:, None] * T_HEAD + lane[None, :],
                mask=(head < H)[:, None] & (lane < E)[None, :], other=0.0)
    top = tl.full((HEADS,), float("-inf"), tl.float32)
    total, mixed = tl.zeros((HEADS,), tl.float32), tl.zeros((HEADS, WIDE), tl.float32)
    first, end = split * share, tl.minimum((split + 1) * share, places)
    if chosen is None:  # up to the last slot that is seen: a bucket is up to twice as long
        last = first
        for start in range(first, end, LOOK):
            slot = start + tl.arange(0, LOOK)
            there = tl.load(visible + row * slots + slot, mask=slot < end, other=0) != 0
            last = tl.maximum(last, tl.max(tl.where(there, slot + 1, 0), axis=0))
        end = last
    for start in range(first, end, SLOTS):
        place = start + tl.arange(0, SLOTS)
        seen, slot = place < end, place
        if chosen is not None:
            slot = tl.load(chosen + row * places + place, mask=seen, other=0)
            seen = seen & (tl.load(owner + row * slots + slot, mask=seen, other=-1) == place)
        seen = seen & (tl.load(visible + row * slots + slot, mask=seen, other=0) != 0)
        far = slot.to(tl.int64)
        k = tl.load(latent + row * L_ROW + far[None, :] * L_SLOT + channel[:, None],
                    mask=seen[None, :] & (channel < R)[:, None], other=0.0)
        e = tl.load(turned + row * E_ROW + far[None, :] * E_SLOT + lane[:, None], mask=seen[None, :] & (lane < E)[:, None],
                    other=0.0)
        score = (tl.dot(q, k, input_precision="ieee") + tl.dot(t, e, input_precision="ieee")) * scale
        score = tl.where(seen[None, :], score, float("-inf"))
        higher = tl.maximum(top, tl.max(score, axis=1))
        level = tl.where(higher == float("-inf"), 0.0, higher)  # nothing was seen yet
        weight = tl.exp(score - level[:, None])
        kept = tl.exp(top - level)
        mixed = mixed * kept[:, None] + tl.dot(weight.to(k.dtype), tl.trans(k), input_precision="ieee")
        total = total * kept + tl.sum(weight, axis=1)
        top = higher
    at = (row * H + head) * splits + split
    tl.store(sums + at, total, mask=head < H)
    tl.store(tops + at, top, mask=head < H)
    tl.store(parts + at[:, None] * R + channel[None, :], mixed, mask=(head < H)[:, None] & (channel < R)[None, :])


def _head_product(x: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    """x [B, H, IN] and a matrix [H, IN, OUT] of any strides -> [B, H, OUT]."""
    (rows, heads, width), out = x.shape, matrix.shape[-1]
    y = torch.empty((rows, heads, out), dtype=x.dtype, device=x.device)
    launch(head_product_kernel, (heads, blocks(out, 64), blocks(rows, 16)), x, matrix, y, rows, X_ROW=x.stride(0),
           X_HEAD=x.stride(1), M_HEAD=matrix.stride(0), M_IN=matrix.stride(1), M_OUT=matrix.stride(2), H=heads, IN=width,
           OUT=out, ROWS=16, STEP=64, WIDE=64, warps=4, stages=3)
    return y


def _owner(chosen: torch.Tensor, slots: int) -> torch.Tensor:
    """chosen int32 [B, T] -> int32 [B, L]: the place that a slot which was chosen counts at; anything at the others."""
    rows, places = chosen.shape
    owner = torch.empty((rows, slots), dtype=torch.int32, device=chosen.device)
    launch(claim_kernel, (rows, blocks(places, 256)), chosen, owner, slots, places, EACH=256, warps=4)
    return owner


def run(q_plain: torch.Tensor, q_turned: torch.Tensor, latent: torch.Tensor, turned: torch.Tensor, kv_b: torch.Tensor,
        visible: torch.Tensor, chosen: torch.Tensor | None = None, *, scale: float) -> torch.Tensor:
    """q_plain [B, S, H, N], q_turned [B, S, H, E], latent [B, L, 1, R], turned [B, L, 1, E], kv_b [H (N + V), R], visible
    bool [B, 1, S, L], chosen int32 [B, S, T] below L -> [B, H, S, V]."""
    rows, tokens, heads, plain = q_plain.shape
    slots, rank, wide = latent.shape[1], latent.shape[-1], q_turned.shape[-1]
    if tokens > 1:
        return opened(q_plain, q_turned, latent, turned, kv_b, allowed(visible, chosen, slots), scale)
    given = (q_plain, q_turned, latent, turned)
    q_plain, q_turned, latent, turned = (t if t.stride(-1) == 1 else t.contiguous() for t in given)
    visible = visible.expand(rows, 1, 1, slots).contiguous()
    owner = None
    if chosen is not None:
        chosen = chosen.squeeze(1).contiguous()
        owner = _owner(chosen, slots)
    places = slots if chosen is None else chosen.shape[-1]
    of_head = kv_b.view(heads, kv_b.shape[0] // heads, rank)
    asked = _head_product(q_plain.squeeze(1), of_head[:, :plain])
    tiles = blocks(heads, _HEADS)
    splits = max(min(blocks(places, 64), blocks(_PROGRAMS, rows * tiles), _SPLITS), 1)
    share = blocks(blocks(places, splits), 64) * 64
    parts = torch.empty((rows * heads, splits, rank), dtype=torch.float32, device=latent.device)
    sums, tops = (torch.empty((rows * heads, splits), dtype=torch.float32, device=latent.device) for _ in range(2))
    launch(latent_attention_kernel, (rows * tiles, splits), asked, q_turned, latent, turned, visible, chosen, owner, parts,
           sums, tops, slots, places, share, splits, float(scale), T_ROW=q_turned.stride(0), T_HEAD=q_turned.stride(2),
           L_ROW=latent.stride(0), L_SLOT=latent.stride(1), E_ROW=turned.stride(0), E_SLOT=turned.stride(1), H=heads,
           HEADS=_HEADS, R=rank, WIDE=max(power(rank), 16), E=wide, TURNED=max(power(wide), 16),
           SLOTS=16 if latent.element_size() > 2 else 32, LOOK=1024, warps=4, stages=1)
    mixed = joined(parts, sums, tops, _SPLITS, q_plain.dtype).view(rows, heads, rank)
    return _head_product(mixed, of_head[:, plain:].transpose(1, 2)).unsqueeze(2)
