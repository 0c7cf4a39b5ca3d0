"""Sigmoid routing with a correction for the choice alone, by ONNX's TopK. One group needs no mask."""

from __future__ import annotations

from typing import Any

from glmc.kernels.onnx import alone, fixed, kind


def accepts(site) -> str | None:
    return None


def emit(op: Any, logits: Any, bias: Any, *, groups: int, kept: int, top: int, normalise: bool, scale: float,
         ) -> tuple[Any, Any]:
    """logits float32 [T, E], bias float32 [E] -> weights float32 [T, top] and experts int64 [T, top], in no set order."""
    scores = op.Sigmoid(logits)
    choice = op.Add(scores, bias)
    if kept < groups:
        grouped = op.Reshape(choice, [0, groups, fixed(logits, 1) // groups])
        best = op.ReduceSum(op.TopK(grouped, [2], _outputs=2)[0], [-1], keepdims=0)
        chosen = op.TopK(best, [kept], _outputs=2)[1]
        numbers = op.Equal(op.Unsqueeze(chosen, [-1]), list(range(groups)))
        allowed = op.ReduceMax(op.Cast(numbers, to=kind("float32")), [1], keepdims=0)
        hidden = op.Equal(op.Unsqueeze(allowed, [-1]), 0.0)
        choice = op.Reshape(op.Where(hidden, float("-inf"), grouped), [0, -1])
    experts = op.TopK(choice, [top], sorted=0, _outputs=2)[1]
    weights = op.GatherElements(scores, experts, axis=-1)
    if normalise:
        weights = op.Div(weights, op.Add(op.ReduceSum(weights, [-1], keepdims=1), 1e-20))
    return op.Mul(weights, scale), experts


run = alone(emit)
