"""Layer norm as one LayerNormalization node, float32 inside."""

from __future__ import annotations

from typing import Any

from glmc.kernels.onnx import alone, only_float32


def accepts(site) -> str | None:
    if "weight" not in site:
        return "LayerNormalization needs a scale"
    return only_float32(site, "x", "weight", "bias")


def emit(op: Any, x: Any, weight: Any, bias: Any = None, *, eps: float) -> Any:
    """x [..., H], weight and bias [H], bias or None -> [..., H]."""
    return op.LayerNormalization(x, weight, bias, axis=-1, epsilon=eps, stash_type=1)


run = alone(emit)
