"""Divide each row by its root mean square and scale by a weight.

    y = weight * x / sqrt(mean(x^2) + eps)

The square root is taken in float32; the normalised row is rounded to x's dtype before the weight, as GLM publishes it.
Source: Zhang and Sennrich, Root Mean Square Layer Normalization (2019), in the spelling of Glm4RMSNorm.
"""

from __future__ import annotations

import torch

from glmc.passes.declare import Fusion


def reference(x: "... H", weight: H, *, eps):  # noqa: F722, F821
    wide = x.to(torch.float32)
    variance = wide.pow(2).mean(-1, keepdim=True)
    return weight * (wide * torch.rsqrt(variance + eps)).to(x.dtype)


fusion = Fusion(reference, samples=({"H": 8, "eps": 0.125}, {"H": 12, "...": (3, 2, 4), "eps": 0.25}))
