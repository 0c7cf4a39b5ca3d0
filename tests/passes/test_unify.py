"""Unifying a pattern with a graph: commutative operands, holes that bind scalars, literals that are facts."""

from __future__ import annotations

import pytest
import torch
import traced

from glmc.passes import declare
from glmc.passes.unify import Hole, Unifier, outputs_of

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


@pytest.mark.parametrize("eps", [1.5625e-07, 1e-5, 1e-6, 0.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_eps_is_recovered_whatever_it_is(eps, dtype):
    fusion = declare.load("rms_norm")
    tensors = traced.normal(fusion, traced.SIZES[1], dtype)
    (site,) = traced.find(fusion, traced.graph_of(fusion.reference, tensors, {"eps": eps})).sites
    assert site.scalars == {"eps": eps}


def test_the_disagreement_is_where_it_went_furthest():
    pattern = traced.graph_of(lambda a, b: (a.sin() * b).cos() + b, [A, B], {})
    model = traced.graph_of(lambda a, b: (a.sin() - b).cos() + b, [A, B], {})
    unifier = Unifier(pattern)
    assert not unifier.match(outputs_of(pattern)[0], outputs_of(model)[0])
    assert unifier.disagreement[0].startswith("aten.mul.Tensor")
    assert unifier.disagreement[1].startswith("aten.sub.Tensor")
    assert unifier.furthest == 2
    assert not unifier.bound, "a failed attempt leaves nothing bound"
