"""Drop nodes whose result nobody uses, unless they write into their arguments."""

from __future__ import annotations

import torch
from torch import fx


def writes(node: fx.Node) -> bool:
    """Whether the node changes one of its arguments in place."""
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def run(graph: fx.Graph) -> int:
    """Returns the number of nodes dropped."""
    dropped = 0
    for node in reversed(list(graph.nodes)):
        if node.op in ("call_function", "get_attr") and not node.users and not writes(node):
            graph.erase_node(node)
            dropped += 1
    return dropped
