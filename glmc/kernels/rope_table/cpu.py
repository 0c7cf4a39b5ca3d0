"""cos and sin of every token's angles. Lanes pick their row of positions before the angle, so that each angle is made once."""

from __future__ import annotations

import torch

from glmc.kernels.pick_lanes import cpu as pick_lanes


def accepts(site) -> str | None:
    return None


def run(positions: torch.Tensor, inv_freq: torch.Tensor, *, axis_map: tuple[int, ...] | None, axial: bool, scale: float,
        dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """positions int64 [A, ...] with an axis map, else [...]; inv_freq float32 [n] -> cos and sin [..., n] in `dtype`.

    axial: positions [..., A] -> [..., A * n], the coordinates side by side.
    """
    angle = positions.unsqueeze(-1).float() * inv_freq
    if axis_map is not None:
        angle = pick_lanes.run(angle, list(axis_map))
    if axial:
        angle = angle.flatten(-2)
    return (torch.cos(angle) * scale).to(dtype), (torch.sin(angle) * scale).to(dtype)
