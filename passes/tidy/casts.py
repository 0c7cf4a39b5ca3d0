"""Drop conversions that convert nothing: `to` the dtype a tensor has. A move to the tracer's device is only its dtype."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

_TO = torch.ops.aten.to


def _dtype(node: fx.Node) -> Any:
    if node.target == _TO.dtype:
        return node.args[1]
    if node.target == _TO.dtype_layout:
        return node.kwargs.get("dtype")
    return node.args[2]


def run(graph: fx.Graph) -> int:
    """Returns the number of conversions dropped."""
    dropped = 0
    for node in list(graph.nodes):
        if node.op != "call_function" or node.target not in (_TO.dtype, _TO.dtype_layout, _TO.device):
            continue
        source, wanted = node.args[0], _dtype(node)
        if wanted in (None, source.meta["val"].dtype):
            node.replace_all_uses_with(source)
            graph.erase_node(node)
            dropped += 1
        else:
            node.target, node.args, node.kwargs = _TO.dtype, (source, wanted), {}
    return dropped
