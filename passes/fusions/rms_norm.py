"""Divide each row by its root mean square and scale by a weight.

    y = weight * x / sqrt(mean(x^2) + eps), the weight left out where there is none

The square root is taken in float32; the normalised row is rounded to x's dtype before the weight, as GLM publishes it.
Source: Zhang and Sennrich, Root Mean Square Layer Normalization (2019), in the spelling of Glm4RMSNorm.
"""

from __future__ import annotations

import torch

from glmc.passes.declare import Fusion, Maths, Spelling


def reference(x: "... H", weight: H = None, *, eps):  # noqa: F722, F821
    wide = x.to(torch.float32)
    variance = wide.pow(2).mean(-1, keepdim=True)
    normed = (wide * torch.rsqrt(variance + eps)).to(x.dtype)
    return normed if weight is None else weight * normed


def _promoted(x: "... H", weight: H, *, eps):  # noqa: F722, F821
    """As T5 publishes it: the multiplication widens the row."""
    variance = x.to(torch.float32).pow(2).mean(-1, keepdim=True)
    return weight * (x * torch.rsqrt(variance + eps)).to(x.dtype)


_SIZES = ({"H": 8, "eps": 0.125}, {"H": 12, "...": (3, 2, 4), "eps": 0.25})

fusion = Fusion(reference, samples=(*_SIZES, *({**s, "weight": None} for s in _SIZES)),
                also=(Spelling(Maths(_promoted, _SIZES), reference),))
