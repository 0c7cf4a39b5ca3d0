"""One name for ops that are spelled in several ways: the grouped product of experts, and attention over the cache."""

from __future__ import annotations

from torch import fx

from glmc import kernels

_SPELLINGS = {
    "aten._grouped_mm.default": "grouped_mm",
    "transformers.grouped_mm_fallback.default": "grouped_mm",
    "glmc.attention.default": "attention",
}


def run(graph: fx.Graph) -> int:
    """Returns the number of nodes renamed."""
    renamed = 0
    for node in graph.nodes:
        name = _SPELLINGS.get(str(node.target)) if node.op == "call_function" else None
        if name is not None:
            node.target = kernels.op(name)
            renamed += 1
    return renamed
