"""Linear attention by the delta rule with a decay for each lane, one token after the other, in float32.

For each token: S <- diag(exp g) S;  S <- S + b k (v - S^T k)^T;  o = S^T q / sqrt(D), with q and k of length one.
Source of the rule: the Kimi Linear paper (arXiv 2510.26692), eps 1e-6 as transformers 5.23 has it.
"""

from __future__ import annotations

import torch


def accepts(site) -> str | None:
    return None


def _unit(x: torch.Tensor) -> torch.Tensor:
    return x / torch.sqrt((x * x).sum(-1, keepdim=True) + 1e-6)


def run(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, decay: torch.Tensor, share: torch.Tensor,
        state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """query, key [B, S, H, D], value [B, S, H, V], decay g [B, S, H, D], share b [B, S, H], state float32 [B, H, D, V].

    Returns (o [B, S, H, V] in value's dtype, the state after the last token); `state` itself stays as it is.
    """
    scale = query.shape[-1] ** -0.5
    queries, keys = _unit(query.float()) * scale, _unit(key.float())
    values, kept, shares = value.float(), decay.float().exp(), share.float()
    out = []
    for token in range(query.shape[1]):
        now = keys[:, token].unsqueeze(-1)
        state = state.float() * kept[:, token].unsqueeze(-1)
        missing = values[:, token] - (state * now).sum(-2)
        state = state + now * (shares[:, token].unsqueeze(-1) * missing).unsqueeze(-2)
        out.append((state * queries[:, token].unsqueeze(-1)).sum(-2))
    return torch.stack(out, dim=1).to(value.dtype), state
