"""The gate of a GLU: the sigmoid-weighted gate times the up projection.

    y = gate * sigmoid(gate) * up

Source: Shazeer, GLU Variants Improve Transformer (2020).
"""

from __future__ import annotations

from torch.nn import functional

from glmc.passes.declare import Fusion


def reference(gate: "... I", up: "... I"):  # noqa: F722
    return functional.silu(gate) * up


fusion = Fusion(reference, samples=({"I": 8}, {"I": 12, "...": (5,)}))
