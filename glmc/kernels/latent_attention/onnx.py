"""Latent attention in two ways, of which the graph takes one: one new token a row reads compressed slots, many open them.

Closed, kv_b's rows go into the query and the result, and all heads share one key and one value a slot: the compressed row with
the part that is turned, and the row. Either way it is one Attention node with plain products around it.
"""

from __future__ import annotations

from typing import Any

from glmc.kernels.onnx import alone, fixed, kind, only_float32, parted, shaped, subgraph, transposed

MOVED = 4
"""See glmc.passes.prove: ONNX Runtime adds in another order than torch, which large scores that nearly tie amplify."""


def accepts(site) -> str | None:
    return only_float32(site, "q_plain", "q_turned", "latent", "turned", "kv_b")


def emit(op: Any, q_plain: Any, q_turned: Any, latent: Any, turned: Any, kv_b: Any, visible: Any, chosen: Any = None, *,
         scale: float) -> Any:
    """q_plain [B, S, H, N], q_turned [B, S, H, E], latent [B, L, 1, R], turned [B, L, 1, E], kv_b [H (N + V), R], visible
    bool [B, 1, S, L], chosen int32 [B, S, T] below L -> [B, H, S, V]."""
    heads, plain, width, wide = fixed(q_plain, 2), fixed(q_plain, 3), fixed(latent, 3), fixed(turned, 3)
    value = fixed(kv_b, 0) // heads - plain
    rows, turns = (op.Reshape(x, [0, 0, size]) for x, size in ((latent, width), (turned, wide)))
    allowed = _allowed(op, visible, chosen)

    def closed(inside: Any) -> Any:
        parts = inside.Reshape(kv_b, [heads, plain + value, width])
        key_rows, value_rows = inside.Split(parts, [plain, value], axis=1, _outputs=2)
        asked = transposed(inside, inside.MatMul(transposed(inside, q_plain, 1, 2), key_rows), 1, 2)
        query = inside.Reshape(inside.Concat(asked, q_turned, axis=-1), [0, 0, heads * (width + wide)])
        keys = inside.Concat(rows, turns, axis=-1)
        seen = inside.Attention(query, keys, rows, allowed, q_num_heads=heads, kv_num_heads=1, scale=scale)
        seen = inside.Transpose(inside.Reshape(seen, [0, 0, heads, width]), perm=[0, 2, 1, 3])
        out = inside.MatMul(seen, inside.Transpose(value_rows, perm=[0, 2, 1]))
        return inside.Reshape(inside.Transpose(out, perm=[0, 2, 1, 3]), [0, 0, heads * value])

    def opened(inside: Any) -> Any:
        both = inside.MatMul(rows, inside.Transpose(kv_b, perm=[1, 0]))
        own, values = inside.Split(inside.Reshape(both, [0, 0, heads, plain + value]), [plain, value], axis=3, _outputs=2)
        shared = inside.Tile(inside.Unsqueeze(turns, [2]), [1, 1, heads, 1])
        keys = inside.Reshape(inside.Concat(own, shared, axis=-1), [0, 0, heads * (plain + wide)])
        query = inside.Reshape(inside.Concat(q_plain, q_turned, axis=-1), [0, 0, heads * (plain + wide)])
        return inside.Attention(query, keys, inside.Reshape(values, [0, 0, heads * value]), allowed, q_num_heads=heads,
                                kv_num_heads=heads, scale=scale)

    one = op.Equal(op.Shape(q_plain, start=1, end=2), 1)
    branches = {name: subgraph(op, body, name) for name, body in (("then_branch", closed), ("else_branch", opened))}
    out = shaped(op.If(op.Squeeze(one, [0]), **branches), q_plain, heads * value)
    return transposed(op, parted(op, out, heads, value), 1, 2)


def _allowed(op: Any, visible: Any, chosen: Any) -> Any:
    """bool [B, 1, S, L]: the visible slots, of the chosen ones where there is a choice."""
    if chosen is None:
        return visible
    at = op.Unsqueeze(op.Cast(chosen, to=kind("int64")), [1])
    true = op.GreaterOrEqual(at, 0)
    among = op.ScatterElements(op.And(visible, op.Not(visible)), at, true, axis=-1)
    return op.And(visible, among)


run = alone(emit)
