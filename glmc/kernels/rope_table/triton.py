"""cos and sin of every token's angles: each lane reads the position of its axis and makes its angle once.

T tokens, N lanes (LANES the power of two above, or of all coordinates' lanes where they stand side by side).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from glmc.kernels.pick_lanes.triton import bits
from glmc.kernels.rope.triton import axis_of
from glmc.kernels.triton import blocks, launch, power, warps_for


def accepts(site) -> str | None:
    return None


@triton.jit(do_not_specialize=["tokens"])
def rope_table_kernel(positions, inv_freq, cos, sin, tokens, scale, N: tl.constexpr, WIDE: tl.constexpr, LANES: tl.constexpr,
                      EACH: tl.constexpr, AXES: tl.constexpr, ONE: tl.constexpr, TWO: tl.constexpr):
    token = (tl.program_id(0) * EACH + tl.arange(0, EACH))[:, None].to(tl.int64)
    lane = tl.arange(0, LANES)[None, :]
    inside = (token < tokens) & (lane < WIDE)
    if AXES:
        at = axis_of(lane, ONE, TWO, LANES) * tokens + token
    else:
        at = token * (WIDE // N) + lane // N
    where = tl.load(positions + at, mask=inside, other=0).to(tl.float32)
    angle = where * tl.load(inv_freq + lane % N, mask=lane < WIDE, other=0.0)
    tl.store(cos + token * WIDE + lane, (tl.cos(angle) * scale).to(cos.dtype.element_ty), mask=inside)
    tl.store(sin + token * WIDE + lane, (tl.sin(angle) * scale).to(sin.dtype.element_ty), mask=inside)


def run(positions: torch.Tensor, inv_freq: torch.Tensor, *, axis_map: tuple[int, ...] | None, axial: bool, scale: float,
        dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """positions int64 [A, ...] with an axis map, else [...]; inv_freq float32 [n] -> cos and sin [..., n] in `dtype`.

    axial: positions [..., A] -> [..., A * n], the coordinates side by side.
    """
    lanes, where = inv_freq.shape[0], positions.contiguous()
    lead = positions.shape[1:] if axis_map is not None else positions.shape[:-1] if axial else positions.shape
    wide = lanes * positions.shape[-1] if axial else lanes
    one, two = bits(axis_map, positions.shape[0]) if axis_map is not None else (0, 0)
    made = [torch.empty((*lead, wide), dtype=dtype, device=positions.device) for _ in range(2)]
    tokens, block = made[0].numel() // wide, power(wide)
    each = max(1, 1024 // block)
    launch(rope_table_kernel, (blocks(tokens, each),), where, inv_freq, *made, tokens, float(scale), N=lanes, WIDE=wide,
           LANES=block, EACH=each, AXES=axis_map is not None, ONE=one, TWO=two, warps=warps_for(block * each))
    return made[0], made[1]
