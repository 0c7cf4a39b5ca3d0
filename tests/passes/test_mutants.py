"""The mistakes that `bench/mutants.py` seeds still fit the source, and the graphs changed mechanically are of every kind.

Running the seeded mistakes takes minutes: its last results stand in bench/results/mutants.json.
"""

from __future__ import annotations

import importlib
from collections import Counter
from pathlib import Path

import mutations
import pytest
import torch
import traced

from glmc.passes import declare

BENCH = Path(__file__).parents[2] / "bench"


@pytest.fixture
def mutants(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCH))
    return importlib.import_module("mutants")


def test_the_list_fits_the_source(mutants):
    assert mutants.stale() == []
    assert len(mutants.MUTANTS) >= 60


def test_a_list_that_does_not_fit_is_told(mutants, monkeypatch):
    _, file, old, *_ = mutants.MUTANTS[0]
    monkeypatch.setattr(mutants, "MUTANTS", (("gone", file, old + " and more", "", "unify"), ("twice", file, "\n", "", "unify"),
                                             ("same", file, old, old, "unify")))
    assert [fault.split(": ")[1] for fault in mutants.stale()] == ["gone", "twice", "same"]


def test_the_list_has_every_kind_of_mistake_and_every_check_is_there(mutants):
    kinds = {kind for kind, *_ in mutants.MUTANTS}
    assert kinds >= {"wrong eps", "pairing", "rotary width", "axis order", "missing scale", "swapped gate",
                     "off-by-one position", "dropped bias", "correction bias in the weights", "swapped roles", "cache slot",
                     "missing cast",
                     "literal check dropped", "commutativity extended", "size check dropped", "inner-use check dropped"}
    for file, _ in mutants.checks().values():
        assert (BENCH.parent / file).is_file(), file


@pytest.mark.parametrize("name", declare.names())
def test_every_reference_can_be_changed_in_many_ways(name):
    (source, *_) = mutations.sources(name)
    kinds = Counter(kind for kind, *_ in mutations.changes(source.graph))
    assert kinds["rewire"] >= 2
    assert kinds["drop"] >= 1
    if name not in ("attention", "layer_norm"):
        assert len(kinds) >= 4, kinds


def test_mutants_are_distinct_seeded_and_run():
    (source, *_) = mutations.sources("rope")
    torch.use_deterministic_algorithms(True)
    try:
        made = list(mutations.mutants(source, 5))
        again = list(mutations.mutants(source, 5))
    finally:
        torch.use_deterministic_algorithms(False)
    assert [m.label for m in made] == [m.label for m in again]
    assert len({str(m.graph) for m in made}) == len(made) >= 20
    for mutant in made:
        found = mutations.results(mutant.graph, source.tensors, mutations.fx.Interpreter)
        assert traced.same(found, mutant.results), mutant.label
    assert {m.kind for m in made if m.different} >= {"literal", "rewire", "drop", "op", "slice"}
