"""One name for ops that are spelled in several ways: our opaque ops by their plain names, attention, the square."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import fx

from glmc import kernels

_OURS = {
    "aten._grouped_mm.default": "grouped_mm",
    "transformers.grouped_mm_fallback.default": "grouped_mm",
    **{f"glmc.{name}.default": name for name in ("attention_packed", "delta_rule", "grouped_mm", "pick_lanes",
                                                 "place_media", "position_table")},
}
_SDPA = torch.ops.aten.scaled_dot_product_attention.default


def run(graph: fx.Graph) -> int:
    """Returns the number of nodes renamed."""
    renamed = 0
    for node in graph.nodes:
        name = str(node.target) if node.op == "call_function" else ""
        if name in _OURS:
            node.target = kernels.op(_OURS[name])
        elif name == "glmc.attention.default":
            *tensors, scale = node.args
            node.target, node.args, node.kwargs = _SDPA, tuple(tensors), {"scale": scale, "enable_gqa": True}
        elif node.target == _SDPA and _plainly(node):
            pass
        elif name == "aten.layer_norm.default" and len(node.args) != 5:
            # The dispatcher leaves out an eps that is its default; the sixth argument asks for a vendor's library.
            node.args = (*node.args, *(None, None, 1e-05)[len(node.args) - 2:])[:5]
        elif name == "aten.square.default":
            node.target, node.args = torch.ops.aten.pow.Tensor_Scalar, (node.args[0], 2)
        else:
            continue
        renamed += 1
    return renamed


def _plainly(node: fx.Node) -> bool:
    """Attention with the mask in its place, the scale written out and heads that may be grouped; whether it was not so."""
    names = [a.name for a in _SDPA._schema.arguments]
    given: dict[str, Any] = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
    if given.get("dropout_p", 0.0) != 0.0 or given.get("is_causal", False):
        return False
    width = given["query"].meta["val"].shape[-1]
    scale = given.get("scale")
    before = node.args, node.kwargs
    tensors = [given["query"], given["key"], given["value"], given.get("attn_mask")]
    node.args = tuple(tensors[:3] if tensors[3] is None else tensors)
    node.kwargs = {"scale": 1 / math.sqrt(width) if scale is None else scale, "enable_gqa": True}
    return (node.args, node.kwargs) != before
