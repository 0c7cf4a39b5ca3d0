"""Turn the first R channels of each head by the token's angle; channel 2i is paired with channel 2i + 1.

    y[2i] = x[2i] cos[2i] - x[2i+1] sin[2i],    y[2i+1] = x[2i+1] cos[2i+1] + x[2i] sin[2i+1]

Channels from R on pass unchanged (partial rotary). Source: Su et al., RoFormer (2021), in the pairs of GPT-J and GLM-4.
"""

from __future__ import annotations

import torch

from glmc.passes.declare import Fusion, at_most, even


def reference(x: "B H S D", cos: "B 1 S R", sin: "B 1 S R"):  # noqa: F722
    width = cos.shape[-1]
    turn, keep = x[..., :width], x[..., width:]
    rotated = torch.stack((-turn[..., 1::2], turn[..., 0::2]), dim=-1).flatten(-2)
    return torch.cat([turn * cos + rotated * sin, keep], dim=-1)


fusion = Fusion(
    reference,
    samples=({"B": 2, "S": 5, "H": 3, "D": 16, "R": 8}, {"B": 3, "S": 7, "H": 2, "D": 32, "R": 24},
             {"B": 2, "S": 5, "H": 3, "D": 16, "R": 16}, {"B": 3, "S": 7, "H": 2, "D": 24, "R": 24}),
    where=(even("R"), at_most("R", "D")),
)
