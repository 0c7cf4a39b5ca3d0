"""`torch.compile(module, backend="glmc")`: tidy, prove, choose and rewrite under dynamo, then Inductor.

Only the passes run here: no families, no promises, no artefact. `glmc.ledger_of(compiled)` tells what was found.
Registered as an entry point, so that torch finds the name without glmc being imported.

A graph that glmc may not rewrite reaches Inductor as dynamo made it; a warning and the ledger say why.
"""

from __future__ import annotations

import warnings
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from glmc import dynamo
from glmc.errors import UsageError
from glmc.ledger import Ledger
from glmc.passes.choose import choose
from glmc.passes.match import Matcher
from glmc.passes.rewrite import rewrite
from glmc.sites import find_sites, record
from glmc.target import named
from glmc.trail import Trail

_KEPT = "_glmc_ledger"


@dataclass(frozen=True)
class Graph:
    """One graph that dynamo handed over. name: dynamo's frame and version, "0/1"; open_sizes: its symbolic inputs.

    proved: fusion -> number of sites. unfused: why nothing in it was rewritten, or None.
    """

    name: str
    steps: int
    open_sizes: int
    proved: dict[str, int]
    unfused: str | None


@dataclass
class CompiledLedger(Ledger):
    """The ledger of all graphs compiled for one object so far; sites of a part compiled again are counted again."""

    graphs: list[Graph] = field(default_factory=list)

    def add(self, graph: Graph, other: Ledger) -> None:
        """Count one more graph and the sites of its ledger."""
        self.graphs.append(graph)
        for name, row in other.rows.items():
            mine = self.row(name)
            mine.proved = dict(Counter(mine.proved) + Counter(row.proved))
            mine.taken += row.taken
            mine.refused += row.refused
            if row.predicted_us is not None:
                mine.predicted_us = round((mine.predicted_us or 0.0) + row.predicted_us, 3)

    def text(self) -> str:
        """One line a graph, then one a fusion."""
        lines = [f"graph {g.name}: {g.steps} steps, {g.open_sizes} open sizes, "
                 + (f"left as it is: {g.unfused}" if g.unfused else "rewritten") for g in self.graphs]
        lines += [f"{r.fusion}: proved {sum(r.proved.values())}, taken {r.taken}, refused {len(r.refused)}"
                  for _, r in sorted(self.rows.items()) if r.proved]
        return "\n".join(lines)


class Backend:
    """Dynamo's backend: a graph and sample inputs in, a callable out.

    Equal to nothing, itself included: dynamo then never lets one compiled object run what was compiled for another, and
    each has a ledger of its own.
    """

    __hash__ = object.__hash__

    def __init__(self) -> None:
        self._matcher = Matcher()  # patterns and proofs are the same for all graphs

    def __eq__(self, other: object) -> bool:
        return False

    def __call__(self, graph: fx.GraphModule, inputs: list[Any], **asked: Any) -> Any:
        """Raises UsageError for `mode` and `options`, which have no meaning here."""
        from torch._inductor.compile_fx import compile_fx

        if asked:
            raise UsageError("the backend glmc takes no mode and no options", field="torch.compile", found=", ".join(asked))
        ledger, reason = Ledger(), dynamo.unreadable(graph, inputs)
        rewritten = graph
        if reason is None:
            rewritten, reason = _rewritten(graph, inputs, ledger, self._matcher)
        steps = sum(n.op not in ("placeholder", "output", "get_attr") for n in graph.graph.nodes)
        open_sizes = sum(isinstance(i, torch.SymInt) for i in inputs)
        proved = {name: sum(row.proved.values()) for name, row in ledger.rows.items() if row.proved}
        if reason is not None:
            warnings.warn(f"glmc leaves a graph to Inductor as it is: {reason}", stacklevel=2)
        compiled = compile_fx(rewritten if reason is None else graph, inputs)
        # Not before: Inductor may send dynamo back to trace once more, and this graph then never runs.
        _keep(Graph(dynamo.compile_id(), steps, open_sizes, proved, reason), ledger)
        return compiled


def _rewritten(graph: fx.GraphModule, inputs: list[Any], ledger: Ledger, matcher: Matcher,
               ) -> tuple[fx.GraphModule, str | None]:
    """Find, prove, choose and rewrite, written into `ledger`: the new graph, or why it must not take the old one's place."""
    trail = Trail()
    made = dynamo.retrace(graph, inputs)
    reason = dynamo.unfit(made, inputs)
    with dynamo.apart():
        searched = find_sites(dynamo.as_trace(made, inputs), trail, matcher)
    for found in searched.found:
        ledger.prove(found.fusion, [s.place for s in found.sites])
    decisions = choose(searched.sites, made.graph, named("cpu"), whole=True, refuses=lambda site: reason)
    record(ledger, decisions)
    rewrite(made.graph, [d.site for d in decisions if d.reason is None])
    dynamo.own_products(made.graph, searched.merged)
    made.recompile()
    trail.graph("rewritten", made.graph)
    trail.say(1, ledger.text())
    return made, reason


def _keep(graph: Graph, ledger: Ledger) -> None:
    """Add the graph's ledger to that of the compiled object, which lives as long as the object does."""
    owner = dynamo.owner()
    if owner is None or isinstance(owner, Backend):
        return  # called by hand, or through torch._dynamo.optimize: there is no compiled object to ask
    if not hasattr(owner, _KEPT):
        setattr(owner, _KEPT, CompiledLedger())
    getattr(owner, _KEPT).add(graph, ledger)


compile_graph = Backend()


def ledger_of(compiled: Any) -> CompiledLedger:
    """The ledger of everything compiled so far for what `torch.compile(..., backend="glmc")` returned.

    Raises UsageError where nothing was compiled yet, or `compiled` is nothing that torch.compile made.
    """
    kept = getattr(dynamo.owner_of(compiled), _KEPT, None)
    if kept is None:
        raise UsageError("nothing was compiled for this object yet", field="compiled",
                         hint='compile it with backend="glmc" and call it once')
    return kept
