"""From a packed projection to attention's inputs: split into q, k and v by heads, normalise q's and k's, turn them.

    q = rope(norm(heads of q)),    k = rope(norm(heads of k)),    v = heads of v

The norm may be absent, and may add a bias. With a cache k and v are written into slots[b, s] of row b, and the cache
comes back in their place. cos and sin hold each token's angles once; with an axis map they have a row for each axis.
Sources: see `rope` and `rms_norm`; the op's shape follows Ascend's split_qkv_rmsnorm_rope.
"""

from __future__ import annotations

import torch

from glmc.passes.declare import Fusion
from glmc.passes.fusions import rms_norm, rope


def reference(qkv: "... N", cos: "wide ... n", sin: "wide ... n", q_weight: D = None, k_weight: D = None,  # noqa: F722, F821
              q_bias: D = None, k_bias: D = None, keys: "B L K D" = None, values: "B L K D" = None,  # noqa: F722, F821
              slots: "int64 B S" = None, *, heads, kv_heads, eps, read, write, axis_map):  # noqa: F722
    width = qkv.shape[-1] // (heads + 2 * kv_heads)
    ends = heads * width, (heads + kv_heads) * width
    if axis_map is not None:
        cos, sin = (torch.ops.glmc.pick_lanes(t, axis_map) for t in (cos, sin))

    def turned(part, count, weight, bias):
        part = part.unflatten(-1, (count, width))
        if weight is not None:
            part = rms_norm.reference(part, weight, eps=eps)
        return rope.reference(part if bias is None else part + bias, cos, sin, read=read, write=write)

    q = turned(qkv[..., : ends[0]], heads, q_weight, q_bias)
    k = turned(qkv[..., ends[0]: ends[1]], kv_heads, k_weight, k_bias)
    v = qkv[..., ends[1]:].unflatten(-1, (kv_heads, width))
    if keys is None:
        return q, k, v
    rows = torch.arange(qkv.shape[0], device=qkv.device).unsqueeze(1)
    return q, keys.index_put_((rows, slots), k), values.index_put_((rows, slots), v)


def _samples(norm: bool, bias: bool, full: bool, cache: bool, axes: bool = False, wide: tuple[bool, ...] = (False,)):
    """One form: what is absent in it, and two sets of sizes."""
    absent = {**({} if norm else {"q_weight": None, "k_weight": None, "eps": None}),
              **({} if bias else {"q_bias": None, "k_bias": None}),
              **({} if cache else {"keys": None, "values": None, "slots": None}), "wide": wide}
    for i, (h, kv, d, n) in enumerate(((6, 2, 16, 4), (10, 5, 36, 6))):
        lead, lanes = (2 + i, 7 + 4 * i), d // 2 if full else n
        yield {"...": lead, "B": lead[0], "S": lead[1], "L": 13 + i, "K": kv, "D": d, "N": (h + 2 * kv) * d, "n": lanes,
               "heads": h, "kv_heads": kv, "eps": 0.125 + 0.125 * i, "read": -1 - i, "write": -2 + i,
               "axis_map": tuple((j + i) % 3 for j in range(lanes)) if axes else None,
               **({"cos": (3, *lead, lanes), "sin": (3, *lead, lanes)} if axes else {}), **absent}


fusion = Fusion(reference, samples=(
    *_samples(False, False, False, True), *_samples(True, False, False, True), *_samples(False, False, True, True),
    *_samples(False, False, False, False), *_samples(True, False, False, False), *_samples(True, True, False, False),
    *_samples(False, False, True, False, wide=(False, True)), *_samples(True, False, True, False, wide=(False, True)),
    *_samples(False, False, False, False, axes=True), *_samples(True, False, False, False, axes=True),
))
