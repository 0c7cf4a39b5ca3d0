"""Each clean-up does what it says, leaves alone what it should, and changes no bit."""

from __future__ import annotations

import pytest
import torch
import traced
from torch import fx

from glmc import kernels
from glmc.passes import declare, tidy
from glmc.passes.tidy import casts, dead, devices, histogram, metadata, slices, spelling
from glmc.trace import trace_function

X = torch.arange(24.0).reshape(2, 3, 4) / 7
IDS = torch.tensor([3, 0, 3, 7, 1, 3, 7])

DOES = {
    "a cast to its own dtype": (casts, lambda x: x.to(torch.float32) * 2, X),
    "a move to where it is": (casts, lambda x: x.to(x.device) + 1, X),
    "assertions beside casts": (metadata, lambda x: x.to(torch.bfloat16).float(), X),
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
    before, size = traced.run(graph, [x]), len(graph.nodes)
    assert module.run(graph) >= 1
    graph.lint()
    assert same(traced.run(graph, [x]), before)
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


def test_a_value_written_in_place_is_kept():
    def write(cache, at, x):
        cache.index_put_((at,), x[0:1])
        return x + 1

    at = torch.tensor([1])
    graph = graph_of(write, torch.zeros(2, 3, 4), at, X)
    dead.run(graph)
    cache = torch.zeros(2, 3, 4)
    traced.run(graph, [cache, at, X])
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


def test_experts_are_counted_exactly():
    def count(ids):
        return torch.histc(ids, bins=8, min=0, max=7).cumsum(0)

    graph = graph_of(count, IDS.to("meta"))
    assert histogram.run(graph) == 1
    assert histogram.run(graph) == 0
    (counted,) = traced.run(graph, [IDS])
    assert torch.equal(counted, torch.bincount(IDS, minlength=8).cumsum(0).float())


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


@pytest.mark.parametrize("name", declare.names())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_whole_changes_no_bit_of_a_reference(name, dtype):
    fusion = declare.load(name)
    for sizes in traced.SIZES[1:3]:
        tensors, values = traced.normal(fusion, sizes, dtype), traced.scalars(fusion)
        graph = trace_function(fusion.reference, tensors, values).graph
        before = traced.run(graph, tensors)
        counts = tidy.tidy(graph)
        assert set(counts) == {m.__name__.rsplit(".", 1)[1] for m in tidy.ORDER}
        assert same(traced.run(graph, tensors), before)
        assert not any(tidy.tidy(graph).values()), "tidying twice changes nothing"
