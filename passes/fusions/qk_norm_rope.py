"""Normalise each head and turn its first 2n channels by the token's angle.

    y = rope(rms_norm(x, weight), cos, sin)
"""

from __future__ import annotations

from glmc.passes.declare import Fusion
from glmc.passes.fusions import rms_norm, rope


def reference(x: "... H D", weight: D, cos: "wide ... n", sin: "wide ... n", *, eps, read, write):  # noqa: F722, F821
    return rope.reference(rms_norm.reference(x, weight, eps=eps), cos, sin, read=read, write=write)


fusion = Fusion(
    reference,
    samples=tuple({**s, "eps": 0.125 + 0.125 * (i % 2)} for i, s in enumerate(rope.fusion.samples)),
    where=rope.fusion.where,
)
