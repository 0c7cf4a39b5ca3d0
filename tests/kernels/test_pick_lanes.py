"""The op `pick_lanes`: each lane from its row, bit by bit, as plain torch, as one node of a trace, and compiled."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from glmc.axis_map import LAYOUTS, axis_map
from glmc.errors import InternalError
from glmc.kernels import op
from glmc.kernels.pick_lanes import cpu
from glmc.trace import trace

MAPS = {order: axis_map((16, 24, 24), 64, order) for order in LAYOUTS} | {"one row": (2,) * 5, "one lane": (1,)}


def one_by_one(x: torch.Tensor, axes) -> torch.Tensor:
    return torch.stack([x[row, ..., lane] for lane, row in enumerate(axes)], dim=-1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64], ids=str)
@pytest.mark.parametrize("case", MAPS)
def test_each_lane_comes_from_its_row(case, dtype):
    axes = MAPS[case]
    x = (torch.randn(3, 2, 5, len(axes)) * 100).to(dtype)
    for call in (cpu.run, torch.ops.glmc.pick_lanes, op("pick_lanes")):
        out = call(x, list(axes))
        assert out.dtype is dtype
        assert torch.equal(out, one_by_one(x, axes))
        assert out.untyped_storage().data_ptr() != x.untyped_storage().data_ptr(), "never a view"


def test_values_that_are_not_finite_stay_in_their_lane():
    x = torch.zeros(3, 40)
    x[0] = float("nan")
    x[1] = float("inf")
    axes = axis_map((10, 15, 15), 40, "glm_interleaved")
    out = cpu.run(x, axes)
    assert out.isnan().tolist() == [row == 0 for row in axes]
    assert out.isinf().tolist() == [row == 1 for row in axes]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=150))
def test_any_map_and_any_number_of_rows(axes):
    x = torch.arange(5 * 2 * len(axes)).reshape(5, 2, len(axes))
    assert torch.equal(cpu.run(x, axes), one_by_one(x, axes))


@pytest.mark.parametrize("axes", [[], [0, 1], [0, 1, 2, 0], [0, 1, 3], [0, -1, 2]], ids=str)
def test_a_map_that_does_not_fit_is_refused(axes):
    for call in (cpu.run, torch.ops.glmc.pick_lanes):
        with pytest.raises(InternalError, match="axis_map"):
            call(torch.zeros(3, 2, 3), axes)


def test_a_trace_holds_it_as_one_node_with_free_sizes():
    class Picks(nn.Module):
        def forward(self, x):
            return torch.ops.glmc.pick_lanes(x, MAPS["glm_interleaved"])

    rows = torch.export.Dim("B", min=2, max=99)
    graph = trace(Picks(), (torch.zeros(3, 4, 64, dtype=torch.bfloat16, device="meta"),), ({1: rows},)).graph
    (node,) = (n for n in graph.nodes if n.op == "call_function")
    assert node.target is torch.ops.glmc.pick_lanes.default
    assert node.args[1] == list(MAPS["glm_interleaved"])
    assert node.meta["val"].dtype is torch.bfloat16
    assert isinstance(node.meta["val"].shape[0], torch.SymInt)
    assert node.meta["val"].shape[1] == 64


@pytest.mark.parametrize("order", LAYOUTS)
def test_the_compiler_makes_one_loop_of_it(order):
    from torch._inductor.utils import run_and_get_code

    def table(angles):
        return cpu.run(angles, MAPS[order]).cos() * 0.5

    angles = torch.randn(3, 7, 64)
    torch._dynamo.reset()
    made, (code,) = run_and_get_code(torch.compile(table, fullgraph=True), angles)
    assert torch.equal(made, table(angles)) or torch.allclose(made, table(angles), atol=1e-6, rtol=0)
    assert code.count("async_compile.cpp") == 1


def test_registering_it_loads_no_compiler():
    script = "import sys, glmc.kernels.pick_lanes.cpu; print('torch._dynamo' in sys.modules)"
    made = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert made.stdout.split() == ["False"]
