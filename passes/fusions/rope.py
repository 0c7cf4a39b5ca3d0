"""Turn lane i of each head's first 2n channels by the token's angle i; the other channels pass.

    y1[i] = x1[i] cos[i] - x2[i] sin[i],    y2[i] = x2[i] cos[i] + x1[i] sin[i]

`read` says where a lane's two channels stand in x, `write` where they go: -2 in halves (i and i + n), -1 in pairs (2i and
2i + 1). cos and sin hold each angle once; they may be float32 beside narrower heads, which are then widened and rounded
once. Source: Su et al., RoFormer (2021); halves as in GPT-NeoX and GLM-4.5, pairs as in GPT-J and GLM-4, pairs written as
halves in GLM's latent attention.
"""

from __future__ import annotations

import torch

from glmc.passes.declare import Fusion, at_most
from glmc.passes.fusions import _rope_spellings


def reference(x: "... H D", cos: "wide ... n", sin: "wide ... n", *, read, write):  # noqa: F722
    lanes = cos.shape[-1]
    cos, sin = cos.unsqueeze(-2), sin.unsqueeze(-2)
    turn = x[..., : 2 * lanes].to(cos.dtype)
    first, second = turn.unflatten(-1, (lanes, 2) if read == -1 else (2, lanes)).unbind(read)
    turned = torch.stack((first * cos - second * sin, second * cos + first * sin), dim=write).flatten(-2).to(x.dtype)
    return torch.cat([turned, x[..., 2 * lanes:]], dim=-1) if 2 * lanes < x.shape[-1] else turned


_SIZES = ({"H": 3, "D": 16, "n": 4}, {"H": 5, "D": 36, "n": 6}, {"H": 3, "D": 16, "n": 8}, {"H": 5, "D": 36, "n": 18})

fusion = Fusion(
    reference,
    samples=tuple({**s, "read": -1 - i % 2, "write": -2 + i % 2} for i, s in enumerate(_SIZES)),
    where=(at_most("n", "D", 2),),
    also=tuple(_rope_spellings.spellings(reference, _SIZES)),
)
