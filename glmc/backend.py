"""`torch.compile(module, backend="glmc")`: tidy, prove, choose and rewrite under dynamo, then Inductor.

Only the passes run here: no families, no promises, no artefact. The ledger of the last graph is `last_ledger`.
Registered as an entry point, so that torch finds the name without glmc being imported.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import fx

from glmc.ledger import Ledger
from glmc.passes.choose import choose
from glmc.passes.rewrite import rewrite
from glmc.survey import find_sites, record
from glmc.target import named
from glmc.trace import trace
from glmc.trail import Trail

last_ledger: Ledger | None = None


class _Held(torch.nn.Module):
    """A dynamo graph with its parameters as inputs, in dynamo's order."""

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__()
        self.graph = graph

    def forward(self, *inputs: Any) -> Any:
        return self.graph(*inputs)


def compile_graph(graph: fx.GraphModule, inputs: list[Any]) -> Any:
    """Dynamo's backend: a graph and sample inputs in, a callable out.

    A graph with symbolic sizes among its inputs is not matched: it goes to Inductor as it is, and a warning says so.
    """
    from torch._inductor.compile_fx import compile_fx

    global last_ledger
    if any(not isinstance(i, torch.Tensor) for i in inputs):
        warnings.warn("glmc does not match graphs with symbolic sizes as inputs; Inductor compiles this one as it is",
                      stacklevel=2)
        return compile_fx(graph, inputs)
    traced = trace(_Held(graph), tuple(inputs))
    trail = Trail()
    found = find_sites(traced, trail)
    ledger = Ledger()
    for f in found:
        ledger.prove(f.fusion, [s.place for s in f.sites])
    decisions = choose([s for f in found for s in f.sites], traced.graph, named("cpu"))
    record(ledger, decisions)
    rewrite(traced.graph, [d.site for d in decisions if d.reason is None])
    trail.graph("rewritten", traced.graph)
    trail.say(1, ledger.text())
    last_ledger = ledger
    return compile_fx(fx.GraphModule(graph, traced.graph), inputs)
