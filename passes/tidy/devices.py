"""Drop the device that tracing on meta writes into factory calls: the engine that runs the region supplies its own."""

from __future__ import annotations

from torch import fx

_DROPPED = ("device", "pin_memory", "layout")


def run(graph: fx.Graph) -> int:
    """Returns the number of calls changed."""
    changed = 0
    for node in graph.nodes:
        if node.op == "call_function" and any(key in node.kwargs for key in _DROPPED):
            node.kwargs = {k: v for k, v in node.kwargs.items() if k not in _DROPPED}
            changed += 1
    return changed
