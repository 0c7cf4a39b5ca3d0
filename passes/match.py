"""Find a fusion's reference in a tidy graph and prove each find: the reference traced at the site gives the same steps.

A pattern is the reference, traced twice. Matching is structural with holes open; a find becomes a site only when the
reference, traced again at the site's own shapes, dtypes and scalars, unifies with the matched nodes with every literal
closed. What comes nearest without matching is kept as a `Miss`, with the first step that differs.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from glmc.passes.declare import Fusion
from glmc.passes.tidy import tidy
from glmc.passes.unify import Hole, Unifier, outputs_of
from glmc.trace import trace_function


@dataclass(frozen=True)
class Site:
    """One place where the fusion's maths stands, proved. Tensors are the graph's nodes, in the reference's order."""

    fusion: str
    place: str
    tensors: dict[str, fx.Node]
    scalars: dict[str, Any]
    nodes: frozenset[fx.Node]
    outputs: tuple[fx.Node, ...]

    def describe(self) -> dict[str, tuple[torch.dtype, tuple]]:
        """dtype and shape of each tensor: what a kernel's `accepts` may look at."""
        return {k: (n.meta["val"].dtype, tuple(n.meta["val"].shape)) for k, n in self.tensors.items()}


@dataclass(frozen=True)
class Miss:
    """How near an attempt came: `agreed` of `steps` steps, and the first step where reference and model differ."""

    fusion: str
    place: str
    agreed: int
    steps: int
    reference: str
    model: str

    def sentence(self) -> str:
        return (f"{self.place or 'model'}: {self.agreed} of {self.steps} steps of {self.fusion} agree, then\n"
                f"    reference   {self.reference}\n    model       {self.model}")


@dataclass
class Found:
    """All proved sites of one fusion in one graph, and the nearest misses by place."""

    fusion: str
    sites: list[Site] = field(default_factory=list)
    misses: dict[str, Miss] = field(default_factory=dict)

    def keep(self, miss: Miss) -> None:
        known = self.misses.get(miss.place)
        if known is None or miss.agreed > known.agreed:
            self.misses[miss.place] = miss


def place_of(node: fx.Node) -> str:
    """The path of the innermost module that the node was traced in, without the tracer's wrapper."""
    stack = node.meta.get("nn_module_stack") or {}
    path = next(reversed(stack.values()), ("", None))[0] if stack else ""
    return path.removeprefix("model.")


def _pattern(fusion: Fusion, spelling, pair: int, dtype: torch.dtype) -> fx.Graph:
    """A spelling traced at samples `pair` and `pair` + 1, tidied; literals that differ become holes."""
    traces = []
    for which in (pair, pair + 1):
        tensors, scalars = fusion.sample(which, dtype)
        traced = trace_function(spelling, tensors, scalars)
        tidy(traced.graph)
        traces.append((traced.graph, scalars))
    (first, values), (second, others) = traces
    for a, b in zip(list(first.nodes), list(second.nodes), strict=True):
        a.args, a.kwargs = (Hole.merge(x, y, values, others) for x, y in ((a.args, b.args), (a.kwargs, b.kwargs)))
    return first


class Matcher:
    """Patterns and proofs of every fusion, each made once and kept for the graphs of one compilation."""

    def __init__(self) -> None:
        self._patterns: dict[tuple, list[fx.Graph]] = {}
        self._proofs: dict[tuple, fx.Graph] = {}

    def find(self, fusion: Fusion, graph: fx.Graph) -> Found:
        """Every proved site of `fusion` in `graph`, in order, none sharing its first output with another."""
        found = Found(fusion.name)
        taken: set[fx.Node] = set()
        for node in graph.nodes:
            value = node.meta.get("val")
            if node.op != "call_function" or not isinstance(value, torch.Tensor) or not value.is_floating_point():
                continue
            for number, pattern in enumerate(self._pattern_of(fusion, value.dtype)):
                outputs = outputs_of(pattern)
                if outputs[0].target != node.target or node in taken:
                    continue
                site = self._attempt(fusion, number, pattern, node, found)
                if site is not None:
                    taken.update(site.outputs)
                    found.sites.append(site)
        return found

    def _pattern_of(self, fusion: Fusion, dtype: torch.dtype) -> list[fx.Graph]:
        key = (fusion.name, dtype)
        if key not in self._patterns:
            self._patterns[key] = [_pattern(fusion, spelling, pair, dtype) for pair in range(0, len(fusion.samples), 2)
                                   for spelling in fusion.spellings]
        return self._patterns[key]

    def _attempt(self, fusion: Fusion, number: int, pattern: fx.Graph, node: fx.Node, found: Found) -> Site | None:
        steps = sum(1 for n in pattern.nodes if n.op == "call_function")
        unifier = Unifier(pattern)
        place = place_of(node)

        def missed(agreed: int, reference: str, model: str) -> Any:
            found.keep(Miss(fusion.name, place, agreed, steps, reference, model))
            return None

        if not unifier.match(outputs_of(pattern)[0], node):
            known = found.misses.get(place)
            return missed(unifier.furthest, *unifier.disagreement) if known is None or unifier.furthest > known.agreed else None
        names = list(fusion.tensors)
        placeholders = [n for n in pattern.nodes if n.op == "placeholder"]
        tensors = {name: unifier.bound[p] for name, p in zip(names, placeholders, strict=True)}
        scalars = {k: unifier.scalars.get(k) for k in fusion.scalars}
        if None in scalars.values():
            return missed(steps, f"scalars {', '.join(fusion.scalars)}", f"recovered {scalars}")
        outputs = tuple(unifier.bound[o] for o in outputs_of(pattern))
        inner = frozenset(unifier.bound[n] for n in pattern.nodes if n.op == "call_function")
        both = next((t for t in tensors.values() if t in inner), None)
        if both is not None:
            return missed(steps, "inputs from outside", f"{both.name} is both an input and a step")
        for n in inner - set(outputs):
            outside = [user for user in n.users if user not in inner]
            if outside:
                return missed(steps, f"{n.name} is used nowhere else", f"used by {outside[0].format_node()}")
        dims = fusion.dims([tuple(t.meta["val"].shape) for t in tensors.values()])
        if isinstance(dims, str):
            return missed(steps, "dims of the signature", dims)
        broken = next((r for r in fusion.where if not r.holds(dims)), None)
        if broken is not None:
            return missed(steps, broken.text, f"with {({k: str(v) for k, v in dims.items()})}")
        site = Site(fusion.name, place, tensors, scalars, inner, outputs)
        again = Unifier(self._retrace(fusion, number, site))
        if not again.match(outputs_of(again.pattern)[0], node):
            return missed(again.furthest, *again.disagreement)
        if again.bound_tensors() != list(tensors.values()):
            return missed(steps, "the same tensors in the same places", "the reference at the site binds others")
        return site

    def _retrace(self, fusion: Fusion, number: int, site: Site) -> fx.Graph:
        """The reference traced at the site's real shapes, dtypes and scalars: symbolic dims stay symbolic."""
        values = [n.meta["val"] for n in site.tensors.values()]
        spelling = fusion.spellings[number % len(fusion.spellings)]
        key = (fusion.name, spelling, tuple(site.scalars.items()),
               tuple((v.dtype, tuple(str(s) for s in v.shape)) for v in values))
        if key not in self._proofs:
            sizes = _Sizes()
            tensors = [torch.empty([sizes.concrete(s) for s in v.shape], dtype=v.dtype, device="meta") for v in values]
            free = torch.export.Dim.DYNAMIC
            dynamic: list[dict[int, Any] | None] = [
                {i: free for i, s in enumerate(v.shape) if isinstance(s, torch.SymInt)} for v in values]
            traced = trace_function(spelling, tensors, site.scalars, dynamic if any(dynamic) else None)
            tidy(traced.graph)
            self._proofs[key] = traced.graph
        return self._proofs[key]


class _Sizes:
    """A distinct prime for each symbol, so that equal symbols stay equal and different ones do not meet by chance."""

    _PRIMES = (5, 7, 11, 13, 17, 19, 23, 29, 31, 37)

    def __init__(self) -> None:
        self._known: dict[str, int] = {}

    def concrete(self, size: Any) -> int:
        if not isinstance(size, torch.SymInt):
            return size
        return self._known.setdefault(str(size), self._PRIMES[len(self._known)])
