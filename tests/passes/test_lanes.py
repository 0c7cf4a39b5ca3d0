"""Lanes taken from rows become one op, whichever way they were spelled; what only looks like it stays."""

from __future__ import annotations

import pytest
import torch
import traced
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import fx

from glmc.axis_map import axis_map
from glmc.passes.tidy import dead, lanes, metadata
from glmc.trace import trace_function

X = torch.arange(3 * 2 * 5 * 8.0).reshape(3, 2, 5, 8) / 7
TAKES = {
    "as published": lambda x: torch.cat([m[i % 3] for i, m in enumerate(x.split([2, 3, 3], dim=-1))], dim=-1),
    "a row, then its lanes": lambda x: torch.cat([x[0][..., :2], x[1][..., 2:5], x[2][..., 5:]], dim=-1),
    "lanes, then their row": lambda x: torch.cat([x[..., :2][0], x[..., 2:5][1], x[..., 5:][2]], dim=-1),
    "counted from the end": lambda x: torch.cat([x[-3][..., :-6], x[-2][..., -6:-3], x[-1][..., -3:]], dim=3 - 1),
    "an empty section": lambda x: torch.cat([m[i % 3] for i, m in enumerate(x.split([0, 2, 6], dim=-1))], dim=-1),
    "one row in two pieces": lambda x: torch.cat([x[1][..., :3], x[1][..., 3:]], dim=-1),
    "lanes of a part": lambda x: torch.cat([m[i % 3] for i, m in enumerate(x[..., 1:7].split([2, 3, 1], dim=-1))], dim=-1),
    "every lane its own piece": lambda x: torch.cat([x[i % 3][..., i:i + 1] for i in range(8)], dim=-1),
    "cut twice": lambda x: torch.cat([x[0][..., :5][..., :3], x[2][..., 1:][..., 2:]], dim=-1),
}
LEAVES = {
    "whole rows side by side": lambda x: torch.cat([x[0], x[1]], dim=-1),
    "whole columns side by side": lambda x: torch.cat([x[:, 0], x[:, 1]], dim=-1),
    "lanes that restart": lambda x: torch.cat([x[0][..., :4], x[1][..., :4]], dim=-1),
    "lanes out of order": lambda x: torch.cat([x[1][..., 4:], x[0][..., :4]], dim=-1),
    "a lane left out": lambda x: torch.cat([x[0][..., :3], x[1][..., 4:]], dim=-1),
    "the last lane left out": lambda x: torch.cat([x[0][..., :3], x[1][..., 3:7]], dim=-1),
    "a lane twice": lambda x: torch.cat([x[0][..., :4], x[1][..., 3:]], dim=-1),
    "every second lane": lambda x: torch.cat([x[0][..., :4], x[1][..., 4::2]], dim=-1),
    "two tensors": lambda x: torch.cat([x[0][..., :4], x.sin()[1][..., 4:]], dim=-1),
    "rows of another dim": lambda x: torch.cat([x[:, 0][..., :4], x[:, 1][..., 4:]], dim=-1),
    "joined along another dim": lambda x: torch.cat([x[0][..., :4], x[1][..., 4:]], dim=0),
    "no row taken": lambda x: torch.cat([x[..., :4], x[..., 4:]], dim=-1),
    "a piece that was computed": lambda x: torch.cat([x[0][..., :4], -x[1][..., 4:]], dim=-1),
    "one piece": lambda x: torch.cat([x[0]], dim=-1),
    "pieces along another dim": lambda x: torch.cat([x[0][:, :3], x[1][:, 3:]], dim=1),
}


def graph_of(function, x=X) -> fx.Graph:
    return trace_function(function, [x], {}).graph


def calls(graph: fx.Graph) -> list[fx.Node]:
    return [n for n in graph.nodes if n.op == "call_function"]


@pytest.mark.parametrize("case", TAKES)
def test_it_becomes_one_op_and_no_bit_changes(case):
    graph = graph_of(TAKES[case])
    before = traced.run(graph, [X])
    metadata.run(graph)
    assert lanes.run(graph) == 1
    graph.lint()
    dead.run(graph)
    after = calls(graph)
    assert after[-1].target is torch.ops.glmc.pick_lanes.default
    assert len(after) == (2 if case == "lanes of a part" else 1)
    assert after[-1].meta["val"].shape == before[0].shape
    assert torch.equal(traced.run(graph, [X])[0], before[0])
    assert lanes.run(graph) == 0, "once is enough"


@pytest.mark.parametrize("case", LEAVES)
def test_it_leaves_alone_what_only_looks_like_it(case):
    graph = graph_of(LEAVES[case])
    before = str(graph)
    assert lanes.run(graph) == 0
    assert str(graph) == before


def test_pieces_with_other_users_stay():
    graph = graph_of(lambda x: (torch.cat([x[0][..., :4], x[1][..., 4:]], dim=-1), x[0][..., :4] + 1, x[1].sin()))
    before, size = traced.run(graph, [X]), len(calls(graph))
    assert lanes.run(graph) == 1
    graph.lint()
    assert len(calls(graph)) >= size - 4
    assert all(torch.equal(a, b) for a, b in zip(traced.run(graph, [X]), before, strict=True))


def test_the_map_is_read_off_and_the_op_spells_itself():
    for section in ((2, 3, 3), (1, 1, 6)):
        spelled = graph_of(lambda x, s=section: torch.cat([m[i] for i, m in enumerate(x.split(list(s), -1))], -1))
        ours = graph_of(lambda x, s=section: torch.ops.glmc.pick_lanes(x, axis_map(s, 8, "chunked")))
        assert lanes.run(spelled) == 1
        assert lanes.run(ours) == 0
        (a,), (b,) = calls(spelled), calls(ours)
        assert (a.target, a.args[1:]) == (b.target, b.args[1:])
        assert a.args[1] == list(axis_map(section, 8, "chunked"))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(1, 3), st.booleans()), min_size=2, max_size=8),
       st.integers(-1, 1))
def test_any_cut_in_order_is_taken_and_any_gap_or_overlap_is_not(pieces, shift):
    x = torch.randn(3, 2, sum(width for _, width, _ in pieces))

    def join(x):
        out, low = [], 0
        for i, (row, width, row_first) in enumerate(pieces):
            start = max(low + (shift if i == 1 else 0), 0)
            cut = slice(start, start + width)
            out.append(x[row][..., cut] if row_first else x[..., cut][row])
            low += width
        return torch.cat(out, dim=-1)

    graph = graph_of(join, x)
    before = traced.run(graph, [x])
    assert lanes.run(graph) == int(shift == 0)
    graph.lint()
    assert torch.equal(traced.run(graph, [x])[0], before[0])
