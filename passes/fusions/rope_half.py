"""Turn the first R channels of each head by the token's angle; channel i is paired with channel i + R/2.

    y[i] = x[i] cos[i] - x[i + R/2] sin[i],    y[i + R/2] = x[i + R/2] cos[i + R/2] + x[i] sin[i + R/2]

Channels from R on pass unchanged (partial rotary). Source: Su et al., RoFormer (2021), in the halves of GPT-NeoX.
"""

from __future__ import annotations

import torch

from glmc.passes.declare import Fusion, at_most, even


def reference(x: "B H S D", cos: "B 1 S R", sin: "B 1 S R"):  # noqa: F722
    width = cos.shape[-1]
    turn, keep = x[..., :width], x[..., width:]
    low, high = turn[..., : turn.shape[-1] // 2], turn[..., turn.shape[-1] // 2:]
    turned = turn * cos + torch.cat((-high, low), dim=-1) * sin
    return torch.cat([turned, keep], dim=-1)


fusion = Fusion(
    reference,
    samples=({"B": 2, "S": 5, "H": 3, "D": 16, "R": 8}, {"B": 3, "S": 7, "H": 2, "D": 32, "R": 24},
             {"B": 2, "S": 5, "H": 3, "D": 16, "R": 16}, {"B": 3, "S": 7, "H": 2, "D": 24, "R": 24}),
    where=(even("R"), at_most("R", "D")),
)
