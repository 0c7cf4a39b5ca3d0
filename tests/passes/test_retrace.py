"""Traces at sites are made once a process for what is known of their sizes, and only where tracing learns nothing more."""

from __future__ import annotations

import models
import pytest
import torch
from torch._dynamo.source import ConstantSource
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext, StrictMinMaxConstraint
from torch.utils._sympy.value_ranges import ValueRanges

from glmc.passes import retrace
from glmc.passes.retrace import Retracer
from glmc.survey import survey
from glmc.target import compilable


@pytest.fixture(autouse=True)
def none_kept(monkeypatch):
    monkeypatch.setattr(retrace, "_COMPARED", {})


def opened(rows: int = 5, least: int = 2, source: str = "x") -> torch.Tensor:
    """[rows, 6] of a new graph, whose rows are a symbol of `least` and more."""
    mode = FakeTensorMode(shape_env=ShapeEnv())
    bounds = StrictMinMaxConstraint(vr=ValueRanges(least, 1 << 20), warn_only=False)
    context = StatelessSymbolicContext(dynamic_sizes=[DimDynamic.DYNAMIC, DimDynamic.STATIC], constraint_sizes=[bounds, None])
    return mode.from_tensor(torch.empty(rows, 6, device="meta"), source=ConstantSource(source), symbolic_context=context)


def scaled(x, by):
    return (x * by).reshape(x.shape[0] * 2, 3)


def compared(x, by=0.5, function=scaled):
    return Retracer().compared(function, ("x",), function, [x], {"by": by})


def test_another_graph_of_the_same_sizes_needs_no_new_trace():
    first, second = opened(), opened()
    assert str(first.shape) == str(second.shape)
    assert compared(first) is compared(second)


@pytest.mark.parametrize("other", [{"x": opened(least=4)}, {"x": opened(rows=7)}, {"x": opened(source="y")},
                                   {"x": torch.empty(5, 6, device="meta")}, {"by": 1}, {"by": 1.0}, {"by": -0.0},
                                   {"function": lambda x, by: x * by}],
                         ids=["range", "sample", "name", "no symbol", "type", "number", "sign", "function"])
def test_what_differs_is_traced_anew(other):
    kept = [compared(opened(), by) for by in (0.5, 0.0, True)]
    assert all(compared(**{"x": opened(), **other}) is not graph for graph in kept)


def test_a_guard_on_the_sizes_is_told_apart():
    free, guarded = opened(), opened()
    assert guarded.shape[0] % 2 == 1
    assert compared(free) is not compared(guarded)


def test_a_trace_that_learns_of_the_sizes_is_not_kept():
    def choosy(x, by):
        return x * by if x.shape[0] % 2 else x + by

    odd = opened()
    graph = compared(odd, function=choosy)
    assert not retrace._COMPARED
    assert compared(opened(), function=choosy) is not graph
    assert compared(opened(rows=6), function=choosy) is not graph


def test_the_oldest_goes_when_there_are_many(monkeypatch):
    monkeypatch.setattr(retrace, "_MOST", 2)
    first, second, third = (compared(opened(), by) for by in (1.5, 2.5, 3.5))
    assert compared(opened(), 2.5) is second
    assert compared(opened(), 3.5) is third
    assert compared(opened(), 1.5) is not first


def test_a_second_survey_finds_what_the_first_found(monkeypatch):
    made = []
    real = retrace.trace_function
    monkeypatch.setattr(retrace, "trace_function", lambda call, *given: made.append(call) or real(call, *given))
    checkpoint = models.published("glm", num_hidden_layers=1)[2]
    first, count = survey(checkpoint, compilable("cpu")), len(made)
    second = survey(checkpoint, compilable("cpu"))
    assert len(made) - count < count / 3, "spellings alone are traced again, for their values"
    assert second.ledger.to_json() == first.ledger.to_json()
    assert second.program.to_json() == first.program.to_json()
    assert [r.text() for r in second.program.regions.values()] == [r.text() for r in first.program.regions.values()]
