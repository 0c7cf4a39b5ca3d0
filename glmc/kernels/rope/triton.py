"""RoPE: several heads of one token a program; every load of a table is bounded by its lanes, not by the head's width.

T tokens, H heads of D channels (HEADS of them a program), N lanes (LANES the power of two above), REST the power of two
above the D - 2N channels that pass. Token t reads row t modulo the table's rows. With AXES the table has a row for each
axis, AXIS_ROWS apart, and ONE and TWO hold a bit for each lane of the axes 1 and 2.
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
def angles(cos, sin, token, table_rows, N: tl.constexpr, LANES: tl.constexpr, AXES: tl.constexpr, ONE: tl.constexpr,
           TWO: tl.constexpr):
    """cos and sin of a token, [1, LANES] in float32."""
    lane = tl.arange(0, LANES)[None, :]
    at = (token % table_rows) * N + lane
    if AXES:
        at += axis_of(lane, ONE, TWO, LANES) * table_rows * N
    return (tl.load(cos + at, mask=lane < N, other=0.0).to(tl.float32),
            tl.load(sin + at, mask=lane < N, other=0.0).to(tl.float32))


@triton.jit
def load_lanes(base, inside, N: tl.constexpr, LANES: tl.constexpr, HEADS: tl.constexpr, READ: tl.constexpr):
    """Both channels of every lane of the heads at `base`, [HEADS, LANES] each, in float32."""
    if READ == -1:
        channel = tl.arange(0, 2 * LANES)[None, :]
        both = tl.load(base + channel, mask=inside & (channel < 2 * N), other=0.0).to(tl.float32)
        first, second = tl.split(tl.reshape(both, (HEADS, LANES, 2)))
    else:
        lane = tl.arange(0, LANES)[None, :]
        good = inside & (lane < N)
        first = tl.load(base + lane, mask=good, other=0.0).to(tl.float32)
        second = tl.load(base + N + lane, mask=good, other=0.0).to(tl.float32)
    return first, second


@triton.jit
def store_lanes(base, inside, first, second, N: tl.constexpr, LANES: tl.constexpr, HEADS: tl.constexpr, WRITE: tl.constexpr):
    """Put both channels of every lane where WRITE says."""
    if WRITE == -1:
        channel = tl.arange(0, 2 * LANES)[None, :]
        both = tl.reshape(tl.join(first, second), (HEADS, 2 * LANES))
        tl.store(base + channel, both.to(base.dtype.element_ty), mask=inside & (channel < 2 * N))
    else:
        lane = tl.arange(0, LANES)[None, :]
        good = inside & (lane < N)
        tl.store(base + lane, first.to(base.dtype.element_ty), mask=good)
        tl.store(base + N + lane, second.to(base.dtype.element_ty), mask=good)


@triton.jit
def lane_weights(weight, N: tl.constexpr, LANES: tl.constexpr, READ: tl.constexpr):
    """A weight [D] for both channels of every lane, [1, LANES] each, in float32."""
    lane = tl.arange(0, LANES)[None, :]
    if READ == -1:
        first = tl.load(weight + 2 * lane, mask=lane < N, other=0.0).to(tl.float32)
        second = tl.load(weight + 2 * lane + 1, mask=lane < N, other=0.0).to(tl.float32)
    else:
        first = tl.load(weight + lane, mask=lane < N, other=0.0).to(tl.float32)
        second = tl.load(weight + N + lane, mask=lane < N, other=0.0).to(tl.float32)
    return first, second


@triton.jit
def turn(source, target, inside, cos, sin, weight, bias, eps, D: tl.constexpr, N: tl.constexpr, LANES: tl.constexpr,
         REST: tl.constexpr, HEADS: tl.constexpr, READ: tl.constexpr, WRITE: tl.constexpr):
    """Normalise the heads at `source` (with a weight), add a bias (with one), turn their lanes and store at `target`."""
    first, second = load_lanes(source, inside, N, LANES, HEADS, READ)
    if REST > 0:
        channel = 2 * N + tl.arange(0, REST)[None, :]
        passes = inside & (channel < D)
        rest = tl.load(source + channel, mask=passes, other=0.0).to(tl.float32)
    if weight is not None:
        squares = tl.sum(first * first + second * second, axis=1, keep_dims=True)
        if REST > 0:
            squares += tl.sum(rest * rest, axis=1, keep_dims=True)
        scale = tl.rsqrt(squares / D + eps)
        one, two = lane_weights(weight, N, LANES, READ)
        first, second = first * scale * one, second * scale * two
        if REST > 0:
            rest = rest * scale * tl.load(weight + channel, mask=channel < D, other=0.0).to(tl.float32)
    if bias is not None:
        one, two = lane_weights(bias, N, LANES, READ)
        first, second = first + one, second + two
        if REST > 0:
            rest = rest + tl.load(bias + channel, mask=channel < D, other=0.0).to(tl.float32)
    store_lanes(target, inside, first * cos - second * sin, second * cos + first * sin, N, LANES, HEADS, WRITE)
    if REST > 0:
        tl.store(target + channel, rest.to(target.dtype.element_ty), mask=passes)


@triton.jit(do_not_specialize=["table_rows"])
def rope_kernel(x, cos, sin, weight, y, table_rows, eps, TOKEN: tl.constexpr, H: tl.constexpr, D: tl.constexpr,
                N: tl.constexpr, LANES: tl.constexpr, REST: tl.constexpr, HEADS: tl.constexpr, READ: tl.constexpr,
                WRITE: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)[:, None]
    c, s = angles(cos, sin, token, table_rows, N, LANES, False, 0, 0)
    turn(x + token * TOKEN + head * D, y + token * (H * D) + head * D, head < H, c, s, weight, None, eps,
         D, N, LANES, REST, HEADS, READ, WRITE)


def tokens_of(x: torch.Tensor) -> tuple[torch.Tensor, int]:
    """x [..., H, D] as tokens [T, H, D] with heads side by side, and the distance between tokens; a copy where need be."""
    flat = x.reshape(-1, *x.shape[-2:])
    if flat.stride(2) != 1 or flat.stride(1) != flat.shape[2]:
        flat = flat.contiguous()
    return flat, int(flat.stride(0)) if flat.shape[0] > 1 else int(flat.shape[1] * flat.shape[2])


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
    """The constants of `turn` for heads of one kind."""
    rest = width - 2 * lanes
    return {"D": width, "N": lanes, "LANES": power(lanes), "REST": power(rest) if rest else 0,
            "HEADS": min(power(heads), max(1, 2048 // power(width)))}


def start(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, weight: torch.Tensor | None, eps: float, read: int,
          write: int) -> torch.Tensor:
    """RoPE of x [..., H, D], after a norm of each head where there is a weight."""
    heads, width = x.shape[-2:]
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    flat, distance = tokens_of(x)
    cos, sin = (table_of(t, tuple(x.shape[:-2])) for t in (cos, sin))
    constants = sizes(heads, width, cos.shape[-1])
    each = constants["HEADS"]
    launch(rope_kernel, (flat.shape[0], blocks(heads, each)), flat, cos, sin, weight, y, rows_in(cos), eps,
           TOKEN=distance, H=heads, READ=read, WRITE=write, **constants, warps=warps_for(each * power(width)))
    return y


def run(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, *, read: int, write: int) -> torch.Tensor:
    """x [..., H, D], cos and sin [..., n] with 2n <= D -> [..., H, D] in x's dtype; see `glmc.rope` for read and write."""
    return start(x, cos, sin, None, 0.0, read, write)
