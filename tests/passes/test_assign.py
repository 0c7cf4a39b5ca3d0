"""Assignments to the head or tail of a tensor become concatenations with the same bits; what could be seen elsewhere stays."""

from __future__ import annotations

import pytest
import torch
from torch import fx, nn

from glmc.passes.tidy import assign, casts, dead
from glmc.trace import trace


class Called(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.forward = function


def tail(x, new):
    y = x.sin()
    y[:, 2:] = new[:, 2:] * y[:, 2:].cos()
    return y + 1


def twice(x, new):
    y = x.sin()
    y[:, 2:] = new[:, 2:]
    y[1:] = y[:1] * 3
    return y


def last_dim(x, new):
    y = x.sin()
    y[..., 1:] = new[..., 1:]
    return y.transpose(0, 1)


def cast_first(x, new):
    y = x.sin().to(x.dtype)
    y[:, 2:] = new[:, 2:]
    return y


def view_kept(x, new):
    y = x.sin()
    kept = y[:, :4].reshape(-1)
    y[:, 2:] = new[:, 2:]
    return kept + y.sum()


def of_input(x, new):
    x[:, 2:] = new[:, 2:]
    return x * 2


def of_view(x, new):
    y = x.sin()
    y.view(-1)[2:] = new.view(-1)[2:]
    return y


def head(x, new):
    y = x.sin()
    y[:, :2] = new[:, :2] * y[:, :2].cos()
    return y + 1


def both(x, new):
    y = x.new_empty(*x.shape)
    y[..., :2].copy_(new[..., 3:])
    y[..., 2:].copy_(x[..., 2:])
    return y


def beyond(x, new):
    y = x.sin()
    y[:, :9] = new
    return y


def middle(x, new):
    y = x.sin()
    y[:, 1:3] = new[:, 1:3]
    return y


def broadcast(x, new):
    y = x.sin()
    y[:, 2:].copy_(new[:1, 2:])
    return y


def run(graph: fx.Graph, tensors: list[torch.Tensor]) -> torch.Tensor:
    (result,) = fx.Interpreter(fx.GraphModule(nn.Module(), graph)).run(*(t.clone() for t in tensors))
    return result


@pytest.mark.parametrize(("function", "changed"), [
    (tail, 1), (twice, 2), (last_dim, 1), (cast_first, 1), (view_kept, 0), (of_input, 0), (of_view, 0), (middle, 0),
    (broadcast, 0), (head, 1), (both, 2), (beyond, 0),
])
def test_an_assignment_keeps_its_bits(function, changed):
    tensors = [torch.randn(2, 5, generator=torch.Generator().manual_seed(s)) for s in (1, 2)]
    graph = trace(Called(function), tuple(tensors)).graph
    expected = function(*(t.clone() for t in tensors))
    casts.run(graph)
    written = sum(dead.writes(n) for n in graph.nodes)
    assert assign.run(graph) == changed
    graph.lint()
    assert sum(dead.writes(n) for n in graph.nodes) == written - changed
    assert assign.run(graph) == 0
    assert torch.equal(run(graph, tensors), expected)
    for node in graph.nodes:
        if node.op == "call_function":
            assert "val" in node.meta


def test_a_dynamic_start_is_kept():
    tensors = [torch.randn(2, 5), torch.randn(2, 3)]
    dynamic = ({1: torch.export.Dim("A", min=4, max=64)}, {1: torch.export.Dim("N", min=2, max=64)})

    def joined(x, new):
        y = torch.cat([x, new], 1).sin()
        y[:, x.shape[1]:] = new * 2
        return y

    graph = trace(Called(joined), tuple(tensors), dynamic).graph
    assert assign.run(graph) == 1
    other = [torch.randn(2, 9), torch.randn(2, 7)]
    assert torch.equal(run(graph, other), joined(*other))
