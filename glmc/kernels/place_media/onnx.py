"""Embeddings of a prompt in which the tokens of images and frames take what the vision tower made of them."""

from __future__ import annotations

from typing import Any

from glmc.kernels.onnx import alone


def accepts(site) -> str | None:
    return None


def emit(op: Any, x: Any, features: Any, media: Any) -> Any:
    """x [B, S, H] and features [M, H], media int64 [B, S] below M -> [B, S, H]; negative ones keep their embedding."""
    rows = op.Gather(features, op.Max(media, 0), axis=0)
    return op.Where(op.GreaterOrEqual(op.Unsqueeze(media, [-1]), 0), rows, x)


run = alone(emit)
