"""Tokens through their chosen experts. Few rows: each chosen expert's matrices are read once a token, as vectors. Many
rows: sorted by expert, then tiles of the grouped product, the gate between the two.

T tokens of H channels, TOP experts each, I inner channels; float32 sums, and each token's experts are summed in float32.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from glmc.kernels.grouped_mm.triton import product
from glmc.kernels.moe_experts import by_expert
from glmc.kernels.silu_mul import triton as silu_mul
from glmc.kernels.triton import blocks, launch, power, warps_for

FEW = 8
"""Tokens up to which rows are not worth sorting: most of their experts differ."""


def accepts(site) -> str | None:
    kinds = {name: site[name][0] for name in ("x", "gate_up", "down")}
    return None if len(set(kinds.values())) == 1 else f"x and the experts' weights have different dtypes: {kinds}"


@triton.jit
def gate_up_kernel(x, experts, gate_up, hidden, H: tl.constexpr, I: tl.constexpr, TOP: tl.constexpr, BI: tl.constexpr,  # noqa: E741
                   BH: tl.constexpr):
    pair = tl.program_id(0).to(tl.int64)
    inner = tl.program_id(1) * BI + tl.arange(0, BI)
    good = (inner < I)[:, None]
    rows = gate_up + tl.load(experts + pair) * (2 * I * H) + inner.to(tl.int64)[:, None] * H
    gate, up = tl.zeros((BI, BH), tl.float32), tl.zeros((BI, BH), tl.float32)
    for start in range(0, H, BH):
        at = (start + tl.arange(0, BH))[None, :]
        row = tl.load(x + (pair // TOP) * H + at, mask=at < H, other=0.0).to(tl.float32)
        gate += tl.load(rows + at, mask=good & (at < H), other=0.0).to(tl.float32) * row
        up += tl.load(rows + I * H + at, mask=good & (at < H), other=0.0).to(tl.float32) * row
    g = tl.sum(gate, axis=1)
    out = g / (1.0 + tl.exp(-g)) * tl.sum(up, axis=1)
    tl.store(hidden + pair * I + inner, out.to(hidden.dtype.element_ty), mask=inner < I)


@triton.jit
def down_kernel(hidden, experts, weights, down, y, H: tl.constexpr, I: tl.constexpr, TOP: tl.constexpr, BI: tl.constexpr,  # noqa: E741
                BH: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    out = tl.program_id(1) * BH + tl.arange(0, BH)
    good = (out < H)[:, None]
    total = tl.zeros((BH,), tl.float32)
    for number in range(TOP):
        pair = token * TOP + number
        rows = down + tl.load(experts + pair) * (H * I) + out.to(tl.int64)[:, None] * I
        part = tl.zeros((BH, BI), tl.float32)
        for start in range(0, I, BI):
            at = (start + tl.arange(0, BI))[None, :]
            row = tl.load(hidden + pair * I + at, mask=at < I, other=0.0).to(tl.float32)
            part += tl.load(rows + at, mask=good & (at < I), other=0.0).to(tl.float32) * row
        total += tl.sum(part, axis=1) * tl.load(weights + pair)
    tl.store(y + token * H + out, total.to(y.dtype.element_ty), mask=out < H)


@triton.jit
def combine_kernel(rows, places, weights, y, H: tl.constexpr, TOP: tl.constexpr, BLOCK: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    for number in range(TOP):
        pair = token * TOP + number
        row = tl.load(rows + tl.load(places + pair) * H + column, mask=column < H, other=0.0)
        total += row.to(tl.float32) * tl.load(weights + pair)
    tl.store(y + token * H + column, total.to(y.dtype.element_ty), mask=column < H)


def run(x: torch.Tensor, experts: torch.Tensor, weights: torch.Tensor, gate_up: torch.Tensor, down: torch.Tensor,
        ) -> torch.Tensor:
    """x [T, H], experts int64 [T, K] below E, weights float32 [T, K], gate_up [E, 2I, H], down [E, H, I] -> [T, H]."""
    tokens, top = experts.shape
    width, inner = down.shape[1:]
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    x, experts, weights, gate_up, down = (t.contiguous() for t in (x, experts, weights, gate_up, down))
    if tokens <= FEW:
        hidden = torch.empty((tokens * top, inner), dtype=x.dtype, device=x.device)
        short, long = min(power(inner), 512), min(power(width), 512)
        launch(gate_up_kernel, (tokens * top, blocks(inner, 4)), x, experts, gate_up, hidden, H=width, I=inner, TOP=top,
               BI=4, BH=long, warps=4)
        launch(down_kernel, (tokens, blocks(width, 4)), hidden, experts, weights, down, y, H=width, I=inner, TOP=top,
               BI=short, BH=4, warps=4)
        return y
    order, ends, places = by_expert(experts, down.shape[0])
    both = product(x, gate_up.transpose(1, 2), ends, tokens * top, order, top)
    gated = silu_mul.run(*both.chunk(2, dim=-1))
    rows = product(gated, down.transpose(1, 2), ends, tokens * top)
    block = min(power(width), 1024)
    launch(combine_kernel, (tokens, blocks(width, block)), rows, places, weights, y, H=width, TOP=top, BLOCK=block,
           warps=warps_for(block))
    return y
