"""Patterns: their marks are steps of theirs, and an outline never refuses what the pattern itself would match."""

from __future__ import annotations

import pytest
import torch
import traced

from glmc.passes import declare
from glmc.passes.match import Index, Matcher
from glmc.passes.pattern import KEPT, Pattern, patterns
from glmc.passes.unify import Unifier, outputs_of

MATHS = {f"{f.name}-{'own' if n < 0 else n}": (f.maths if n < 0 else f.also[n].theirs)
         for f in declare.all_fusions() for n in range(-1, len(f.also))}


@pytest.fixture(params=MATHS)
def maths(request):
    return MATHS[request.param]


@pytest.mark.parametrize("dtype", traced.DTYPES, ids=traced.label)
def test_marks_are_steps_of_the_form_at_both_samples(maths, dtype):
    for form in patterns(maths, dtype):
        assert form.marks <= KEPT
        for which in (form.pair, form.pair + 1):
            assert form.marks <= Index(traced.reference_graph(maths, dtype, form.wide, which)).names


def test_marks_tell_spellings_apart():
    marks = [patterns(s.theirs, torch.float32)[0].marks for s in declare.load("rope").also]
    assert {"neg"} in marks
    assert {"sub"} in marks
    assert {"neg", "stack", "repeat_interleave"} in marks


@pytest.mark.parametrize("dtype", traced.DTYPES, ids=traced.label)
def test_an_outline_holds_at_sizes_and_scalars_it_has_never_seen(maths, dtype):
    for form in patterns(maths, dtype):
        fresh = Pattern(maths, form.pair, dtype, form.wide)
        (root, *_) = outputs_of(traced.reference_graph(maths, dtype, form.wide, form.pair + 1))
        assert Unifier(fresh.graph, outline=True).match_all(root)
        assert not fresh.holes
        assert Unifier(fresh.opened().graph).match_all(root)
        assert Unifier(fresh.graph, outline=True).match_all(root), "holes are no part of an outline"


def test_an_outline_knows_neither_literals_nor_which_operand_is_used_twice():
    a, b = torch.randn(2, 4), torch.randn(2, 4)

    def outlined(pattern, model):
        one, other = (traced.graph_of(f, [a, b], {}) for f in (pattern, model))
        return Unifier(one, outline=True).match_all(outputs_of(other)[0])

    assert outlined(lambda x, y: x[:, :2].sin() * x[:, 2:], lambda x, y: x[:, 1:3].sin() * y[:, 2:])
    assert outlined(lambda x, y: x.sin() * x.cos(), lambda x, y: x.sin() * y.cos())
    assert not outlined(lambda x, y: x.sin() * y, lambda x, y: x.cos() * y)
    assert not outlined(lambda x, y: torch.stack([x, y]), lambda x, y: torch.stack([x, y, y]))


def test_a_form_is_not_traced_for_a_graph_without_its_marks(monkeypatch):
    made = []
    monkeypatch.setattr(Pattern, "_trace", lambda self, which: made.append(self.marks))
    fusion = declare.load("qk_norm_rope")
    monkeypatch.setattr("glmc.passes.pattern._TRACED", {})
    assert Matcher().patterns(fusion.maths, torch.float32, {"mul", "rsqrt", "mean"}) == []
    assert not made


def test_what_lacks_every_mark_is_told_as_a_near_miss():
    fusion = declare.load("rms_norm")

    def by_root(x, w):
        return w * (x / (x.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt())

    graph = traced.graph_of(by_root, [torch.randn(3, 8), torch.randn(8)], {})
    found = traced.find(fusion, graph)
    assert not found.sites
    (miss,) = found.misses.values()
    assert "rsqrt" in miss.reference or "mul" in miss.reference
    assert "div" in miss.model


def test_marks_are_found_where_only_deterministic_algorithms_are_allowed():
    maths = declare.load("moe_experts").maths
    wanted = Pattern(maths, 0, torch.float32, False).marks
    torch.use_deterministic_algorithms(True)
    try:
        assert Pattern(maths, 0, torch.float32, False).marks == wanted >= {"histc", "cumsum"}
    finally:
        torch.use_deterministic_algorithms(False)
