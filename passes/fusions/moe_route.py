"""Choose each token's experts by their sigmoid scores plus a correction, within the best groups; weigh them by the scores.

    score = sigmoid(logits);  chosen = top experts of score + bias, in the `kept` groups whose two best sum highest
    weight = scale * score[chosen] / sum(score[chosen])

The correction decides who is chosen and nothing else. Source: DeepSeek-V3 (2024), in the spelling of Glm4MoeTopkRouter.
"""

from __future__ import annotations

import torch

from glmc.passes.declare import Fusion


def reference(logits: "float32 T E", bias: "float32 E", *, groups, kept, top, normalise, scale):  # noqa: F722
    scores = logits.sigmoid()
    choice = scores + bias
    best = choice.view(-1, groups, choice.shape[-1] // groups).topk(2, dim=-1)[0].sum(dim=-1)
    chosen_groups = torch.topk(best, k=kept, dim=-1, sorted=False)[1]
    mask = torch.zeros_like(best)
    mask.scatter_(1, chosen_groups, 1)
    allowed = mask.unsqueeze(-1).expand(-1, groups, choice.shape[-1] // groups).reshape(-1, choice.shape[-1])
    choice = choice.masked_fill(~allowed.bool(), float("-inf"))
    experts = torch.topk(choice, k=top, dim=-1, sorted=False)[1]
    weights = scores.gather(1, experts)
    if normalise:
        total = weights.sum(dim=-1, keepdim=True) + 1e-20
        weights /= total
    return weights * scale, experts


_SIZES = ({"T": 5, "E": 24, "groups": 4, "kept": 2, "top": 3, "scale": 0.5},
          {"T": 7, "E": 54, "groups": 6, "kept": 3, "top": 5, "scale": 1.5})

fusion = Fusion(reference, samples=tuple({**s, "normalise": n} for n in (True, False) for s in _SIZES))
