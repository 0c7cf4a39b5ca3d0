"""Each clean-up does what it says, leaves alone what it should, and changes no bit."""

from __future__ import annotations

import itertools

import pytest
import torch
import traced
from torch import fx, nn

from glmc import kernels
from glmc.passes import declare, tidy
from glmc.passes.tidy import casts, dead, devices, dims, histogram, metadata, slices, spelling
from glmc.trace import trace, trace_function

X = torch.arange(24.0).reshape(2, 3, 4) / 7
IDS = torch.tensor([3, 0, 3, 7, 1, 3, 7])

DOES = {
    "a cast to its own dtype": (casts, lambda x: x.to(torch.float32) * 2, X),
    "a move to where it is": (casts, lambda x: x.to(x.device) + 1, X),
    "slices that take everything": (slices, lambda x: x[:, :] + x[0:], X),
    "the tracer's device": (devices, lambda x: x + torch.arange(4, device=x.device), X),
    "a value nobody uses": (dead, lambda x: (x.sin(), x.cos())[1], X),
}
LEAVES = {
    "a cast that rounds": (casts, lambda x: x.to(torch.bfloat16), X),
    "a cast that widens": (casts, lambda x: x.to(torch.float64), X),
    "no cast": (metadata, lambda x: x * 2, X),
    "a slice that leaves the first out": (slices, lambda x: x[:, 1:], X),
    "a slice that leaves the last out": (slices, lambda x: x[..., :3], X),
    "a slice that takes every second": (slices, lambda x: x[..., ::2], X),
    "a sum": (devices, lambda x: x + x.sum(), X),
    "a value somebody uses": (dead, lambda x: x.sin() + x.cos(), X),
    "a histogram of floats": (histogram, lambda x: torch.histc(x, bins=4, min=0, max=3), X),
    "any other product": (spelling, lambda x: x @ x.transpose(1, 2), X),
}


def graph_of(function, *tensors) -> fx.Graph:
    return trace_function(function, list(tensors), {}).graph


def same(a: fx.Graph, b) -> bool:
    return all(torch.equal(x, y) and x.dtype == y.dtype for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("case", DOES)
def test_it_does_its_work_and_no_bit_changes(case):
    module, function, x = DOES[case]
    graph = graph_of(function, x)
    if module is slices:
        dims.run(graph)  # an end at the end is no end
    before, size = traced.run(graph, [x]), len(graph.nodes)
    assert module.run(graph) >= 1
    graph.lint()
    assert same(traced.run(graph, [x]), before)
    dead.run(graph)
    if module is not devices:
        assert len(graph.nodes) < size
    assert module.run(graph) == 0, "once is enough"


@pytest.mark.parametrize("case", LEAVES)
def test_it_leaves_alone_what_it_should(case):
    module, function, x = LEAVES[case]
    graph = graph_of(function, x)
    metadata.run(graph)
    before = str(graph)
    assert module.run(graph) == 0
    if module is not casts:  # casts give one spelling to those that stay
        assert str(graph) == before


def test_devices_leave_no_trace():
    graph = graph_of(DOES["the tracer's device"][1], X.to("meta"))
    assert any("device" in n.kwargs for n in graph.nodes)
    devices.run(graph)
    assert not any(key in n.kwargs for n in graph.nodes for key in ("device", "pin_memory", "layout"))
    assert same(traced.run(graph, [X]), [X + torch.arange(4)]), "a graph traced on meta runs on the CPU"


def test_assertions_beside_casts_are_dropped():
    class Cast(nn.Module):
        def forward(self, x):
            return x.to(torch.bfloat16).float()

    graph = trace(Cast(), (X,)).graph
    assert metadata.run(graph) >= 1
    assert metadata.run(graph) == 0
    assert same(traced.run(graph, [X]), [X.bfloat16().float()])


@pytest.mark.parametrize("cut", [slice(None, -5), slice(-9, 2), slice(-9, -7), slice(2, -9), slice(5, None), slice(-2, 9),
                                 slice(1, -1), slice(-3, -1, 2), slice(0, 0)], ids=str)
@pytest.mark.parametrize("dim", [0, 1, 2])
def test_ends_beyond_the_tensor_keep_their_meaning(cut, dim):
    graph = graph_of(lambda x: x[(slice(None),) * dim + (cut,)].cos(), X)
    before = traced.run(graph, [X])
    dims.run(graph)
    assert same(traced.run(graph, [X]), before)
    tidy.tidy(graph)
    assert same(traced.run(graph, [X]), before)


DOUBLED = {
    "cos": lambda t: t.cos(), "a factor": lambda t: t * 0.5, "a cast": lambda t: t.to(torch.bfloat16),
    "a dim before": lambda t: t.unsqueeze(-2), "a dim behind": lambda t: t.unsqueeze(-1),
    "a sum": lambda t: t + t.sum(-1, True),
    "a turn": lambda t: t.transpose(-1, -2), "a table": lambda t: t * torch.arange(t.shape[-1], device=t.device),
}


@pytest.mark.parametrize("step", DOUBLED)
@pytest.mark.parametrize("double", [lambda t: torch.cat([t, t], -1), lambda t: t.repeat_interleave(2, -1)],
                         ids=["beside", "each"])
@pytest.mark.parametrize("part", [slice(None), slice(None, 4), slice(4, None), slice(1, 5), slice(None, None, 2)], ids=str)
def test_a_doubled_table_keeps_its_bits(step, double, part):
    graph = graph_of(lambda x: DOUBLED[step](double(x))[..., part], X)
    before = traced.run(graph, [X])
    tidy.tidy(graph)
    assert same(traced.run(graph, [X]), before)
    assert [n.meta["val"].shape for n in graph.output_node().all_input_nodes] == [before[0].shape]


@pytest.mark.parametrize("second", list(itertools.permutations(range(4), 2)))
def test_two_transpositions_keep_their_bits(second):
    x = torch.arange(2 * 3 * 4 * 5.0).reshape(2, 3, 4, 5)
    for first in itertools.permutations(range(4), 2):
        graph = graph_of(lambda x, a=first: x.transpose(*a).transpose(*second)[..., 1:3].sin(), x)
        before = traced.run(graph, [x])
        tidy.tidy(graph)
        assert same(traced.run(graph, [x]), before)
        turned = sum(n.target == torch.ops.aten.transpose.int for n in graph.nodes)
        assert turned <= (0 if set(first) == set(second) and 3 not in first else 2)


@pytest.mark.parametrize("shape", [(2, 12), (4, 2, 3), (2, 3, 4), (24,), (2, 1, 12), (1, 2, 12), (2, 12, 1), (12, 2), (2, 2, 6),
                                   (6, 4), (2, 4, 3, 1), (4, 6), (1, 24), (2, 2, 2, 3)], ids=str)
@pytest.mark.parametrize("before", [(2, 12), (2, 3, 4), (4, 6), (24,), (2, 1, 3, 4)], ids=str)
def test_views_keep_their_bits(before, shape):
    x = torch.arange(24.0).reshape(before)
    for view in (lambda x: x.view(shape) + 1, lambda x: x.sin().reshape(shape).cos()):
        graph = graph_of(view, x)
        right = traced.run(graph, [x])
        tidy.tidy(graph)
        assert same(traced.run(graph, [x]), right)
        assert right[0].shape == shape


def test_a_value_written_in_place_is_kept():
    def write(cache, at, x):
        cache.index_put_((at,), x[0:1])
        return x + 1

    at = torch.tensor([1])
    graph = graph_of(write, torch.zeros(2, 3, 4), at, X)
    dead.run(graph)
    cache = torch.zeros(2, 3, 4)
    fx.Interpreter(nn.Module(), graph=graph).run(cache, at, X)
    assert torch.equal(cache[1], X[0])


def test_a_cast_that_stays_has_one_spelling():
    spelt = [lambda x: x.to(torch.bfloat16), lambda x: x.bfloat16(), lambda x: x.type(torch.bfloat16),
             lambda x: x.to(x.device, torch.bfloat16), lambda x: x.to(torch.empty(0, dtype=torch.bfloat16))]
    targets = set()
    for function in spelt:
        graph = graph_of(function, X)
        tidy.tidy(graph)
        targets.add(tuple((str(n.target), n.args[1:]) for n in graph.nodes if n.op == "call_function"))
    assert targets == {(("aten.to.dtype", (torch.bfloat16,)),)}


@pytest.mark.parametrize(("ids", "experts"), [(IDS, 8), (torch.tensor([257, 3, 511, 258, 257]), 512)], ids=["few", "many"])
def test_experts_are_counted_exactly(ids, experts):
    def count(ids):
        return torch.histc(ids, bins=experts, min=0, max=experts - 1).cumsum(0)

    graph = graph_of(count, ids.to("meta"))
    assert histogram.run(graph) == 1
    assert histogram.run(graph) == 0
    (counted,) = traced.run(graph, [ids])
    assert torch.equal(counted, torch.bincount(ids, minlength=experts).cumsum(0).float())


def test_the_grouped_product_gets_its_one_name():
    def product(x, w, ends):
        return torch._grouped_mm(x, w, offs=ends)

    tensors = [torch.randn(6, 16).bfloat16(), torch.randn(2, 16, 8).bfloat16(), torch.tensor([2, 6], dtype=torch.int32)]
    graph = graph_of(product, *[t.to("meta") for t in tensors])
    assert spelling.run(graph) == 1
    assert spelling.run(graph) == 0
    (step,) = (n for n in graph.nodes if n.op == "call_function" and n.target is kernels.op("grouped_mm"))
    step.args, step.kwargs = (*step.args[:2], step.args[2] if len(step.args) > 2 else step.kwargs["offs"]), {}
    x, w, _ = tensors
    assert torch.equal(traced.run(graph, tensors)[0], torch.cat([x[:2] @ w[0], x[2:] @ w[1]]))


@pytest.mark.parametrize("form", traced.every(), ids=lambda f: "-".join(map(traced.label, f)))
def test_the_whole_changes_no_bit_of_a_reference(form):
    name, pair, dtype, wide = form
    fusion = declare.load(name)
    for which in (1, 2):
        maths = traced.unseen(fusion, pair, which)
        tensors = traced.tensors_of(maths, dtype, wide)
        graph = trace_function(maths.bound(maths.present(0)), tensors, maths.settings(0, dtype)).graph
        before = traced.run(graph, tensors)
        counts = tidy.tidy(graph)
        assert set(counts) == {m.__name__.rsplit(".", 1)[1] for m in tidy.ORDER}
        assert same(traced.run(graph, tensors), before)
        text = str(graph)
        tidy.tidy(graph)
        assert str(graph) == text, "tidying twice changes nothing"
