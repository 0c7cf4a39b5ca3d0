"""Packed QKV to attention's inputs in one launch: each program takes some heads of one token, all of q, or of both k and v.

q's and k's heads are normalised where there are weights, and turned; k and v go to their slots where there is a cache.
T tokens, S of them a row; the rest of the letters are those of `rope`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from glmc.kernels import too_wide
from glmc.kernels.pick_lanes.triton import bits
from glmc.kernels.rope.triton import WIDEST, angles, heads_at, put, rows_in, sizes, table_of
from glmc.kernels.triton import blocks, launch, power, rows_of, warps_for

_LONG = 512
"""Tokens from which on there are more than enough programs."""


def accepts(site) -> str | None:
    if "keys" in site and site["keys"][0] != site["qkv"][0]:
        return f"the cache is {site['keys'][0]}, the heads are {site['qkv'][0]}"
    return too_wide("a head", site["qkv"][1][-1] // (site["heads"] + 2 * site["kv_heads"]), WIDEST)


@triton.jit(do_not_specialize=["table_rows", "row_tokens"])
def split_qkv_norm_rope_kernel(qkv, cos, sin, q_weight, k_weight, q_bias, k_bias, slots, q, k, v, table_rows, row_tokens, eps,
                               TOKEN: tl.constexpr, H: tl.constexpr, KV: tl.constexpr, D: tl.constexpr, N: tl.constexpr,
                               WIDE: tl.constexpr, HEADS: tl.constexpr, KV_HEADS: tl.constexpr, EACH: tl.constexpr,
                               READ: tl.constexpr, WRITE: tl.constexpr, AXES: tl.constexpr, ONE: tl.constexpr,
                               TWO: tl.constexpr, K_ROW: tl.constexpr, K_SLOT: tl.constexpr, V_ROW: tl.constexpr,
                               V_SLOT: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    packed = qkv + token * TOKEN
    q_parts: tl.constexpr = (H + HEADS * EACH - 1) // (HEADS * EACH)
    c, s = angles(cos, sin, token, table_rows, N, WIDE, READ, AXES, ONE, TWO)
    if part < q_parts:
        head = part * (EACH * HEADS) + tl.arange(0, HEADS)[:, None]
        heads, others = heads_at(packed + head * D, head < H, D, N, WIDE, HEADS, READ)
        for step in tl.static_range(EACH):
            here, now, then = head, heads, others
            if step + 1 < EACH:  # the next heads are asked for before these are turned
                head = here + HEADS
                heads, others = heads_at(packed + head * D, head < H, D, N, WIDE, HEADS, READ)
            put(now, then, q + token * (H * D) + here * D, here < H, c, s, q_weight, q_bias, eps, D, N, WIDE, HEADS, READ,
                WRITE)
    else:
        if slots is not None:
            slot = tl.load(slots + token)
            row = token // row_tokens
            k_token, v_token = row * K_ROW + slot * K_SLOT, row * V_ROW + slot * V_SLOT
        else:
            k_token, v_token = token * (KV * D), token * (KV * D)
        own = (part - q_parts) * KV_HEADS + tl.arange(0, KV_HEADS)[:, None]
        channel = tl.arange(0, WIDE)[None, :]
        inside = (own < KV) & (channel < D)
        moved = tl.load(packed + (H + KV + own) * D + channel, mask=inside)
        one, two = heads_at(packed + (H + own) * D, own < KV, D, N, WIDE, KV_HEADS, READ)
        put(one, two, k + k_token + own * D, own < KV, c, s, k_weight, k_bias, eps, D, N, WIDE, KV_HEADS, READ, WRITE)
        tl.store(v + v_token + own * D + channel, moved.to(v.dtype.element_ty), mask=inside)


def tile(tokens: int, heads: int, width: int) -> tuple[int, int, int]:
    """(Query heads that are turned at once, how often a program does that, warps).

    As measured on an H200: of a long prompt a program takes all of a token's heads where there are many, and the cosines, sines
    and weights are read once; with few tokens every group of heads is a program of its own.
    """
    each = min(power(heads), max(1, 2048 // power(width)))
    often = min(blocks(heads, each), 8) if tokens >= _LONG and heads > 2 * each else 1
    return each, often, warps_for(each * power(width))


def run(qkv: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, q_weight: torch.Tensor | None = None,
        k_weight: torch.Tensor | None = None, q_bias: torch.Tensor | None = None, k_bias: torch.Tensor | None = None,
        keys: torch.Tensor | None = None, values: torch.Tensor | None = None, slots: torch.Tensor | None = None, *,
        heads: int, kv_heads: int, eps: float | None, read: int, write: int, axis_map: tuple[int, ...] | None,
        ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """qkv [..., (heads + 2 kv_heads) D], cos and sin [..., n] -> q [..., heads, D], k and v [..., kv_heads, D].

    For the other arguments see `glmc.split_qkv_norm_rope` on the CPU: they mean the same. The last two dims of a cache lie
    side by side.
    """
    width, lead = qkv.shape[-1] // (heads + 2 * kv_heads), tuple(qkv.shape[:-1])
    packed, distance = rows_of(qkv)
    axes = axis_map is not None
    one, two = bits(axis_map, cos.shape[0]) if axis_map is not None else (0, 0)
    cos, sin = (table_of(t, lead, axes) for t in (cos, sin))
    q = torch.empty((*lead, heads, width), dtype=qkv.dtype, device=qkv.device)
    if keys is None or values is None or slots is None:
        k, v = (torch.empty((*lead, kv_heads, width), dtype=qkv.dtype, device=qkv.device) for _ in range(2))
        strides = {"K_ROW": 0, "K_SLOT": 0, "V_ROW": 0, "V_SLOT": 0}
    else:
        k, v, slots = keys, values, slots.contiguous()
        strides = {"K_ROW": k.stride(0), "K_SLOT": k.stride(1), "V_ROW": v.stride(0), "V_SLOT": v.stride(1)}
    each, often, warps = tile(packed.shape[0], heads, width)
    constants = {**sizes(heads, width, cos.shape[-1]), "HEADS": each, "KV_HEADS": min(power(kv_heads), each), "EACH": often}
    parts = blocks(heads, each * often) + blocks(kv_heads, constants["KV_HEADS"])
    launch(split_qkv_norm_rope_kernel, (packed.shape[0], parts), packed, cos, sin,
           q_weight, k_weight, q_bias, k_bias, slots, q, k, v, rows_in(cos, axes), lead[-1] if lead else 1, eps or 0.0,
           TOKEN=distance, H=heads, KV=kv_heads, READ=read, WRITE=write, AXES=axes,
           ONE=one, TWO=two, **strides, **constants, warps=warps)
    return q, k, v
