"""Count experts in float32: integers below 2^24 are exact there, and the CPU has no integer histogram.

transformers does the same on a CPU; on the meta device, where models are traced, it takes its integer branch.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx


def _plain(source: fx.Node) -> fx.Node:
    """The integers themselves, where they were only cast to others."""
    plain: Any = source
    while plain.target == torch.ops.aten.to.dtype and not plain.args[0].meta["val"].is_floating_point():
        plain = plain.args[0]
    return plain


def run(graph: fx.Graph) -> int:
    """Returns the number of histograms changed."""
    changed = 0
    for node in graph.find_nodes(op="call_function", target=torch.ops.aten.histc.default, sort=False):
        source = _plain(node.args[0])
        if source is not node.args[0] and source is node.args[0].args[0] and node.args[0].meta["val"].is_floating_point():
            continue
        if not source.meta["val"].is_floating_point():
            with graph.inserting_before(node):
                wide = graph.call_function(torch.ops.aten.to.dtype, (source, torch.float32))
            wide.meta = {**source.meta, "val": source.meta["val"].to(torch.float32)}
            node.args = (wide, *node.args[1:])
            node.meta["val"] = node.meta["val"].to(torch.float32)
            changed += 1
    return changed
