"""Tokens through their chosen experts. Few rows: each chosen expert's matrices are read once a token, as vectors. Many
rows: sorted by expert, then tiles of the grouped product, the gate between the two.

T tokens of H channels, TOP experts each, I inner channels; float32 sums, and each token's experts are summed in float32.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from glmc.kernels.dequantise import Coded
from glmc.kernels.dequantise.triton import operand, tile_of
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
def gate_up_kernel(x, experts, gate_up, scales, factors, hidden, W_ROW: tl.constexpr, S_ROW: tl.constexpr, F_ROW: tl.constexpr,
                   FORM: tl.constexpr, GROUP: tl.constexpr, H: tl.constexpr, I: tl.constexpr, TOP: tl.constexpr,  # noqa: E741
                   BI: tl.constexpr, BH: tl.constexpr):
    pair = tl.program_id(0).to(tl.int64)
    inner = tl.program_id(1) * BI + tl.arange(0, BI)
    good = (inner < I)[:, None]
    rows = tl.load(experts + pair) * (2 * I) + inner.to(tl.int64)
    gate, up = tl.zeros((BI, BH), tl.float32), tl.zeros((BI, BH), tl.float32)
    for start in range(0, H, BH):
        at = (start + tl.arange(0, BH))[None, :]
        row = tl.load(x + (pair // TOP) * H + at, mask=at < H, other=0.0).to(tl.float32)
        upper = tile_of(gate_up, scales, rows[:, None], start, good, W_ROW, S_ROW, H, FORM, GROUP, BI, BH)
        lower = tile_of(gate_up, scales, rows[:, None] + I, start, good, W_ROW, S_ROW, H, FORM, GROUP, BI, BH)
        gate += upper.to(tl.float32) * row
        up += lower.to(tl.float32) * row
    g, u = tl.sum(gate, axis=1), tl.sum(up, axis=1)
    if factors is not None:
        g *= tl.load(factors + rows * F_ROW, mask=inner < I, other=0.0)
        u *= tl.load(factors + (rows + I) * F_ROW, mask=inner < I, other=0.0)
    out = g / (1.0 + tl.exp(-g)) * u
    tl.store(hidden + pair * I + inner, out.to(hidden.dtype.element_ty), mask=inner < I)


@triton.jit
def down_kernel(hidden, experts, weights, down, scales, factors, y, W_ROW: tl.constexpr, S_ROW: tl.constexpr,
                F_ROW: tl.constexpr, FORM: tl.constexpr, GROUP: tl.constexpr, H: tl.constexpr, I: tl.constexpr,  # noqa: E741
                TOP: tl.constexpr, BI: tl.constexpr, BH: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    out = tl.program_id(1) * BH + tl.arange(0, BH)
    good = (out < H)[:, None]
    total = tl.zeros((BH,), tl.float32)
    for number in range(TOP):
        pair = token * TOP + number
        rows = tl.load(experts + pair) * H + out.to(tl.int64)
        part = tl.zeros((BH, BI), tl.float32)
        for start in range(0, I, BI):
            at = (start + tl.arange(0, BI))[None, :]
            row = tl.load(hidden + pair * I + at, mask=at < I, other=0.0).to(tl.float32)
            part += tile_of(down, scales, rows[:, None], start, good, W_ROW, S_ROW, I, FORM, GROUP, BH, BI).to(tl.float32) * row
        each = tl.sum(part, axis=1)
        if factors is not None:
            each *= tl.load(factors + rows * F_ROW, mask=out < H, other=0.0)
        total += each * tl.load(weights + pair)
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


def run(x: torch.Tensor, experts: torch.Tensor, weights: torch.Tensor, gate_up: torch.Tensor | Coded,
        down: torch.Tensor | Coded) -> torch.Tensor:
    """x [T, H], experts int64 [T, K] below E, weights float32 [T, K], gate_up [E, 2I, H], down [E, H, I] -> [T, H]."""
    tokens, top = experts.shape
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    x, experts, weights = (t.contiguous() for t in (x, experts, weights))
    gate_up, down = (w.contiguous() if isinstance(w, torch.Tensor) else w for w in (gate_up, down))
    count, width, inner = down.shape
    if tokens <= FEW:
        hidden = torch.empty((tokens * top, inner), dtype=x.dtype, device=x.device)
        (first, first_constants), (second, second_constants) = operand(gate_up), operand(down)
        short, long = (min(max(power(size), 16), 512) for size in (inner, width))
        launch(gate_up_kernel, (tokens * top, blocks(inner, 4)), x, experts, *first, hidden, **first_constants, H=width,
               I=inner, TOP=top, BI=4, BH=long, warps=4)
        launch(down_kernel, (tokens, blocks(width, 4)), hidden, experts, weights, *second, y, **second_constants, H=width,
               I=inner, TOP=top, BI=short, BH=4, warps=4)
        return y
    order, ends, places = by_expert(experts, count)
    both = product(x, gate_up, ends, tokens * top, order, top)
    gated = silu_mul.run(*both.chunk(2, dim=-1))
    rows = product(gated, down, ends, tokens * top)
    block = min(power(width), 1024)
    launch(combine_kernel, (tokens, blocks(width, block)), rows, places, weights, y, H=width, TOP=top, BLOCK=block,
           warps=warps_for(block))
    return y

