"""Latent attention: keys and values of every head are products of one compressed row a slot (MLA).

    [k | v] of a head = kv_b latent,    y = softmax(scale (q_plain k^T + q_turned turned^T), where visible) v

Of each head's key a part is shared by all heads and turned by position; it is kept beside the compressed row. With `chosen`
a token sees those of its visible slots whose numbers stand there. A slot's keys need not be made: kv_b's rows may go into
the query and the result instead. Source: DeepSeek-V2 (2024); sparse choice: DeepSeek-V3.2 (2025).
"""

from __future__ import annotations

import torch
from torch.nn import functional

from glmc.passes.declare import Fusion


def reference(q_plain: "B S H N", q_turned: "B S H E", latent: "B L 1 R", turned: "B L 1 E", kv_b: "M R",  # noqa: F722
              visible: "bool B 1 S L", chosen: "int32 B S C < L" = None, *, scale):  # noqa: F722
    batch, tokens, heads, plain = q_plain.shape
    slots = latent.shape[1]
    query = torch.cat((q_plain.transpose(1, 2), q_turned.transpose(1, 2)), dim=-1)
    both = functional.linear(latent.transpose(1, 2), kv_b).view(batch, slots, -1, kv_b.shape[0] // heads).transpose(1, 2)
    own, value = both.split([plain, both.shape[-1] - plain], dim=-1)
    key = torch.cat((own, turned.transpose(1, 2).expand(-1, heads, -1, -1)), dim=-1)
    if chosen is not None:
        among = torch.zeros((batch, tokens, slots), dtype=torch.bool, device=query.device)
        visible = visible & among.scatter_(-1, chosen.long(), True).unsqueeze(1)
    return functional.scaled_dot_product_attention(query, key, value, attn_mask=visible, scale=scale, enable_gqa=True)


_SIZES = ({"B": 2, "S": 5, "L": 9, "H": 3, "N": 6, "E": 4, "R": 10, "M": 33, "C": 3, "scale": 0.25},
          {"B": 3, "S": 7, "L": 11, "H": 5, "N": 8, "E": 6, "R": 14, "M": 85, "C": 4, "scale": 0.5})

fusion = Fusion(reference, samples=(*({**s, "chosen": None} for s in _SIZES), *_SIZES))
