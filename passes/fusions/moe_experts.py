"""Each token through its chosen experts, a gated MLP each, and their sum by weight.

    y[t] = sum over k of weights[t, k] * down[e] (silu(gate[e] x[t]) * up[e] x[t]),  e = experts[t, k]

gate_up holds the gate's rows and then the up projection's. Rows are sorted by expert, so that each expert is one product;
the sum over a token's experts is float32. Source: the grouped_mm experts of transformers.
"""

from __future__ import annotations

import torch
from torch.nn import functional

from glmc.passes.declare import Fusion


def reference(x: "T H", experts: "int64 T K < E", weights: "float32 T K", gate_up: "E J H", down: "E H I"):  # noqa: F722
    tokens, top = experts.shape
    weight = weights.reshape(-1)
    ids, order = torch.sort(experts.reshape(-1))
    rows, weight = x[order // top], weight[order]
    count = torch.histc(ids.to(torch.float32), bins=gate_up.shape[0], min=0, max=gate_up.shape[0] - 1)
    ends = torch.cumsum(count, dim=0, dtype=torch.int32)
    gate, up = torch.ops.glmc.grouped_mm(rows, gate_up.transpose(-2, -1), ends).chunk(2, dim=-1)
    out = torch.ops.glmc.grouped_mm(functional.silu(gate) * up, down.transpose(-2, -1), ends)
    out = out * weight.unsqueeze(-1)
    back = torch.empty_like(order)
    back[order] = torch.arange(order.size(0), device=order.device)
    return out[back].view(tokens, top, x.shape[-1]).sum(dim=1).to(x.dtype)


fusion = Fusion(reference, samples=({"T": 5, "H": 16, "E": 6, "K": 2, "I": 12, "J": 24},
                                    {"T": 7, "H": 24, "E": 9, "K": 3, "I": 20, "J": 40}))
