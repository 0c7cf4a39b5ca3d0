"""Normalise each head, bring the heads to the front, and turn the first R channels by the token's angle (halves).

    y = rope_half(transpose(rms_norm(x, weight)), cos, sin)
"""

from __future__ import annotations

from glmc.passes.declare import Fusion
from glmc.passes.fusions import rms_norm, rope_half


def reference(x: "B S H D", weight: D, cos: "B 1 S R", sin: "B 1 S R", *, eps):  # noqa: F722, F821
    normed = rms_norm.reference(x, weight, eps=eps)
    return rope_half.reference(normed.transpose(1, 2), cos, sin)


fusion = Fusion(
    reference,
    samples=tuple({**s, "eps": 0.125 + 0.125 * (i % 2)} for i, s in enumerate(rope_half.fusion.samples)),
    where=rope_half.fusion.where,
)
