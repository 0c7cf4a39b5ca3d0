"""Unifying a pattern with a graph: commutative operands, holes that bind scalars, literals that are facts."""

from __future__ import annotations

import pytest
import torch
import traced

from glmc.passes import declare
from glmc.passes.pattern import patterns
from glmc.passes.unify import Hole, Unifier, _same, outputs_of

A, B = torch.randn(2, 4), torch.randn(2, 4)


def unified(pattern, model, tensors=(A, B)):
    """The unifier after `pattern` met `model`, or None where they differ."""
    graphs = [traced.graph_of(f, list(tensors), {}) for f in (pattern, model)]
    unifier = Unifier(graphs[0])
    return unifier if unifier.match(outputs_of(graphs[0])[0], outputs_of(graphs[1])[0]) else None


@pytest.mark.parametrize(("pattern", "model"), [
    (lambda a, b: a + b.neg(), lambda a, b: b.neg() + a),
    (lambda a, b: (a * b.sin()) + b, lambda a, b: b + (b.sin() * a)),
    (lambda a, b: a.sin() * a.cos() + b, lambda a, b: b + a.cos() * a.sin()),
])
def test_sums_and_products_match_either_way(pattern, model):
    assert unified(pattern, model)


@pytest.mark.parametrize(("pattern", "model"), [
    (lambda a, b: a - b.neg(), lambda a, b: b.neg() - a),
    (lambda a, b: torch.cat([a, b.neg()]), lambda a, b: torch.cat([b.neg(), a])),
    (lambda a, b: a.sin() + a, lambda a, b: a.sin() + b),
    (lambda a, b: a.pow(2), lambda a, b: a.pow(3)),
    (lambda a, b: a.pow(2), lambda a, b: a.pow(2.5)),
    (lambda a, b: torch.add(a, b), lambda a, b: torch.add(a, b, alpha=2)),
    (lambda a, b: a.to(torch.float64), lambda a, b: a.to(torch.bfloat16)),
    (lambda a, b: a.sum(-1, keepdim=True), lambda a, b: a.sum(-1)),
])
def test_what_differs_does_not_match(pattern, model):
    assert unified(pattern, model) is None


def test_a_hole_binds_the_scalar_it_always_equalled():
    merged = Hole.merge((0.125, 8, [1, 2]), (0.25, 12, [1, 3]), {"eps": 0.125}, {"eps": 0.25})
    assert merged == (Hole("eps"), Hole(None), [1, Hole(None)])


def test_an_int_and_a_float_are_not_the_same_literal():
    assert Hole.merge(1, 1.0, {}, {}) == Hole(None)
    assert Hole.merge(True, True, {}, {}) is True


def test_a_hole_that_equals_a_scalar_in_one_sample_only_is_open():
    assert Hole.merge((8, 6), (12, 16), {"heads": 8, "width": 2}, {"heads": 16, "width": 16}) == (Hole(None), Hole(None))


def test_a_hole_binds_a_list_that_is_a_scalar_whole():
    merged = Hole.merge(([0, 1, 1], [4]), ([1, 0, 1], [4]), {"axis_map": (0, 1, 1)}, {"axis_map": (1, 0, 1)})
    assert merged == (Hole("axis_map"), [4])


@pytest.mark.parametrize("eps", [1.5625e-07, 1e-5, 1e-6, 0.5])
@pytest.mark.parametrize("dtype", traced.DTYPES, ids=str)
def test_eps_is_recovered_whatever_it_is(eps, dtype):
    fusion = declare.load("rms_norm")
    tensors = traced.unseen(fusion, 0, 1).empty(0, dtype)
    (site,) = traced.find(fusion, traced.graph_of(fusion.reference, tensors, {"eps": eps})).sites
    assert site.scalars == {"eps": eps}


def test_a_scalar_that_two_steps_disagree_on_is_no_scalar():
    fusion = declare.load("rope_table")
    maths = traced.unseen(fusion, 0, 1)
    graph = traced.reference_graph(maths, torch.float32)
    (site,) = traced.find(fusion, graph).sites
    first = next(n for n in graph.nodes if n.op == "call_function" and 0.75 in n.args)
    first.args = (first.args[0], 0.5)
    assert site.scalars["scale"] == 0.75
    assert not traced.find(fusion, graph).sites
    matched = [Unifier(p.opened().graph).match_all(site.outputs[0]) for p in patterns(fusion.maths, torch.float32)]
    assert not any(matched), "refused before anything is proved"


@pytest.mark.parametrize(("a", "b"), [(1, 1.0), (True, 1), (0, False), (2.0, 2)])
def test_literals_of_two_kinds_are_told_apart_where_torch_does(a, b):
    assert _same(a, a)
    assert _same(b, b)
    assert not (isinstance(a, float) != isinstance(b, float) and Hole.merge(a, b, {}, {}) == a)


def test_two_tensors_of_a_reference_may_be_one():
    fusion = declare.load("layer_norm")
    tensors = traced.unseen(fusion, 0, 1).empty(0, torch.float32)
    graph = traced.graph_of(lambda x, w: fusion.reference(x, w, w, eps=1e-5), tensors[:2], {})
    (site,) = traced.find(fusion, graph).sites
    assert site.tensors["weight"] is site.tensors["bias"]


def test_the_disagreement_is_where_it_went_furthest():
    pattern = traced.graph_of(lambda a, b: (a.sin() * b).cos() + b, [A, B], {})
    model = traced.graph_of(lambda a, b: (a.sin() - b).cos() + b, [A, B], {})
    unifier = Unifier(pattern)
    assert not unifier.match(outputs_of(pattern)[0], outputs_of(model)[0])
    assert unifier.disagreement[0].startswith("aten.mul.Tensor")
    assert unifier.disagreement[1].startswith("aten.sub.Tensor")
    assert unifier.furthest == 2
    assert not unifier.bound, "a failed attempt leaves nothing bound"
