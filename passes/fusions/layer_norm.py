"""Centre each row, divide it by its standard deviation, scale and shift.

    y = weight * (x - mean(x)) / sqrt(var(x) + eps) + bias

Source: Ba et al., Layer Normalization (2016). The indexer's keys and the vision mergers have weight and bias, the diffusion
decoder's blocks and heads neither.
"""

from __future__ import annotations

from torch.nn import functional

from glmc.passes.declare import Fusion


def reference(x: "... H", weight: H = None, bias: H = None, *, eps):  # noqa: F722, F821
    return functional.layer_norm(x, (x.shape[-1],), weight, bias, eps)


_SIZES = ({"H": 8, "eps": 0.125}, {"H": 12, "...": (3, 2, 4), "eps": 0.25})

fusion = Fusion(reference, samples=(*_SIZES, *({**s, "weight": None, "bias": None} for s in _SIZES)))
