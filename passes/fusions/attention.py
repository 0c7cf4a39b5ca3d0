"""Attention of new tokens over the cache: each query sees the slots that its row of `visible` allows, or all of them.

    y = softmax(scale q k^T, where visible) v

Query heads are grouped over their key head (H a multiple of K). Source: Ainslie et al., GQA (2023).
"""

from __future__ import annotations

from torch.nn import functional

from glmc.passes.declare import Fusion


def reference(query: "B H S D", key: "B K L D", value: "B K L V", visible: "bool B 1 S L" = None, *, scale):  # noqa: F722
    return functional.scaled_dot_product_attention(query, key, value, attn_mask=visible, scale=scale, enable_gqa=True)


_SIZES = ({"B": 2, "H": 6, "K": 2, "S": 5, "L": 9, "D": 8, "V": 8, "scale": 0.25},
          {"B": 3, "H": 8, "K": 4, "S": 7, "L": 11, "D": 16, "V": 16, "scale": 0.5})

fusion = Fusion(reference, samples=(*_SIZES, *({**s, "visible": None} for s in _SIZES)))
