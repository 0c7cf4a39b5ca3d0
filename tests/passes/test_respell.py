"""Other authors' spellings: the reference's own steps give the same bits, and bring the fusion to light."""

from __future__ import annotations

import inspect

import pytest
import torch
import traced
from torch import nn

from glmc.passes import declare
from glmc.passes.declare import Maths, Spelling
from glmc.passes.match import Matcher
from glmc.passes.respell import respell
from glmc.passes.tidy import tidy

SPELLINGS = [(fusion.name, number, pair, dtype) for fusion in declare.all_fusions() for number, s in enumerate(fusion.also)
             for pair in range(0, len(s.theirs.samples), 2) for dtype in traced.DTYPES]


@pytest.fixture(params=[s for s in SPELLINGS if s[3] is torch.float32], ids=lambda f: "-".join(map(traced.label, f)))
def narrow(request):
    name, number, pair, dtype = request.param
    return name, declare.load(name).also[number], pair, dtype


@pytest.fixture(params=SPELLINGS, ids=lambda f: "-".join(map(traced.label, f)))
def spelling(request):
    name, number, pair, dtype = request.param
    return name, declare.load(name).also[number], pair, dtype


def traced_theirs(theirs: Maths, which: int, dtype, dynamic=None):
    return traced.graph_of(theirs.bound(theirs.present(which)), theirs.empty(which, dtype), theirs.settings(which, dtype),
                           dynamic)


def kinds(theirs: Maths, dtype):
    """Whether the spelling's tensors that may be wide are, in turn."""
    return (False, True) if theirs.may_be_wide and dtype is not torch.float32 else (False,)


def test_ours_has_the_bits_of_theirs(spelling):
    _, pair_of, pair, dtype = spelling
    theirs = pair_of.theirs
    for which in (pair, pair + 1):
        for wide in kinds(theirs, dtype):
            for seed, spread in enumerate((1.0, 1e-3, 300.0)):
                tensors = traced.tensors_of(theirs, dtype, wide, seed, spread, which)
                values = theirs.settings(which, dtype)
                wanted, found = (traced.everything(f(*tensors, **values)) for f in (theirs.function, pair_of.ours))
                assert traced.same(found, wanted)


def test_it_comes_to_the_normal_form_and_keeps_its_bits(spelling):
    name, pair_of, pair, dtype = spelling
    for which in (pair + 1,):
        graph = traced_theirs(pair_of.theirs, which, dtype)
        tensors = traced.tensors_of(pair_of.theirs, dtype, which=which)
        before = traced.run(graph, tensors)
        if name == "rms_norm" and dtype is torch.float32:  # its spelling differs only in when rows are widened
            assert len(traced.find(declare.load(name), graph).sites) == 1
            continue
        assert not [s for s in traced.find(declare.load(name), graph).sites if len(s.outputs) == 1], "nothing to respell"
        assert traced.normal_form(graph) >= 1
        assert traced.same(traced.run(graph, tensors), before)
        (site,) = traced.find(declare.load(name), graph).sites
        assert site.fusion == name
        text = str(graph)
        assert traced.normal_form(graph) == 0
        assert str(graph) == text, "once is enough"


def test_it_does_so_with_symbolic_sizes(narrow):
    name, pair_of, pair, dtype = narrow
    theirs = pair_of.theirs
    dynamic = [{i: torch.export.Dim.DYNAMIC for i, letter in enumerate(theirs.tensors[n].dims) if letter in ("B", "S")}
               or {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC} for n in theirs.present(pair)]
    graph = traced_theirs(theirs, pair, dtype, dynamic)
    tensors = traced.tensors_of(theirs, dtype, which=pair)
    before = traced.run(graph, tensors)
    assert traced.normal_form(graph) >= 1
    assert len(traced.find(declare.load(name), graph).sites) == 1
    assert traced.same(traced.run(graph, tensors), before)
    for node in graph.nodes:
        assert "val" in node.meta or node.op == "output"


def test_an_inner_value_used_elsewhere_keeps_its_bits(narrow):
    _, pair_of, pair, dtype = narrow
    theirs = pair_of.theirs
    graph = traced_theirs(theirs, pair, dtype)
    (result,) = graph.output_node().all_input_nodes
    inner = [n for n in graph.nodes if n.op == "call_function" and n is not result and isinstance(n.meta["val"], torch.Tensor)]
    graph.output_node().args = ((result, *inner),)
    tensors = traced.tensors_of(theirs, dtype, which=pair)
    before = traced.run(graph, tensors)
    traced.normal_form(graph)
    assert traced.same(traced.run(graph, tensors), before)


def test_both_have_one_signature():
    for fusion in declare.all_fusions():
        for spelling in fusion.also:
            theirs, ours = (list(inspect.signature(f).parameters) for f in (spelling.theirs.function, spelling.ours))
            assert theirs == ours


def test_another_spelling_is_found_once_it_is_declared():
    class Squared(nn.Module):
        def forward(self, x, weight):
            return squared(x, weight, eps=1e-5)

    def squared(x: "... H", weight: H, *, eps):  # noqa: F821, F722
        wide = x.to(torch.float32)
        return weight * (wide * torch.rsqrt((wide * wide).mean(-1, keepdim=True) + eps)).to(x.dtype)

    plain = declare.load("rms_norm")
    tensors = traced.unseen(plain, 0, 1).empty(0, torch.bfloat16)
    graph = traced.graph_of(Squared(), tensors, {})
    assert not traced.find(plain, graph).sites
    declared = declare.Fusion(plain.reference, plain.samples,
                              also=(Spelling(Maths(squared, plain.samples), plain.reference),))
    assert respell(graph, [declared], Matcher()) == {"rms_norm": 1}
    tidy(graph)
    (site,) = traced.find(plain, graph).sites
    assert site.scalars == {"eps": 1e-5}
