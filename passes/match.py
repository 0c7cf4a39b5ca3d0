"""Find a fusion's reference in a tidy graph and prove each find: the reference traced at the site gives the same steps.

Matching is structural with holes open; a find becomes a site only when the reference, traced again at the site's own
shapes, dtypes and scalars, unifies with the matched nodes with every literal closed. What comes nearest without matching
is kept as a `Miss`, with the first step that differs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from glmc.errors import InternalError
from glmc.passes.declare import Fusion, Maths
from glmc.passes.pattern import Pattern, patterns
from glmc.passes.retrace import Retracer
from glmc.passes.unify import Unifier, outputs_of


@dataclass(frozen=True)
class Site:
    """One place where the fusion's maths stands, proved. `tensors`: the graph's nodes, in the reference's order."""

    fusion: str
    place: str
    tensors: dict[str, fx.Node]
    scalars: dict[str, Any]
    nodes: frozenset[fx.Node]
    outputs: tuple[fx.Node, ...]

    def describe(self) -> dict[str, tuple[torch.dtype, tuple]]:
        """dtype and shape of each tensor."""
        return {k: (n.meta["val"].dtype, tuple(n.meta["val"].shape)) for k, n in self.tensors.items()}

    def seen(self) -> dict[str, Any]:
        """What a kernel's `accepts` may look at: dtype and shape of each tensor that is there, and every scalar."""
        return {**self.describe(), **self.scalars}


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

    def wants(self, place: str, agreed: int) -> bool:
        """Whether a miss that went so far is nearer than the one known there."""
        return place not in self.misses or agreed > self.misses[place].agreed

    def keep(self, miss: Miss) -> None:
        if self.wants(miss.place, miss.agreed):
            self.misses[miss.place] = miss


def place_of(node: fx.Node) -> str:
    """The path of the innermost module that the node was traced in, without the tracer's wrappers."""
    stack = node.meta.get("nn_module_stack") or {}
    path = next(reversed(stack.values()), ("", None))[0] if stack else ""
    while path.startswith(("model.", "language_model.")):
        path = path.split(".", 1)[1]
    return path


class Index:
    """A graph's steps by target, in order: where a pattern may begin. `dtypes` are the floats among them."""

    def __init__(self, graph: fx.Graph) -> None:
        self.by_target: dict[Any, list[fx.Node]] = {}
        self.order = {node: i for i, node in enumerate(graph.nodes)}
        for node in self.order:
            value = node.meta.get("val")
            if node.op == "call_function" and isinstance(value, torch.Tensor):
                self.by_target.setdefault(node.target, []).append(node)
        self.names = {n.target.overloadpacket.__name__ for n in self.order if isinstance(n.target, torch._ops.OpOverload)}
        found = {n.meta["val"].dtype for nodes in self.by_target.values() for n in nodes}
        self.dtypes = sorted((d for d in found if d.is_floating_point), key=str)

    def roots(self, pattern: Pattern) -> Iterator[fx.Node]:
        """The steps with the target and dtype of the pattern's first output."""
        first = pattern.outputs[0]
        return (n for n in self.by_target.get(first.target, ()) if n.meta["val"].dtype is first.meta["val"].dtype)


class Matcher:
    """Patterns and proofs, each made once and kept for the graphs of one compilation."""

    def __init__(self) -> None:
        self.retracer = Retracer()

    def patterns(self, maths: Maths, dtype: torch.dtype, names: set[str], likely: bool = True) -> list[Pattern]:
        """The patterns of `maths` whose first output has this dtype or is no float.

        Their marks are those that `names` has or, if unlikely, lacks.
        """
        made = [p for p in patterns(maths, dtype) if (p.marks <= names) is likely]
        made = [p for p in made if (kind := p.outputs[0].meta["val"].dtype) is dtype or not kind.is_floating_point]
        return sorted(made, key=lambda p: -p.steps)  # a smaller form may lie inside a larger one

    def find(self, fusion: Fusion, index: Index) -> Found:
        """Every proved site of `fusion`, in the graph's order; none shares an output with another or lies inside one.

        Where nothing is even near, the forms that cannot be there are tried too: they say what the graph lacks.
        """
        found = Found(fusion.name)
        taken: set[fx.Node] = set()
        for likely in (True, False):
            for dtype in index.dtypes if likely or not (found.sites or found.misses) else ():
                for pattern in self.patterns(fusion.maths, dtype, index.names, likely):
                    for node in index.roots(pattern):
                        site = None if node in taken else self._attempt(fusion, pattern, node, found)
                        if site is not None and taken.isdisjoint(site.outputs):
                            taken.update(site.outputs)
                            found.sites.append(site)
        inner = {node: site for site in found.sites for node in site.nodes - set(site.outputs)}
        found.sites = [s for s in found.sites if s.outputs[0] not in inner]
        found.sites.sort(key=lambda site: index.order[site.outputs[0]])
        return found

    def proved(self, pattern: Pattern, node: fx.Node) -> tuple[Unifier, dict[str, Any]] | tuple[Unifier, str]:
        """Match `pattern` at `node` and prove it there: the unifier with the scalars, or with why not."""
        if not pattern.holes:
            outline = Unifier(pattern.graph, outline=True)
            if not outline.match_all(node):
                return outline, "differs"
        unifier = Unifier(pattern.opened().graph)
        if not unifier.match_all(node):
            return unifier, "differs"
        scalars = {k: pattern.fixed[k] if k in pattern.fixed else unifier.scalars.get(k) for k in pattern.maths.scalars}
        lost = [k for k in scalars if k not in pattern.fixed and scalars[k] is None]
        if lost:
            return unifier, f"{', '.join(lost)} cannot be recovered"
        sizes = {k: tuple(n.meta["val"].shape) for k, n in zip(pattern.present, unifier.bound_tensors(), strict=True)}
        if isinstance(misfit := pattern.maths.dims(sizes), str):
            return unifier, misfit
        again = Unifier(self.retracer.compared(
            pattern.maths.function, pattern.present, pattern.maths.bound(pattern.present),
            [n.meta["val"] for n in unifier.bound_tensors()], scalars))
        if not again.match_all(node):
            return again, "differs"
        if again.bound_tensors() != unifier.bound_tensors():
            return unifier, "the reference at the site binds other tensors"
        return unifier, scalars

    def _attempt(self, fusion: Fusion, pattern: Pattern, node: fx.Node, found: Found) -> Site | None:
        place = place_of(node)

        def missed(agreed: int, reference: str, model: str) -> None:
            found.keep(Miss(fusion.name, place, agreed, pattern.steps, reference, model))

        unifier, scalars = self.proved(pattern, node)
        if scalars == "differs":
            if found.wants(place, unifier.furthest):
                missed(unifier.furthest, *unifier.disagreement)
            return None
        if isinstance(scalars, str):
            missed(pattern.steps, "every scalar recovered, dims of the signature", scalars)
            return None
        tensors = dict(zip(pattern.present, unifier.bound_tensors(), strict=True))
        outputs = tuple(unifier.bound[o] for o in outputs_of(pattern.graph))
        inner = frozenset(unifier.bound[n] for n in pattern.graph.nodes if n.op == "call_function" and n in unifier.bound)
        both = next((t for t in tensors.values() if t in inner), None)
        if both is not None:
            missed(pattern.steps, "inputs from outside", f"{both.name} is both an input and a step")
            return None
        for n in inner - set(outputs):
            outside = next((user for user in n.users if user not in inner), None)
            if outside is not None:
                missed(pattern.steps, f"{n.name} is used nowhere else", f"used by {outside.format_node()}")
                return None
        dims = fusion.maths.dims({k: tuple(t.meta["val"].shape) for k, t in tensors.items()})
        if isinstance(dims, str):
            raise InternalError("a proved site does not fit the signature", field=place, found=dims)
        broken = next((r for r in fusion.where if not r.holds(dims)), None)
        if broken is not None:
            missed(pattern.steps, broken.text, f"with {({k: str(v) for k, v in dims.items()})}")
            return None
        return Site(fusion.name, place, tensors, scalars, inner, outputs)
