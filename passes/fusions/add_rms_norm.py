"""Add to the residual stream and normalise the sum: the sum goes on, its norm feeds the next block.

    sum = residual + x,    y = rms_norm(sum, weight)
"""

from __future__ import annotations

from glmc.passes.declare import Fusion
from glmc.passes.fusions import rms_norm


def reference(residual: "... H", x: "... H", weight: H, *, eps):  # noqa: F722, F821
    total = residual + x
    return rms_norm.reference(total, weight, eps=eps), total


fusion = Fusion(reference, samples=rms_norm.fusion.samples[:2])
