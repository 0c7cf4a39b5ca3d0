"""The cos and sin of every token's angles, each lane from its own row of positions.

    angle[i] = position[axis_map[i]] * inv_freq[i],    cos = scale cos(angle),    sin = scale sin(angle)

Without an axis map there is one row of positions. `axial` is the vision towers' table: the same frequencies for each of
a patch's coordinates, side by side. Angles are float32, the result has the graph's dtype. Source: Su et al., RoFormer
(2021); three rows as in Wang et al., Qwen2-VL (2024), the lanes' order by `glmc.axis_map`.
"""

from __future__ import annotations

import torch

from glmc.passes.declare import Fusion


def reference(positions: "int64 ...", inv_freq: "float32 n", *, axis_map, axial, scale, dtype):  # noqa: F722
    angle = positions.unsqueeze(-1).to(torch.float32) * inv_freq
    tables = angle.cos() * scale, angle.sin() * scale
    if axis_map is not None:
        tables = tuple(torch.ops.glmc.pick_lanes(t, axis_map) for t in tables)
    if axial:
        tables = tuple(t.flatten(-2) for t in tables)
    return tuple(t.to(dtype) for t in tables)


_TWO = ({"n": 6, "scale": 0.5, "...": (2, 5)}, {"n": 8, "scale": 2.0, "...": (3, 4)})
_MAPS = ((0, 1, 2, 0, 1, 2), (0, 0, 1, 1, 1, 2, 2, 2))

fusion = Fusion(
    reference,
    samples=(
        *({**s, "axis_map": None, "axial": False} for s in _TWO),
        *({**s, "axis_map": m, "axial": False, "...": (3, *s["..."])} for s, m in zip(_TWO, _MAPS, strict=True)),
        *({**s, "axis_map": None, "axial": True} for s in _TWO),
    ),
)
