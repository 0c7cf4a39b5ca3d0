"""Every fusion keeps the same promises; a new file in passes/fusions is held to them without a line here."""

from __future__ import annotations

import dataclasses
import inspect

import pytest
import torch
import traced
from torch import fx

from glmc import kernels
from glmc.errors import UnknownName
from glmc.passes import declare
from glmc.passes.match import Matcher
from glmc.passes.prove import _in_float64
from glmc.passes.rewrite import rewrite

NAMES = declare.names()
DTYPES = (torch.float32, torch.bfloat16)
EDGES = (0.0, -0.0, 1.0, -1.0, 2.0**-133, -(2.0**-126), 1e-38, 1 + 2.0**-7, 255.0, 256.0, 257.0, -88.0, -104.0, 65504.0,
         -1e4)
"""Subnormals, the neighbours of one, where bfloat16 loses integers, and where float32's exponential overflows."""


def cases():
    return [pytest.param(name, which, dtype, id=f"{name}-{which}-{str(dtype)[6:]}")
            for name in NAMES for which in range(len(traced.SIZES)) for dtype in DTYPES]


@pytest.fixture(params=NAMES)
def fusion(request):
    return declare.load(request.param)


def judge(fusion, spelling, tensors):
    """`spelling` is no worse than twice the reference's own error against float64, plus one rounding step."""
    values = traced.scalars(fusion)
    exact = _in_float64(fusion.reference, tensors, values)
    own = traced.worst(fusion.reference(*tensors, **values), exact)
    assert traced.worst(spelling(*tensors, **values), exact) <= 2 * own + torch.finfo(tensors[0].dtype).eps


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_it_finds_itself_exactly_once(fusion, dtype):
    for which in range(len(fusion.samples)):
        tensors, values = fusion.sample(which, dtype)
        graph = traced.graph_of(fusion.reference, tensors, values)
        (site,) = traced.find(fusion, graph).sites
        assert list(site.tensors) == list(fusion.tensors)
        assert list(site.tensors.values()) == [n for n in graph.nodes if n.op == "placeholder"]
        assert site.scalars == values
        assert site.nodes == {n for n in graph.nodes if n.op == "call_function"}


@pytest.mark.parametrize(("name", "which", "dtype"), cases())
def test_rewriting_keeps_the_numbers(name, which, dtype):
    fusion = declare.load(name)
    tensors = traced.normal(fusion, traced.SIZES[which], dtype)
    graph = traced.graph_of(fusion.reference, tensors, traced.scalars(fusion))
    before = traced.run(graph, tensors)
    matcher = Matcher()
    (site,) = matcher.find(fusion, graph).sites
    assert site.scalars == traced.scalars(fusion)
    rewrite(graph, [site])
    after = traced.run(graph, tensors)
    assert [(r.dtype, r.shape) for r in after] == [(r.dtype, r.shape) for r in before]
    assert traced.worst(after, before) <= 4 * torch.finfo(dtype).eps
    assert not matcher.find(fusion, graph).sites, "matching again must find nothing"
    assert sum(n.target is kernels.op(name) for n in graph.nodes) == 1


@pytest.mark.parametrize(("name", "which", "dtype"), cases())
def test_the_kernel_passes_its_exam(name, which, dtype):
    fusion = declare.load(name)
    kernel = kernels.load(name, "cpu").run
    for seed, spread in enumerate((1.0, 1e-3, 30.0)):
        judge(fusion, kernel, traced.normal(fusion, traced.SIZES[which], dtype, seed, spread))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_kernel_on_edge_values(fusion, dtype):
    for start in range(len(EDGES)):
        tensors = traced.normal(fusion, traced.SIZES[1], dtype)
        for number, tensor in enumerate(tensors):
            rolled = torch.tensor(EDGES, dtype=torch.float64).roll(start + number)
            tensor.view(-1)[:] = rolled.repeat(tensor.numel() // len(EDGES) + 1)[: tensor.numel()].to(dtype)
        judge(fusion, kernels.load(fusion.name, "cpu").run, tensors)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_the_kernel_hides_no_nan(fusion, value):
    for hit in range(len(fusion.tensors)):
        tensors = traced.normal(fusion, traced.SIZES[1], torch.float32)
        tensors[hit].view(-1)[0] = value
        both = (fusion.reference, kernels.load(fusion.name, "cpu").run)
        results = [f(*tensors, **traced.scalars(fusion)) for f in both]
        reference, kernel = (r if isinstance(r, tuple) else (r,) for r in results)
        for a, b in zip(reference, kernel, strict=True):
            assert torch.equal(a.isnan(), b.isnan())
            assert torch.equal(a.isinf(), b.isinf())


def test_the_kernel_takes_what_the_reference_takes(fusion):
    def signature(function):
        return [(p.name, p.kind) for p in inspect.signature(function).parameters.values()]

    assert signature(kernels.load(fusion.name, "cpu").run) == signature(fusion.reference)


def test_spellings_equal_the_reference(fusion):
    for spelling in fusion.spellings:
        for sizes in traced.SIZES:
            for dtype in DTYPES:
                judge(fusion, spelling, traced.normal(fusion, sizes, dtype))


def test_another_spelling_matches_once_it_is_declared():
    def squared(x, weight, *, eps):
        wide = x.to(torch.float32)
        return weight * (wide * torch.rsqrt((wide * wide).mean(-1, keepdim=True) + eps)).to(x.dtype)

    plain = declare.load("rms_norm")
    graph = traced.graph_of(squared, traced.normal(plain, traced.SIZES[1], torch.bfloat16), {"eps": 1e-5})
    assert not traced.find(plain, graph).sites
    (site,) = traced.find(dataclasses.replace(plain, also=(squared,)), graph).sites
    assert site.scalars == {"eps": 1e-5}


def test_an_inner_value_used_elsewhere_is_refused(fusion):
    tensors, values = fusion.sample(0, torch.float32)
    graph = traced.graph_of(fusion.reference, tensors, values)
    (site,) = traced.find(fusion, graph).sites
    hidden = [n for n in graph.nodes if n in site.nodes and n not in site.outputs]
    assert hidden
    output = graph.output_node()
    kept = output.args
    for node in hidden:
        output.args = ((*kept[0], node),)
        found = traced.find(fusion, graph)
        assert not found.sites, node
        assert any("is used nowhere else" in m.sentence() for m in found.misses.values()), node


def test_sizes_that_only_broadcast_are_refused(fusion):
    for hit, dims in enumerate(fusion.tensors.values()):
        for at, letter in enumerate(dims):
            shared = sum(letter in other for other in fusion.tensors.values()) > 1
            if letter == "..." or letter.isdigit() or not shared:
                continue
            shapes = traced.shapes(fusion, traced.SIZES[1])
            shapes[hit][at - len(dims)] = 1
            tensors = [torch.empty(s, device="meta") for s in shapes]
            try:
                graph = traced.graph_of(fusion.reference, tensors, traced.scalars(fusion))
            except RuntimeError:
                continue  # the sizes do not even broadcast
            assert not traced.find(fusion, graph).sites, (dims, letter)


@pytest.mark.parametrize("name", ["rope_half", "qk_norm_rope"])
def test_an_odd_rotary_width_is_refused_with_its_reason(name):
    fusion = declare.load(name)
    sizes = {**traced.SIZES[1], "R": 7}
    tensors = [torch.empty(s, device="meta") for s in traced.shapes(fusion, sizes)]
    graph = traced.graph_of(fusion.reference, tensors, traced.scalars(fusion))
    found = traced.find(fusion, graph)
    assert not found.sites
    (miss,) = found.misses.values()
    assert "R is even" in miss.sentence()
    assert "'R': '7'" in miss.sentence()


def test_a_wrong_literal_size_is_refused():
    fusion = declare.load("rope_half")
    sizes = traced.SIZES[1]
    tensors = [torch.empty(s, device="meta") for s in traced.shapes(fusion, sizes)]
    tensors[1:] = [torch.empty(3, 5, 7, 6, device="meta")] * 2  # an angle for each head: not what the signature says
    found = traced.find(fusion, traced.graph_of(fusion.reference, tensors, {}))
    assert not found.sites
    assert "dim 5 should be 1" in next(iter(found.misses.values())).sentence()


def test_where_conditions_are_data():
    even, most = declare.even("R"), declare.at_most("R", "D")
    assert (even.text, most.text) == ("R is even", "R <= D")
    assert [even.holds({"R": r}) for r in (6, 7)] == [True, False]
    assert [most.holds({"R": r, "D": 6}) for r in (6, 7)] == [True, False]


def test_an_unknown_fusion_is_named():
    with pytest.raises(UnknownName, match="rms_norm"):
        declare.load("layer_norm")


def test_two_sites_in_one_graph_are_two_sites(fusion):
    tensors, values = fusion.sample(0, torch.float32)

    def twice(*tensors, **values):
        first, second = (fusion.reference(*tensors, **values) for _ in range(2))
        pair = [r if isinstance(r, tuple) else (r,) for r in (first, second)]
        return (*pair[0], *pair[1])

    graph: fx.Graph = traced.graph_of(twice, tensors, values)
    sites = traced.find(fusion, graph).sites
    assert len(sites) == 2
    assert not sites[0].nodes & sites[1].nodes
