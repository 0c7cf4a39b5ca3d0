"""The indexer by plain steps and TopK, all in float32."""

from __future__ import annotations

from typing import Any

from glmc.kernels.onnx import alone, fixed, kind, only_float32


def accepts(site) -> str | None:
    return only_float32(site, "query", "index", "shares")


def emit(op: Any, query: Any, index: Any, shares: Any, visible: Any, *, scale: float, head_scale: float, top: int) -> Any:
    """query [B, S, H, D], index [B, L, 1, D], shares [B, S, H], visible bool [B, 1, S, L] -> int32 [B, S, top] below L."""
    rows = op.Unsqueeze(op.Reshape(index, [0, 0, fixed(index, 3)]), [1])
    scores = op.Relu(op.Mul(op.MatMul(query, op.Transpose(rows, perm=[0, 1, 3, 2])), scale))
    total = op.Squeeze(op.MatMul(op.Unsqueeze(op.Mul(shares, head_scale), [2]), scores), [2])
    seen = op.Where(op.Squeeze(visible, [1]), total, float("-inf"))
    return op.Cast(op.TopK(seen, [top], _outputs=2)[1], to=kind("int32"))


run = alone(emit)
