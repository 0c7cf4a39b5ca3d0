"""Every fusion keeps the same promises in all its forms; a new file in passes/fusions is held to them without a line here."""

from __future__ import annotations

import inspect

import pytest
import torch
import traced

from glmc import kernels
from glmc.errors import UnknownName
from glmc.passes import declare
from glmc.passes.rewrite import rewrite
from glmc.passes.unify import outputs_of

NAMES = declare.names()
FORMS = traced.every()
EDGES = (0.0, -0.0, 1.0, -1.0, 2.0**-133, -(2.0**-126), 1e-38, 1 + 2.0**-7, 255.0, 256.0, 257.0, -88.0, -104.0, 65504.0,
         -1e4)
"""Subnormals, the neighbours of one, where bfloat16 loses integers, and where float32's exponential overflows."""
SYMBOLIC = ("...", "B", "S", "T", "L")
"""Dims whose size a compiled model does not know."""


@pytest.fixture(params=NAMES)
def fusion(request):
    return declare.load(request.param)


@pytest.fixture(params=FORMS, ids=lambda f: "-".join(map(traced.label, f)))
def form(request):
    name, *rest = request.param
    return declare.load(name), *rest


def steps(graph):
    return {n for n in graph.nodes if n.op == "call_function"}


def whole(fusion, maths, graph, scalars):
    """The one site of `fusion` in `graph`, which is all of it."""
    (site,) = traced.find(fusion, graph).sites
    assert list(site.tensors) == list(maths.present(0))
    assert list(site.tensors.values()) == [n for n in graph.nodes if n.op == "placeholder"]
    assert site.scalars == scalars
    assert {k: type(v) for k, v in site.scalars.items()} == {k: type(v) for k, v in scalars.items()}
    assert site.outputs == outputs_of(graph)
    assert site.nodes == {n for n in steps(graph) if not isinstance(n.meta["val"], torch.SymInt)}
    return site


def test_it_finds_itself_at_its_samples(form):
    fusion, pair, dtype, wide = form
    for which in (pair, pair + 1):
        graph = traced.reference_graph(fusion.maths, dtype, wide, which)
        (site,) = traced.find(fusion, graph).sites
        assert site.scalars == fusion.maths.settings(which, dtype)


def test_it_finds_itself_at_sizes_and_scalars_it_has_never_seen(form):
    fusion, pair, dtype, wide = form
    for which in (0, 1, 2):
        maths = traced.unseen(fusion, pair, which)
        whole(fusion, maths, traced.reference_graph(maths, dtype, wide), maths.settings(0, dtype))


def test_it_finds_itself_with_symbolic_sizes(form):
    fusion, pair, dtype, wide = form
    maths = traced.unseen(fusion, pair, 1)
    dynamic = []
    for name, shape in maths.shapes(0).items():
        dims = maths.tensors[name].dims
        head = len(shape) - len(dims) + 1
        letters = ["..."] * head + list(dims[1:]) if dims[0] == "..." else list(dims)
        rows = name in ("positions", "cos", "sin") and maths.samples[0].get("axis_map")
        dynamic.append({i: torch.export.Dim.DYNAMIC for i, letter in enumerate(letters)
                        if letter in SYMBOLIC and not (rows and i == 0)})
    values = maths.settings(0, dtype)
    graph = traced.graph_of(maths.bound(maths.present(0)), maths.empty(0, dtype, wide), values, dynamic)
    symbols = {str(s) for n in graph.nodes if n.op == "placeholder" for s in n.meta["val"].shape
               if isinstance(s, torch.SymInt)}
    assert symbols, "nothing was symbolic"
    whole(fusion, maths, graph, values)


def test_rewriting_keeps_the_numbers(form):
    fusion, pair, dtype, wide = form
    for which in (1, 2):
        maths = traced.unseen(fusion, pair, which)
        tensors = traced.tensors_of(maths, dtype, wide, seed=which)
        graph = traced.reference_graph(maths, dtype, wide)
        before = traced.run(graph, tensors)
        (site,) = traced.find(fusion, graph).sites
        rewrite(graph, [site])
        assert traced.same(traced.run(graph, tensors, traced.ByReference), before)
        after = traced.run(graph, tensors)
        assert [(r.dtype, r.shape) for r in after] == [(r.dtype, r.shape) for r in before]
        close = traced.worst(traced.in_order(fusion.name, after), traced.in_order(fusion.name, before))
        assert close <= 4 * torch.finfo(dtype).eps
        assert not traced.find(fusion, graph).sites, "matching again must find nothing"
        assert sum(n.target is kernels.op(fusion.name) for n in graph.nodes) == 1


def judge(fusion, maths, tensors, dtype):
    """The CPU kernel is no worse than twice the reference's own error against float64, plus one rounding step."""
    present, scalars = maths.present(0), maths.settings(0, dtype)
    kernel = kernels.load(fusion.name, "cpu").run
    given = dict(zip(present, tensors, strict=True))
    sees = [None if n not in given else given[n].clone() for n in maths.tensors]
    results = [traced.everything(f) for f in (kernel(*sees, **scalars),
                                              maths.bound(present)(*(t.clone() for t in tensors), **scalars))]
    right = traced.exact(maths, present, tensors, scalars)
    mine, own = (traced.worst(traced.in_order(fusion.name, r), traced.in_order(fusion.name, right)) for r in results)
    assert mine <= 2 * own + torch.finfo(dtype).eps, (mine, own)
    assert [(r.dtype, r.shape) for r in results[0]] == [(r.dtype, r.shape) for r in results[1]]


def test_the_kernel_passes_its_exam(form):
    fusion, pair, dtype, wide = form
    for which in range(4):
        maths = traced.unseen(fusion, pair, which)
        for seed, spread in enumerate((1.0, 1e-3, 30.0)):
            judge(fusion, maths, traced.tensors_of(maths, dtype, wide, seed, spread), dtype)


# Of moe_route ties decide who is chosen; sums of products, as in moe_experts, have no bound of their own.
@pytest.mark.parametrize("form", [f for f in FORMS if not f[0].startswith("moe_")], indirect=True,
                         ids=lambda f: "-".join(map(traced.label, f)))
def test_the_kernel_on_edge_values(form):
    fusion, pair, dtype, wide = form
    maths = traced.unseen(fusion, pair, 1)
    for start in range(0, len(EDGES), 2):
        tensors = traced.tensors_of(maths, dtype, wide)
        for number, tensor in enumerate(t for t in tensors if t.is_floating_point()):
            rolled = torch.tensor(EDGES, dtype=torch.float64).roll(start + number)
            tensor.view(-1)[:] = rolled.repeat(tensor.numel() // len(EDGES) + 1)[: tensor.numel()].to(tensor.dtype)
        judge(fusion, maths, tensors, dtype)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", [n for n in NAMES if n != "moe_route"])  # which expert wins against NaN is not said
def test_the_kernel_hides_no_nan(name, value):
    fusion = declare.load(name)
    maths = traced.unseen(fusion, 0, 1)
    present, scalars = maths.present(0), maths.settings(0, torch.float32)
    kernel = kernels.load(fusion.name, "cpu").run
    for hit in range(len(present)):
        tensors = traced.tensors_of(maths, torch.float32)
        if not tensors[hit].is_floating_point():
            continue
        tensors[hit].view(-1)[0] = value
        given = dict(zip(present, (t.clone() for t in tensors), strict=True))
        plain = traced.everything(maths.bound(present)(*(t.clone() for t in tensors), **scalars))
        fused = traced.everything(kernel(*(given.get(n) for n in maths.tensors), **scalars))
        for a, b in zip(plain, fused, strict=True):
            assert torch.equal(a.isnan(), b.isnan())
            assert torch.equal(a.isinf(), b.isinf())


def test_the_kernel_takes_what_the_reference_takes(fusion):
    def signature(function):
        return [(p.name, p.kind, p.default) for p in inspect.signature(function).parameters.values()]

    assert signature(kernels.load(fusion.name, "cpu").run) == signature(fusion.reference)


def test_an_inner_value_used_elsewhere_is_refused(form):
    fusion, pair, dtype, wide = form
    graph = traced.reference_graph(fusion.maths, dtype, wide, pair)
    (site,) = traced.find(fusion, graph).sites
    output = graph.output_node()
    kept = outputs_of(graph)
    for node in [n for n in graph.nodes if n in site.nodes and n not in site.outputs]:
        output.args = ((*kept, node),)
        found = traced.find(fusion, graph)
        assert all(node in s.outputs or node not in s.nodes for s in found.sites), "a smaller form may end there"
        assert any("is used nowhere else" in m.sentence() for m in found.misses.values()), node


def test_an_output_nobody_wants_is_still_a_site(form):
    fusion, pair, dtype, wide = form
    graph = traced.reference_graph(fusion.maths, dtype, wide, pair)
    outputs = outputs_of(graph)
    if len(outputs) > 1:
        (site,) = traced.find(fusion, graph).sites
        assert site.outputs == outputs
        graph.output_node().args = (outputs[-1:],)
        assert len(traced.find(fusion, graph).sites) <= 1


def test_sizes_that_only_broadcast_are_refused(fusion):
    maths = traced.unseen(fusion, 0, 1)
    seen = 0
    for name, tensor in maths.tensors.items():
        for at, letter in enumerate(tensor.dims):
            shared = sum(letter in maths.tensors[n].dims for n in maths.present(0)) > 1
            shapes = maths.shapes(0)
            if name not in shapes or letter == "..." or letter.isdigit() or not shared:
                continue
            shapes[name][at - len(tensor.dims)] = 1
            tensors = [torch.empty(s, dtype=maths.tensors[n].kind(torch.float32, False), device="meta")
                       for n, s in shapes.items()]
            try:
                graph = traced.graph_of(maths.bound(maths.present(0)), tensors, maths.settings(0, torch.float32))
            except (RuntimeError, ValueError, IndexError, ZeroDivisionError):
                continue  # the sizes do not even broadcast
            seen += 1
            for site in traced.find(fusion, graph).sites:
                dims = maths.dims({k: tuple(t.meta["val"].shape) for k, t in site.tensors.items()})
                assert isinstance(dims, dict), (name, letter, dims)
    assert seen or fusion.name in ("layer_norm", "moe_route", "rope_table")


def test_an_angle_for_each_head_is_refused():
    fusion = declare.load("rope")
    tensors = [torch.empty(3, 7, 5, 14, device="meta"), *(torch.empty(3, 7, 5, 3, device="meta"),) * 2]

    def turn(x, cos, sin):
        first, second = x[..., :6].unflatten(-1, (2, 3)).unbind(-2)
        turned = torch.stack((first * cos - second * sin, second * cos + first * sin), dim=-2).flatten(-2)
        return torch.cat([turned, x[..., 6:]], dim=-1)

    assert not traced.find(fusion, traced.graph_of(turn, tensors, {})).sites


def test_where_conditions_are_data():
    most, twice = declare.at_most("n", "D"), declare.at_most("n", "D", 2)
    assert (most.text, twice.text) == ("n <= D", "2n <= D")
    assert [most.holds({"n": n, "D": 6}) for n in (6, 7)] == [True, False]
    assert [twice.holds({"n": n, "D": 6}) for n in (3, 4)] == [True, False]


def test_an_unknown_fusion_is_named():
    with pytest.raises(UnknownName, match="rms_norm"):
        declare.load("batch_norm")


def test_two_sites_in_one_graph_are_two_sites(form):
    fusion, pair, dtype, wide = form
    maths = traced.unseen(fusion, pair, 1)
    values, count = maths.settings(0, dtype), len(maths.present(0))

    def twice(*tensors):
        call = maths.bound(maths.present(0))
        return tuple(r for some in (tensors[:count], tensors[count:]) for r in traced.everything(call(*some, **values)))

    graph = traced.graph_of(twice, [*maths.empty(0, dtype, wide), *maths.empty(0, dtype, wide)], {})
    first, second = traced.find(fusion, graph).sites
    assert not first.nodes & second.nodes
    assert not set(first.tensors.values()) & set(second.tensors.values())
