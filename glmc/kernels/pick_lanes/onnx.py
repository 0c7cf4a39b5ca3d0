"""Lanes from the rows that an axis map names: slices of neighbouring lanes, joined, or one gather by a constant."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from glmc.kernels.onnx import alone, sizes, tensor


def accepts(site) -> str | None:
    return None


def emit(op: Any, x: Any, axis_map: Sequence[int]) -> Any:
    """x [A, ..., n]; axis_map n rows in [0, A) -> [..., n] with out[..., i] = x[axis_map[i], ..., i]."""
    rank = len(sizes(x))
    last_first = op.Transpose(x, perm=[rank - 1, *range(rank - 1)])
    lanes = tensor([[lane, row] for lane, row in enumerate(axis_map)])
    return op.Transpose(op.GatherND(last_first, op.Constant(value=lanes)), perm=[*range(1, rank - 1), 0])


run = alone(emit)
