"""Clean-ups on generated programs: whatever is sliced, turned, viewed, doubled, cast and joined, no bit changes.

Each program is run before and after, and tidied again: the second time changes nothing that the first did not settle.
"""

from __future__ import annotations

import pytest
import torch
import traced
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from glmc.passes import tidy
from glmc.trace import trace_function

X = torch.arange(3 * 4 * 8, dtype=torch.float32).reshape(3, 4, 8).cos()
NUMBER = st.integers(-9, 9)


def _slice(x, a, b, c):
    dim = a % x.dim()
    start, end = (None if n % 4 == 0 else n for n in (b, c))
    return x[(slice(None),) * dim + (slice(start, end, 2 if (a + b) % 5 == 0 else None),)]


def _split(x, a, b, c):
    dim, size = a % x.dim(), x.shape[a % x.dim()]
    first = b % (size + 1)
    parts = x.split([first, size - first], dim - (x.dim() if c % 2 else 0))
    return torch.cat((parts if c % 3 else parts[::-1]), dim) if c % 4 else parts[c % 2]


def _chunk(x, a, b, c):
    parts = x.chunk(1 + b % 4, a % x.dim())
    return torch.cat([parts[c % len(parts)], parts[a % len(parts)]], a % x.dim())


def _transpose(x, a, b, c):
    turned = x.transpose(a % x.dim(), b % x.dim())
    return turned.transpose(a % x.dim(), b % x.dim() - x.dim()) if c % 2 else turned


def _view(x, a, b, c):
    size = x.shape[-1]
    if c % 3 == 0:
        return x.flatten(-2) if x.dim() > 1 and a % 2 else x.reshape(*x.shape[:-1], size)
    if c % 3 == 1 and size:
        part = next(p for p in (2 + b % 3, 2, 1) if size % p == 0)
        return x.reshape(*x.shape[:-1], part, size // part)
    return x.unsqueeze(a % (x.dim() + 1)) if x.dim() < 5 else x.reshape(-1)


def _twice(x, a, b, c):
    doubled = torch.cat([x, x], -1) if a % 2 else x.repeat_interleave(2, -1)
    step = (doubled.cos, doubled.sin, lambda: doubled * 0.5, lambda: doubled.to(torch.bfloat16).float())[b % 4]()
    width = x.shape[-1]
    return (step, step[..., :width], step[..., width:], step.unsqueeze(-2), step.unsqueeze(-1))[c % 5]


def _cast(x, a, b, c):
    if c % 3 == 0:
        return x.to(x.dtype)
    return x.to(torch.bfloat16) if a % 2 else x.float()


def _rows(x, a, b, c):
    if x.dim() < 2 or not x.shape[0]:
        return x + 1
    rows = [x[(b + i) % x.shape[0]] for i in range(2)]
    cut = a % (x.shape[-1] + 1) if x.dim() > 1 else 0
    return torch.cat([rows[0][..., :cut], rows[1][..., cut:]], -1)


def _expand(x, a, b, c):
    return x.expand(x.shape) * 2 if a % 2 else x.unsqueeze(0).expand(1 + b % 2, *x.shape)[0]


def _unbind(x, a, b, c):
    dim = a % x.dim()
    parts = x.unbind(dim)
    return torch.stack(parts if b % 3 else parts[::-1], dim) if parts else x


STEPS = (_slice, _split, _chunk, _transpose, _view, _twice, _cast, _rows, _expand, _unbind)
PROGRAMS = st.lists(st.tuples(st.sampled_from(STEPS), NUMBER, NUMBER, NUMBER), min_size=1, max_size=7)


def program(steps):
    """Every step after the other; some values are given out beside the last, so that steps have other users."""
    def run(x):
        out = []
        for number, (step, a, b, c) in enumerate(steps):
            x = step(x, a, b, c)
            if number % 3 == 1:
                out.append(x)
            if x.numel() > 4000:
                break
        return (*out, x)

    return run


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(PROGRAMS)
def test_no_bit_changes(steps):
    graph = trace_function(program(steps), [X], {}).graph
    before = traced.run(graph, [X])
    tidy.tidy(graph)
    assert traced.same(traced.run(graph, [X]), before)
    tidy.tidy(graph)
    assert traced.same(traced.run(graph, [X]), before)
    settled = str(graph)
    tidy.tidy(graph)
    assert str(graph) == settled
    for node in graph.nodes:
        if node.op == "call_function" and isinstance(node.meta["val"], torch.Tensor):
            assert node.meta["val"].dim() >= 0


@pytest.mark.parametrize("module", tidy.ORDER, ids=lambda m: m.__name__.rsplit(".", 1)[1])
def test_each_alone_changes_no_bit(module):
    @settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
    @given(PROGRAMS)
    def check(steps):
        graph = trace_function(program(steps), [X], {}).graph
        before = traced.run(graph, [X])
        tidy.dims.run(graph)
        module.run(graph)
        graph.lint()
        assert traced.same(traced.run(graph, [X]), before)
        shapes = [n.meta["val"].shape for n in graph.output_node().all_input_nodes]
        assert {tuple(s) for s in shapes} <= {tuple(b.shape) for b in before}

    check()
