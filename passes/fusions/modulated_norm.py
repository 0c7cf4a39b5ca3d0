"""Layer norm whose scale and shift come from the time: one row of each for all tokens of a picture.

    y = (x - mean(x)) / sqrt(var(x) + eps) * factor + shift

factor is 1 + scale, made outside: it is small, and published before or after it is spread over the tokens. Source: Perez et
al., FiLM (2018); Peebles and Xie, DiT (2023), as adaptive layer norm.
"""

from __future__ import annotations

from torch.nn import functional

from glmc.passes.declare import Fusion


def reference(x: "B S H", factor: "B 1 H", shift: "B 1 H", *, eps):  # noqa: F722
    return functional.layer_norm(x, (x.shape[-1],), None, None, eps) * factor + shift


fusion = Fusion(reference, samples=({"B": 2, "S": 5, "H": 8, "eps": 0.125}, {"B": 3, "S": 7, "H": 12, "eps": 0.25}))
