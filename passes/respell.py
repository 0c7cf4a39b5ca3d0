"""Bring other authors' spellings of a fusion to its reference's own steps, bits unchanged, before anything is matched.

A spelling is found and proved like a fusion: its pattern, then the same function traced again at the site. Its result is
computed by the reference's steps instead; what nobody needs any more is dropped. One normal form is left to match.
"""

from __future__ import annotations

from typing import Any

from torch import fx

from glmc.passes.declare import Fusion, Spelling
from glmc.passes.match import Found, Index, Matcher, Miss, place_of
from glmc.passes.pattern import Pattern
from glmc.passes.tidy import dead
from glmc.passes.unify import Unifier


def respell(graph: fx.Graph, fusions: list[Fusion], matcher: Matcher, found: dict[str, Found] | None = None) -> dict[str, int]:
    """Rewrite `graph` in place; returns how many spellings of each fusion were brought to its normal form.

    found: receives, by fusion, what came nearest to a spelling without being one.
    """
    counts: dict[str, int] = {}
    nearest = {} if found is None else found
    written = Index(graph)  # as its author wrote it: the reference's own steps are no mark of another spelling
    for fusion in fusions:
        for likely in (True, False):
            if likely or (fusion.name not in counts and fusion.name not in nearest):
                for spelling in fusion.also:
                    forms = [pattern for dtype in written.dtypes
                             for pattern in matcher.patterns(spelling.theirs, dtype, written.names, likely)]
                    _respell(graph, fusion.name, spelling, forms, matcher, counts, nearest)
    if counts:
        dead.run(graph)
        graph.lint()
    return counts


def _respell(graph: fx.Graph, name: str, spelling: Spelling, forms: list[Pattern], matcher: Matcher,
             counts: dict[str, int], nearest: dict[str, Found]) -> None:
    if not forms:
        return
    index = Index(graph)
    for pattern in forms:
        for node in list(index.roots(pattern)):
            unifier, scalars = matcher.proved(pattern, node)
            if isinstance(scalars, dict) and node.users:
                _write(graph, node, spelling, pattern, unifier, scalars, matcher)
                counts[name] = counts.get(name, 0) + 1
            elif scalars == "differs":
                _keep(nearest.setdefault(name, Found(name)), pattern, unifier, node)


def _keep(found: Found, pattern: Pattern, unifier: Unifier, node: fx.Node) -> None:
    place = place_of(node)
    if found.wants(place, unifier.furthest):
        found.keep(Miss(found.fusion, place, unifier.furthest, pattern.steps, *unifier.disagreement))


def _write(graph: fx.Graph, node: fx.Node, spelling: Spelling, pattern: Pattern, unifier: Unifier, scalars: dict[str, Any],
           matcher: Matcher) -> None:
    """Compute `node` by the reference's steps."""
    inputs = unifier.bound_tensors()
    ours = matcher.retracer.trace(spelling.ours, pattern.present, spelling.ours, [n.meta["val"] for n in inputs], scalars)
    new: dict[fx.Node, fx.Node] = dict(zip((n for n in ours.nodes if n.op == "placeholder"), inputs, strict=True))
    with graph.inserting_before(node):
        for step in ours.nodes:
            if step.op == "call_function":
                new[step] = graph.node_copy(step, new.__getitem__)
                new[step].meta = {**node.meta, "val": step.meta["val"]}
    (result,) = ours.output_node().all_input_nodes
    node.replace_all_uses_with(new[result])
