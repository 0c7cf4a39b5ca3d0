"""Attention over the cache as one Attention node, in the layout in which the cache lies: [B, L, Hkv * D].

Query heads are grouped by the op itself. Transposes around it, which published code writes, are left out.
"""

from __future__ import annotations

from typing import Any

from glmc.kernels.onnx import alone, fixed, joined, only_float32, parted, shaped, transposed

MOVED = 4
"""See glmc.passes.prove: ONNX Runtime adds in another order than torch, which large scores that nearly tie amplify."""


def accepts(site) -> str | None:
    return only_float32(site, "query", "key", "value")


def emit(op: Any, query: Any, key: Any, value: Any, visible: Any = None, *, scale: float) -> Any:
    """query [B, H, S, D], key [B, Hkv, L, D], value [B, Hkv, L, V], visible bool [B, 1, S, L] or all -> [B, H, S, V]."""
    heads, kv_heads, width = fixed(query, 1), fixed(key, 1), fixed(value, 3)
    q, k, v = (joined(op, transposed(op, x, 1, 2)) for x in (query, key, value))
    out = shaped(op.Attention(q, k, v, visible, q_num_heads=heads, kv_num_heads=kv_heads, scale=scale), q, heads * width)
    return transposed(op, parted(op, out, heads, width), 1, 2)


run = alone(emit)
