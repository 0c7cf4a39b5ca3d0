"""Drop slices that take everything."""

from __future__ import annotations

import torch
from torch import fx

_END = 9223372036854775807


def run(graph: fx.Graph) -> int:
    """Returns the number of slices dropped."""
    dropped = 0
    for node in graph.find_nodes(op="call_function", target=torch.ops.aten.slice.Tensor, sort=False):
        source, _, start, end, step = [*node.args, None, None, None][:5]
        if start in (0, None) and end in (_END, None) and step in (1, None):
            node.replace_all_uses_with(source)
            graph.erase_node(node)
            dropped += 1
    return dropped
