"""cos and sin of every token's angles by plain steps: ONNX has no op that makes them from positions and frequencies."""

from __future__ import annotations

from typing import Any

import torch

from glmc.kernels.onnx import alone, kind, sizes
from glmc.kernels.pick_lanes.onnx import emit as pick_lanes


def accepts(site) -> str | None:
    return None if site["dtype"] is torch.float32 else "ONNX Runtime's CPU kernels are float32"


def emit(op: Any, positions: Any, inv_freq: Any, *, axis_map: tuple[int, ...] | None, axial: bool, scale: float,
         dtype: torch.dtype) -> tuple[Any, Any]:
    """positions int64 [A, ...] with an axis map, else [...]; inv_freq float32 [n] -> cos and sin [..., n].

    axial: positions [..., A] -> [..., A * n], the coordinates side by side.
    """
    wide = op.Cast(positions, to=kind("float32"))
    angle = op.Mul(op.Unsqueeze(wide, [-1]), inv_freq)
    if axis_map is not None:
        angle = pick_lanes(op, angle, axis_map)
    if axial:
        angle = op.Reshape(angle, [*[0] * (len(sizes(angle)) - 2), -1])
    return tuple(table if scale == 1 else op.Mul(table, scale) for table in (op.Cos(angle), op.Sin(angle)))


run = alone(emit)
