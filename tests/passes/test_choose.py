"""Choosing: the larger gain wins, a site is refused with its reason, the order of fusions means nothing."""

from __future__ import annotations

import itertools

import pytest
import torch
import traced

from glmc import kernels
from glmc.errors import UsageError
from glmc.passes import declare
from glmc.passes.choose import choose, predicted_us
from glmc.target import Target, named

CPU = named("cpu")
PARTS = ("qk_norm_rope", "rms_norm", "rope")


@pytest.fixture
def overlapping():
    """A graph with one site of each of PARTS, the first of which holds the others."""
    graph = traced.reference_graph(traced.unseen(declare.load("qk_norm_rope"), 0, 1), torch.float32)
    return graph, [s for name in PARTS for s in traced.find(declare.load(name), graph).sites]


def reasons(decisions):
    return {d.site.fusion: d.reason for d in decisions}


def test_the_larger_gain_wins_and_the_outbid_are_told(overlapping):
    graph, sites = overlapping
    decided = reasons(choose(sites, graph, CPU))
    assert decided["qk_norm_rope"] is None
    for part in PARTS[1:]:
        assert decided[part].startswith("shares steps with qk_norm_rope at ")
    gains = {s.fusion: predicted_us(s, CPU) for s in sites}
    assert gains["qk_norm_rope"] > max(gains[p] for p in PARTS[1:]) > 0


def test_the_order_of_fusions_means_nothing(overlapping):
    graph, sites = overlapping
    for order in itertools.permutations(sites):
        decisions = choose(list(order), graph, CPU)
        assert [d.site for d in decisions] == list(order), "decisions come in the order of the sites"
        assert [d.site.fusion for d in decisions if d.reason is None] == ["qk_norm_rope"]


def test_only_what_the_knob_names_is_taken(overlapping, monkeypatch):
    monkeypatch.setenv("GLMC_ONLY", "rms_norm, rope")
    decided = reasons(choose(overlapping[1], overlapping[0], CPU))
    assert decided == {"qk_norm_rope": "GLMC_ONLY leaves it out", "rms_norm": None, "rope": None}


@pytest.mark.parametrize(("fuel", "taken"), [("0", 0), ("1", 1), ("2", 2), ("-1", 2)])
def test_fuel_bounds_the_rewrites(overlapping, monkeypatch, fuel, taken):
    monkeypatch.setenv("GLMC_ONLY", "rms_norm,rope")
    monkeypatch.setenv("GLMC_FUEL", fuel)
    decided = reasons(choose(overlapping[1], overlapping[0], CPU))
    assert sum(r is None for r in decided.values()) == taken
    if taken < 2:
        assert f"GLMC_FUEL={fuel} is spent" in decided.values()


def test_fuel_that_is_no_number_is_an_error(overlapping, monkeypatch):
    monkeypatch.setenv("GLMC_FUEL", "much")
    with pytest.raises(UsageError, match="GLMC_FUEL"):
        choose(overlapping[1], overlapping[0], CPU)


def test_a_site_across_a_cut_is_refused(overlapping):
    graph, sites = overlapping
    norm = next(s for s in sites if s.fusion == "rms_norm")
    for node in graph.nodes:
        layer = 0 if node in norm.nodes else 1
        node.meta["nn_module_stack"] = {"x": (f"model.layers.{layer}", None)}
    decided = reasons(choose(sites, graph, CPU))
    assert decided == {"qk_norm_rope": "crosses the cut between layer.0 and layer.1",
                       "rms_norm": None, "rope": None}


def test_a_kernel_may_refuse_a_site_and_says_why(overlapping, monkeypatch):
    asked = []

    def accepts(site):
        asked.append(site)
        return "heads are too wide for this machine"

    monkeypatch.setattr(kernels.load("qk_norm_rope", "cpu"), "accepts", accepts)
    decided = reasons(choose(overlapping[1], overlapping[0], CPU))
    assert decided == {"qk_norm_rope": "heads are too wide for this machine", "rms_norm": None, "rope": None}
    assert asked == [{"x": (torch.float32, (3, 7, 5, 14)), "weight": (torch.float32, (14,)),
                      "cos": (torch.float32, (3, 7, 3)), "sin": (torch.float32, (3, 7, 3)),
                      "eps": 2 * traced.EPS, "read": -1, "write": -2}]


def test_a_target_without_a_kernel_refuses_every_site(overlapping):
    target = Target("none", "none", "none", 40e9, 2.0)
    for name, reason in reasons(choose(overlapping[1], overlapping[0], target)).items():
        assert reason == f"no kernel for none: glmc/kernels/{name} has no none.py"


def test_twins_are_both_taken():
    fusion = declare.load("silu_mul")
    tensors = traced.unseen(fusion, 0, 1).empty(0, torch.float32)
    graph = traced.graph_of(lambda gate, up: (fusion.reference(gate, up), fusion.reference(up, gate)), tensors, {})
    sites = traced.find(fusion, graph).sites
    assert [d.reason for d in choose(sites, graph, CPU)] == [None, None]
