"""RoPE: several heads of one token a program; every load of a table is bounded by its lanes, not by the head's width.

T tokens, H heads of D channels (HEADS of them a program, WIDE the power of two above D), N lanes. A head is one tile: a channel
is multiplied by its cosine, the other channel of its lane by its sine; where nothing turns they are 1 and 0. Token t reads row
t modulo the table's rows. With AXES the table has a row for each axis, and ONE and TWO hold a bit for each lane of the axes 1
and 2.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from glmc.kernels import too_wide
from glmc.kernels.triton import blocks, launch, power, warps_for

WIDEST = 1024
"""Channels of a head that one program still holds."""


def accepts(site) -> str | None:
    return too_wide("a head", site["x"][1][-1], WIDEST)


@triton.jit
def axis_of(lane, ONE: tl.constexpr, TWO: tl.constexpr, LANES: tl.constexpr):
    """The axis of each lane, 0 to 2, from the bits of the axis map."""
    axis = lane * 0
    for word in tl.static_range((LANES + 15) // 16):
        bit = lane % 16
        here = (((ONE >> (16 * word)) & 65535) >> bit) % 2 + 2 * ((((TWO >> (16 * word)) & 65535) >> bit) % 2)
        axis += tl.where(lane // 16 == word, here, 0)
    return axis


@triton.jit
def table_at(cos, sin, token, table_rows, lane, turned, N: tl.constexpr, WIDE: tl.constexpr, AXES: tl.constexpr,
             ONE: tl.constexpr, TWO: tl.constexpr):
    """A token's cosine and sine of each lane in float32, 1 and 0 where it is not `turned`."""
    at = (token % table_rows) * N + lane
    if AXES:
        at += axis_of(lane, ONE, TWO, WIDE) * table_rows * N
    return tl.load(cos + at, mask=turned, other=1.0).to(tl.float32), tl.load(sin + at, mask=turned, other=0.0).to(tl.float32)


@triton.jit
def angles(cos, sin, token, table_rows, N: tl.constexpr, WIDE: tl.constexpr, READ: tl.constexpr, AXES: tl.constexpr,
           ONE: tl.constexpr, TWO: tl.constexpr):
    """What each channel of a token's heads is multiplied by, and its partner, [1, WIDE] in float32: 1 and 0 where it passes."""
    if READ == -1:
        lane = tl.arange(0, WIDE // 2)[None, :]
        c, s = table_at(cos, sin, token, table_rows, lane, lane < N, N, WIDE, AXES, ONE, TWO)
        c, s = tl.reshape(tl.join(c, c), (1, WIDE)), tl.reshape(tl.join(-s, s), (1, WIDE))
    else:
        channel = tl.arange(0, WIDE)[None, :]
        lane = tl.where(channel < N, channel, channel - N)
        c, s = table_at(cos, sin, token, table_rows, lane, channel < 2 * N, N, WIDE, AXES, ONE, TWO)
        s = tl.where(channel < N, -s, s)
    return c, s


@triton.jit
def partners(own, base, inside, N: tl.constexpr, WIDE: tl.constexpr, ROWS: tl.constexpr, READ: tl.constexpr):
    """The other channel of each channel's lane, for a tile `own` [ROWS, WIDE] that was loaded at `base`."""
    if READ == -1:
        first, second = tl.split(tl.reshape(own, (ROWS, WIDE // 2, 2)))
        other = tl.reshape(tl.join(second, first), (ROWS, WIDE))
    else:
        channel = tl.arange(0, WIDE)[None, :]
        across = tl.where(channel < N, channel + N, channel - N)
        other = tl.load(base + across, mask=inside & (channel < 2 * N), other=0.0).to(tl.float32)
    return other


@triton.jit
def heads_at(source, inside, D: tl.constexpr, N: tl.constexpr, WIDE: tl.constexpr, HEADS: tl.constexpr, READ: tl.constexpr):
    """The heads at `source` and the other channel of each channel's lane, [HEADS, WIDE] each in float32."""
    channel = tl.arange(0, WIDE)[None, :]
    own = tl.load(source + channel, mask=inside & (channel < D), other=0.0).to(tl.float32)
    return own, partners(own, source, inside, N, WIDE, HEADS, READ)


@triton.jit
def put(own, other, target, inside, cos, sin, weight, bias, eps, D: tl.constexpr, N: tl.constexpr, WIDE: tl.constexpr,
        HEADS: tl.constexpr, READ: tl.constexpr, WRITE: tl.constexpr):
    """Normalise heads (with a weight), add a bias (with one), turn their lanes and store at `target`."""
    channel = tl.arange(0, WIDE)[None, :]
    good = inside & (channel < D)
    if weight is not None:
        scale = tl.rsqrt(tl.sum(own * own, axis=1, keep_dims=True) / D + eps)
        one, two = heads_at(weight, True, D, N, WIDE, 1, READ)
        own, other = own * scale * one, other * scale * two
    if bias is not None:
        one, two = heads_at(bias, True, D, N, WIDE, 1, READ)
        own, other = own + one, other + two
    made = (own * cos + other * sin).to(target.dtype.element_ty)
    if READ == WRITE:
        tl.store(target + channel, made, mask=good)
    elif READ == -1:
        first, second = tl.split(tl.reshape(made, (HEADS, WIDE // 2, 2)))
        lane = tl.arange(0, WIDE // 2)[None, :]
        tl.store(target + lane, first, mask=inside & (lane < N))
        tl.store(target + N + lane, second, mask=inside & (lane < N))
        if D > 2 * N:
            tl.store(target + channel, made, mask=good & (channel >= 2 * N))
    else:
        lane = tl.where(channel < N, channel, channel - N)
        place = tl.where(channel < 2 * N, 2 * lane + (channel >= N).to(tl.int32), channel)
        tl.store(target + place, made, mask=good)


@triton.jit(do_not_specialize=["table_rows"])
def rope_kernel(x, cos, sin, weight, y, table_rows, eps, TOKEN: tl.constexpr, HEAD: tl.constexpr, H: tl.constexpr,
                D: tl.constexpr, N: tl.constexpr, WIDE: tl.constexpr, HEADS: tl.constexpr, READ: tl.constexpr,
                WRITE: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)[:, None]
    c, s = angles(cos, sin, token, table_rows, N, WIDE, READ, False, 0, 0)
    own, other = heads_at(x + token * TOKEN + head * HEAD, head < H, D, N, WIDE, HEADS, READ)
    put(own, other, y + token * (H * D) + head * D, head < H, c, s, weight, None, eps, D, N, WIDE, HEADS, READ, WRITE)


def tokens_of(x: torch.Tensor) -> tuple[torch.Tensor, int, int]:
    """x [..., H, D] as tokens [T, H, D], the distance between tokens and that between heads; a copy where need be."""
    flat = x.reshape(-1, *x.shape[-2:])
    if flat.stride(2) != 1:
        flat = flat.contiguous()
    tokens, heads, width = flat.shape
    return (flat, int(flat.stride(0)) if tokens > 1 else heads * width, int(flat.stride(1)) if heads > 1 else width)


def table_of(x: torch.Tensor, lead: tuple[int, ...], axes: bool = False) -> torch.Tensor:
    """cos or sin [..., n] (or [3, ..., n]) whose row t modulo its rows is that of token t of `lead`, contiguous.

    A table that has one row for all rows of a batch stays as it is; any other that only broadcasts is written out.
    """
    front = x.shape[:1] if axes else ()
    own = tuple(x.shape[len(front):-1])
    shorter = own[next((i for i, n in enumerate(own) if n != 1), len(own)):]
    if shorter != tuple(lead)[len(lead) - len(shorter):]:
        x = x.expand(*front, *lead, x.shape[-1])
    return x.contiguous()


def rows_in(table: torch.Tensor, axes: bool = False) -> int:
    """Rows of a table, of one axis where it has several."""
    return table.numel() // (table.shape[-1] * (table.shape[0] if axes else 1))


def sizes(heads: int, width: int, lanes: int) -> dict[str, int]:
    """The constants of `put` for heads of one kind."""
    return {"D": width, "N": lanes, "WIDE": power(width), "HEADS": min(power(heads), max(1, 4096 // power(width)))}


def start(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, weight: torch.Tensor | None, eps: float, read: int,
          write: int) -> torch.Tensor:
    """RoPE of x [..., H, D], after a norm of each head where there is a weight."""
    heads, width = x.shape[-2:]
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    flat, distance, apart = tokens_of(x)
    cos, sin = (table_of(t, tuple(x.shape[:-2])) for t in (cos, sin))
    constants = sizes(heads, width, cos.shape[-1])
    each = constants["HEADS"]
    launch(rope_kernel, (flat.shape[0], blocks(heads, each)), flat, cos, sin, weight, y, rows_in(cos), eps,
           TOKEN=distance, HEAD=apart, H=heads, READ=read, WRITE=write, **constants,
           warps=min(warps_for(each * power(width)), 8 if weight is not None else 4))
    return y


def run(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, *, read: int, write: int) -> torch.Tensor:
    """x [..., H, D], cos and sin [..., n] with 2n <= D -> [..., H, D] in x's dtype; see `glmc.rope` for read and write."""
    return start(x, cos, sin, None, 0.0, read, write)
