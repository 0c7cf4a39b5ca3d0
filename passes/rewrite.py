"""Replace every taken site by one call of the fused op, once."""

from __future__ import annotations

import operator

from torch import fx

from glmc import kernels
from glmc.passes.match import Site


def rewrite(graph: fx.Graph, sites: list[Site]) -> int:
    """Rewrite `graph` in place; returns the number of steps that disappeared."""
    before = len(graph.nodes)
    order = {node: i for i, node in enumerate(graph.nodes)}
    for site in sites:
        last_input = max(site.tensors.values(), key=lambda n: order.get(n, -1))
        first_output = min(site.outputs, key=order.__getitem__)
        late = order.get(last_input, -1) > order[first_output]
        anchor = last_input if late else first_output
        with graph.inserting_after(anchor) if late else graph.inserting_before(anchor):
            fused = graph.call_function(kernels.op(site.fusion), tuple(site.tensors.values()), dict(site.scalars))
        fused.meta = dict(site.outputs[0].meta)
        order[fused] = order[anchor]
        if len(site.outputs) == 1:
            results = [fused]
        else:
            fused.meta["val"] = tuple(o.meta["val"] for o in site.outputs)
            with graph.inserting_after(fused):
                results = [graph.call_function(operator.getitem, (fused, i)) for i in range(len(site.outputs))]
        for old, new in zip(site.outputs, results, strict=True):
            new.meta = {**site.outputs[0].meta, "val": old.meta["val"]}
            order[new] = order[fused]
            old.replace_all_uses_with(new)
        for node in sorted(site.nodes, key=order.__getitem__, reverse=True):
            graph.erase_node(node)
    graph.lint()
    return before - len(graph.nodes)
