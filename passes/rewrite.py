"""Replace every taken site by one call of the fused op, once."""

from __future__ import annotations

import operator

from torch import fx

from glmc import kernels
from glmc.passes.declare import load
from glmc.passes.match import Site


def rewrite(graph: fx.Graph, sites: list[Site]) -> int:
    """Rewrite `graph` in place; returns the number of steps that disappeared. Of a fused step `meta` has the `site`, its id."""
    before = len(graph.nodes)
    now: dict[fx.Node, fx.Node] = {}  # what stands for the outputs of sites rewritten so far, which may be inputs of others
    for site in sites:
        inputs = [n and now.get(n, n) for n in _arguments(site)]
        last_input, first_output = max(n for n in inputs if n is not None), min(site.outputs)  # by their place in the graph
        late = last_input > first_output
        anchor = last_input if late else first_output
        with graph.inserting_after(anchor) if late else graph.inserting_before(anchor):
            fused = graph.call_function(kernels.op(site.fusion), tuple(inputs), dict(site.scalars))
        fused.meta = dict(site.outputs[0].meta)
        if len(site.outputs) == 1:
            results = [fused]
        else:
            fused.meta["val"] = tuple(o.meta["val"] for o in site.outputs)
            with graph.inserting_after(fused):
                results = [graph.call_function(operator.getitem, (fused, i)) for i in range(len(site.outputs))]
        for old, new in zip(site.outputs, results, strict=True):
            new.meta = dict(old.meta)
            now[old] = new
            old.replace_all_uses_with(new)
        fused.meta["site"] = id(site)
        for node in sorted(site.nodes, reverse=True):
            graph.erase_node(node)
    graph.lint()
    return before - len(graph.nodes)


def _arguments(site: Site) -> tuple[fx.Node | None, ...]:
    """The site's tensors in the reference's order: None for one that is absent before one that is there."""
    wanted = [site.tensors.get(name) for name in load(site.fusion).maths.tensors]
    while wanted and wanted[-1] is None:
        wanted.pop()
    return tuple(wanted)
