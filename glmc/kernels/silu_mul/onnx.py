"""SiLU of the gate times the up projection. By Exp, since ONNX Runtime's Sigmoid is only near for small results."""

from __future__ import annotations

from typing import Any

from glmc.kernels import differ
from glmc.kernels.onnx import alone, only_float32


def accepts(site) -> str | None:
    return differ(site, "gate", "up") or only_float32(site, "gate", "up")


def emit(op: Any, gate: Any, up: Any) -> Any:
    """gate, up [..., I] -> [..., I]."""
    return op.Mul(op.Div(gate, op.Add(op.Exp(op.Neg(gate)), 1.0)), up)


run = alone(emit)
