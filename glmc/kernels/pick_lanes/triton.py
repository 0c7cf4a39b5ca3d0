"""Lanes from the rows that an axis map names. The map is three bit masks in the code, so nothing has to be loaded for it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl

from glmc.errors import InternalError
from glmc.kernels.rope.triton import axis_of
from glmc.kernels.triton import blocks, launch, power, warps_for


def accepts(site) -> str | None:
    return None


def bits(axis_map: Sequence[int], rows: int) -> tuple[int, int]:
    """The lanes of axis 1 and of axis 2, a bit each. Raises InternalError for another axis, or one that is not there."""
    if not axis_map or not 0 <= min(axis_map) <= max(axis_map) < min(rows, 3):
        raise InternalError("the axis map does not fit the tensor", field="axis_map", expected=f"axes below {min(rows, 3)}",
                            found=list(axis_map))
    one, two = (sum(1 << lane for lane, axis in enumerate(axis_map) if axis == wanted) for wanted in (1, 2))
    return one, two


@triton.jit(do_not_specialize=["rows"])
def pick_lanes_kernel(x, y, rows, N: tl.constexpr, LANES: tl.constexpr, EACH: tl.constexpr, ONE: tl.constexpr,
                      TWO: tl.constexpr):
    row = (tl.program_id(0) * EACH + tl.arange(0, EACH))[:, None].to(tl.int64)
    lane = tl.arange(0, LANES)[None, :]
    inside = (row < rows) & (lane < N)
    at = (axis_of(lane, ONE, TWO, LANES) * rows + row) * N + lane
    tl.store(y + row * N + lane, tl.load(x + at, mask=inside), mask=inside)


def run(x: torch.Tensor, axis_map: Sequence[int]) -> torch.Tensor:
    """x [A, ..., n], A at most 3; axis_map n rows in [0, A) -> [..., n] with out[..., i] = x[axis_map[i], ..., i]."""
    lanes = x.shape[-1]
    if len(axis_map) != lanes:
        raise InternalError("the axis map does not fit the tensor", field="axis_map", expected=f"{lanes} lanes",
                            found=list(axis_map))
    one, two = bits(axis_map, x.shape[0])
    y = torch.empty(x.shape[1:], dtype=x.dtype, device=x.device)
    rows, block = y.numel() // lanes, power(lanes)
    each = max(1, 1024 // block)
    launch(pick_lanes_kernel, (blocks(rows, each),), x.contiguous(), y, rows, N=lanes, LANES=block, EACH=each, ONE=one,
           TWO=two, warps=warps_for(block * each))
    return y
