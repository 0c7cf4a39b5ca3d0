"""RoPE as one RotaryEmbedding node, whose caches hold a row for each token in the place of position numbers.

The op turns lanes that stand in halves or in pairs, of part of the width too, and leaves their channels where they stand.
"""

from __future__ import annotations

from typing import Any

from glmc.kernels.onnx import alone, fixed, joined, only_float32, parted


def accepts(site) -> str | None:
    if site["read"] != site["write"]:
        return "RotaryEmbedding leaves channels where they stand; here pairs become halves"
    if len(site["x"][1]) != 4 or len(site["cos"][1]) != 3:
        return "RotaryEmbedding takes heads of tokens of rows, [B, S, H, D], and a table of [B, S, n]"
    return only_float32(site, "x", "cos", "sin")


def emit(op: Any, x: Any, cos: Any, sin: Any, *, read: int, write: int) -> Any:
    """x [B, S, H, D], cos and sin [B, S, n] with 2n <= D -> [B, S, H, D]; see `glmc.rope` for read and write, which are one."""
    heads, width, turned = fixed(x, 2), fixed(x, 3), 2 * fixed(cos, 2)
    partial = {"rotary_embedding_dim": turned} if turned < width else {}
    out = op.RotaryEmbedding(joined(op, x), cos, sin, interleaved=int(read == -1), num_heads=heads, **partial)
    return parted(op, out, heads, width)


run = alone(emit)
