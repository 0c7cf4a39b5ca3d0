"""Choose the slots that sparse attention looks at: the best `top` by a cheap score of many small heads.

    score[s] = sum over heads of head_scale weight[h] relu(scale q[h] . k[s]),   chosen = top of score, of the visible slots

All in float32. Where fewer than `top` slots are visible, others fill the rest; attention does not look at them. Source:
DeepSeek-V3.2 (2025), in the spelling of GlmMoeDsaIndexer.
"""

from __future__ import annotations

import torch

from glmc.passes.declare import Fusion


def reference(query: "B S H D", index: "B L 1 D", shares: "B S H", visible: "bool B 1 S L",  # noqa: F722
              *, scale, head_scale, top):
    keys = index.squeeze(2)
    scores = torch.relu(torch.matmul(query.float(), keys.transpose(-1, -2).float().unsqueeze(1)) * scale)
    weights = shares.float() * head_scale
    total = torch.matmul(weights.unsqueeze(-2), scores).squeeze(-2)
    return total.masked_fill(~visible[:, 0], float("-inf")).topk(top, dim=-1).indices.to(torch.int32)


fusion = Fusion(reference, samples=(
    {"B": 2, "S": 5, "L": 13, "H": 3, "D": 8, "scale": 0.25, "head_scale": 0.5, "top": 3},
    {"B": 3, "S": 7, "L": 17, "H": 5, "D": 12, "scale": 0.125, "head_scale": 0.75, "top": 4}))
