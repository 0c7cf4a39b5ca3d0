"""What only resembles a fusion is not one: no near miss is rewritten into something that computes other numbers.

Each mutant of `mutations` walks the road: tidied, its spellings brought to their normal form, searched for every fusion. Each
fusion's sites are rewritten and computed by their references; the result is the mutant's own, to the bit.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field

import mutations
import pytest
import torch
import traced
from torch import fx

from glmc.passes import declare
from glmc.passes.match import Index
from glmc.passes.rewrite import rewrite
from glmc.passes.tidy import tidy

MOST = [2, pytest.param(4, marks=pytest.mark.slow)]
"""Mutants of each kind from each form."""


@dataclass
class Tally:
    """What became of a fusion's mutants. `wrong`: rewritten into other numbers; `kept`: other numbers, still a site."""

    made: int = 0
    different: int = 0
    kept: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    kinds: set[str] = field(default_factory=set)


@pytest.fixture(scope="module", autouse=True)
def exactly_repeatable():
    """No memory is left unwritten, and products are summed in one order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)
    torch.set_num_threads(threads)


@functools.cache
def tally(name: str, most: int) -> Tally:
    """Every mutant of fusion `name`, at most so many of a kind, tried."""
    tally = Tally()
    for source in mutations.sources(name):
        for mutant in mutations.mutants(source, most):
            tally.made += 1
            tally.different += mutant.different
            tally.kinds.add(mutant.kind)
            try:
                sites, faults = tried(mutant, source)
            except Exception as fault:
                raise RuntimeError(f"{mutant.label}\n{mutant.graph}") from fault
            tally.wrong += [f"{mutant.label}: {fault}" for fault in faults]
            tally.kept += [mutant.label] if name in sites and mutant.different else []
    return tally


def tried(mutant: mutations.Mutant, source: mutations.Source) -> tuple[set[str], list[str]]:
    """The fusions found in one mutant, and what went wrong, each as a sentence."""
    graph, found, faults = mutant.graph, set(), []
    tidy(graph)
    if not traced.same(run(graph, source), mutant.results):
        faults.append("tidy changed the numbers")
    before = str(graph)
    traced.normal_form(graph)
    if str(graph) != before and not traced.same(run(graph, source), mutant.results):
        faults.append("respelling changed the numbers")
    index, before = Index(graph), str(graph)
    for fusion in declare.all_fusions():
        sites = traced.matcher().find(fusion, index).sites
        if not sites:
            continue
        copy, where = mutations.copied(graph)
        free, chosen = set(graph.nodes), []
        for site in sites:
            if site.nodes <= free:
                free -= site.nodes
                chosen.append(moved(site, where))
        rewrite(copy, chosen)
        found.add(fusion.name)
        if not traced.same(run(copy, source, traced.ByReference), mutant.results):
            faults.append(f"{fusion.name} rewritten into other numbers")
    if str(graph) != before:
        faults.append("searching changed the graph")
    return found, faults


def moved(site, where: dict[fx.Node, fx.Node]):
    """The same site in a copy of the graph."""
    return type(site)(**{**site.__dict__, "tensors": {k: where[n] for k, n in site.tensors.items()},
                         "nodes": frozenset(where[n] for n in site.nodes), "outputs": tuple(where[o] for o in site.outputs)})


def run(graph: fx.Graph, source: mutations.Source, how: type[fx.Interpreter] = fx.Interpreter) -> tuple:
    return mutations.results(graph, source.tensors, how)


@pytest.mark.parametrize("most", MOST)
@pytest.mark.parametrize("name", declare.names())
def test_no_near_miss_is_rewritten_into_other_numbers(name, most):
    found = tally(name, most)
    assert found.made >= 9
    assert not found.wrong, found.wrong


@pytest.mark.parametrize("most", MOST)
def test_there_are_many_and_most_are_refused(record_property, most):
    every = [tally(name, most) for name in declare.names()]
    record_property("made", sum(t.made for t in every))
    record_property("wrong", sum(len(t.wrong) for t in every))
    assert sum(t.made for t in every) >= 500
    assert len(set().union(*(t.kinds for t in every))) == 9
    different, kept = sum(t.different for t in every), [k for t in every for k in t.kept]
    assert different >= 400
    assert len(kept) <= different / 3, kept
