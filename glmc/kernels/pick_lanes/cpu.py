"""Each lane of the last dim from the row that an axis map names: what three-axis RoPE does to its cosines and sines.

Few runs of neighbouring lanes: slices, joined. Many: one choice a row by constant bits, which the compiler makes one loop
of; an index tensor would be a constant that every compiled library has to carry.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from glmc.errors import InternalError
from glmc.kernels import opaque

_SLICES = 8
"""The most slices that the compiler still joins in one loop."""
_WORD = 32


def accepts(site) -> str | None:
    return None


def check(x: torch.Tensor, axis_map: Sequence[int]) -> None:
    """Raises InternalError where the map and the tensor's first and last sizes do not fit."""
    if x.ndim < 2 or not axis_map or x.shape[-1] != len(axis_map) or not 0 <= min(axis_map) <= max(axis_map) < x.shape[0]:
        raise InternalError("the axis map does not fit the tensor", field="axis_map",
                            expected="[rows, ..., lanes], a row for each lane", found=f"{list(x.shape)}, {list(axis_map)}")


@opaque("pick_lanes", "(Tensor x, int[] axis_map) -> Tensor")
def run(x: torch.Tensor, axis_map: Sequence[int]) -> torch.Tensor:
    """x [A, ..., n], any dtype; axis_map n rows in [0, A) -> [..., n] with out[..., i] = x[axis_map[i], ..., i].

    A new tensor, never a view of x. Raises InternalError.
    """
    check(x, axis_map)
    starts = [i for i, row in enumerate(axis_map) if i == 0 or row != axis_map[i - 1]]
    if len(starts) <= _SLICES:
        ends = [*starts[1:], len(axis_map)]
        return torch.cat([x[axis_map[a]][..., a:b] for a, b in zip(starts, ends, strict=True)], dim=-1)
    lanes = torch.arange(len(axis_map), device=x.device)
    rows = sorted(set(axis_map))
    out = x[rows[-1]]
    for row in rows[:-1]:
        out = torch.where(_holds(lanes, [r == row for r in axis_map]), x[row], out)
    return out


def _holds(lanes: torch.Tensor, chosen: list[bool]) -> torch.Tensor:
    """bool [n]: `chosen`, read from the bits of integers."""
    words = [sum(bit << i for i, bit in enumerate(chosen[start:start + _WORD])) for start in range(0, len(chosen), _WORD)]
    bits = torch.full_like(lanes, words[0])
    for i, word in enumerate(words[1:], 1):
        bits = torch.where(lanes >= i * _WORD, word, bits)
    return ((bits >> (lanes % _WORD)) & 1) == 1


@torch.library.register_fake("glmc::pick_lanes")
def _(x: torch.Tensor, axis_map: Sequence[int]) -> torch.Tensor:
    check(x, axis_map)
    return x.new_empty(x.shape[1:])
