"""RMS norm as one RMSNormalization node, float32 inside."""

from __future__ import annotations

from typing import Any

from glmc.kernels.onnx import alone, only_float32


def accepts(site) -> str | None:
    if "weight" not in site:
        return "RMSNormalization needs a scale"
    return only_float32(site, "x", "weight")


def emit(op: Any, x: Any, weight: Any, *, eps: float) -> Any:
    """x [..., H], weight [H] -> [..., H]."""
    return op.RMSNormalization(x, weight, axis=-1, epsilon=eps, stash_type=1)


run = alone(emit)
