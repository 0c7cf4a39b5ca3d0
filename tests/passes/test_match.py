"""Where matching and rewriting must be careful: conditions, inputs that are steps, sites behind each other, order of steps."""

from __future__ import annotations

import dataclasses

import torch
import traced

from glmc.passes import declare
from glmc.passes.declare import Relation
from glmc.passes.match import Index, Matcher
from glmc.passes.rewrite import rewrite
from glmc.passes.unify import outputs_of


def test_a_condition_that_does_not_hold_is_told():
    plain = declare.load("rms_norm")
    graph = traced.reference_graph(traced.unseen(plain, 0, 1), torch.float32)
    narrow = dataclasses.replace(plain, where=(Relation("H <= 4", lambda d: d["H"] <= 4),))
    found = Matcher().find(narrow, Index(graph))
    assert not found.sites
    (miss,) = found.misses.values()
    assert "H <= 4" in miss.sentence()
    assert "'H': '17'" in miss.sentence()
    assert len(traced.find(plain, graph).sites) == 1


def test_the_signatures_dims_are_bound_or_refused_in_words():
    norm, rope, attention = (declare.load(name).maths for name in ("rms_norm", "rope", "attention"))
    assert norm.dims({"x": (3, 5, 17), "weight": (17,)}) == {"H": 17}
    assert norm.dims({"x": (3, 5, 17), "weight": (1,)}) == "weight: dim H is 1, elsewhere 17"
    assert "has 2 dims" in norm.dims({"x": (3, 17), "weight": (1, 17)})
    assert rope.dims({"x": (2, 3, 8), "cos": (2, 2), "sin": (2, 2)}) == {"H": 3, "D": 8, "n": 2}
    assert "dim n is 1" in rope.dims({"x": (2, 3, 8), "cos": (2, 2), "sin": (2, 1)})
    right = {"query": (2, 6, 4, 8), "key": (2, 2, 5, 8), "value": (2, 2, 5, 3), "visible": (2, 1, 4, 5)}
    assert isinstance(attention.dims(right), dict)
    assert attention.dims({**right, "visible": (2, 6, 4, 5)}) == "visible: dim 6 should be 1"


def test_a_site_whose_input_is_one_of_its_steps_is_refused():
    fusion = declare.load("add_rms_norm")
    tensors = [torch.empty(3, 17, device="meta"), torch.empty(17, device="meta")]

    def own_sum(x, weight):
        total = x + x
        wide = total.to(torch.float32)
        return weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-5)).to(total.dtype), total

    (site,) = traced.find(fusion, traced.graph_of(own_sum, tensors, {})).sites
    assert site.tensors["residual"] is site.tensors["x"], "one tensor may stand for two"

    def gate_of_itself(x):
        gate = torch.nn.functional.silu(x)
        return gate * gate

    found = traced.find(declare.load("silu_mul"), traced.graph_of(gate_of_itself, tensors[:1], {}))
    assert not found.sites
    assert any("is both an input and a step" in m.sentence() for m in found.misses.values())


def test_a_site_is_written_behind_the_last_of_its_inputs():
    fusion = declare.load("add_rms_norm")
    tensors = [torch.randn(3, 17), torch.randn(3, 17), torch.randn(17)]

    def late_weight(residual, x, weight):
        total = residual + x
        wide = total.to(torch.float32)
        normed = (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-5)).to(total.dtype)
        return weight.sin() * normed, total

    graph = traced.graph_of(late_weight, tensors, {})
    before = traced.run(graph, tensors)
    sites = traced.find(fusion, graph).sites
    assert len(sites) == 1
    rewrite(graph, sites)
    assert traced.same(traced.run(graph, tensors, traced.ByReference), before)


def test_sites_that_read_each_other_are_rewritten_together():
    fusion = declare.load("rms_norm")
    tensors = [torch.randn(3, 17), torch.randn(17)]

    def thrice(x, weight):
        for eps in (1e-5, 1e-6, 1e-7):
            x = fusion.reference(x, weight, eps=eps)
        return x

    graph = traced.graph_of(thrice, tensors, {})
    before = traced.run(graph, tensors)
    sites = traced.find(fusion, graph).sites
    assert [s.scalars["eps"] for s in sites] == [1e-5, 1e-6, 1e-7]
    for order in (sites, sites[::-1]):
        graph = traced.graph_of(thrice, tensors, {})
        again = traced.find(fusion, graph).sites
        rewrite(graph, [again[sites.index(s)] for s in order])
        assert traced.same(traced.run(graph, tensors, traced.ByReference), before)


def test_searching_twice_finds_the_same():
    for fusion in declare.all_fusions():
        graph = traced.reference_graph(traced.unseen(fusion, 0, 1), torch.float32)
        text = str(graph)
        first, second = traced.find(fusion, graph).sites, traced.find(fusion, graph).sites
        assert first == second
        assert Matcher().find(fusion, Index(graph)).sites == first
        assert str(graph) == text
        assert len(outputs_of(graph)) == len(first[0].outputs)
