"""The layered layout: every reader below what it reads, nothing on top of anything else, whatever the graph."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glmc.html.layered import layered


@st.composite
def graphs(draw):
    count = draw(st.integers(1, 24))
    names = [f"n{i}" for i in range(count)]
    sizes = {n: (draw(st.integers(10, 250)), draw(st.integers(10, 90))) for n in names}
    pairs = [(a, b) for a, b in itertools.combinations(names, 2) if draw(st.integers(0, 5)) == 0]
    return sizes, pairs


@settings(max_examples=60, deadline=None)
@given(graphs())
def test_readers_stand_below_and_nothing_overlaps(graph):
    sizes, pairs = graph
    made = layered(sizes, pairs)
    boxes = {n: (*made.corners[n], made.corners[n][0] + sizes[n][0], made.corners[n][1] + sizes[n][1]) for n in sizes}
    for one, other in pairs:
        assert boxes[one][3] < boxes[other][1]
        route = made.routes[one, other]
        assert route[0][1] == boxes[one][3]
        assert route[-1][1] == boxes[other][1]
        assert all(a[1] <= b[1] for a, b in itertools.pairwise(route)), "a line runs down only"
        assert all(a[0] == b[0] for a, b in zip(route[::2], route[1::2], strict=True)), "beside boxes a line runs straight"
    for (a, b, c, d), (e, f, g, h) in itertools.combinations(boxes.values(), 2):
        assert c <= e + 1e-6 or g <= a + 1e-6 or d <= f or h <= b
    for a, b, c, d in boxes.values():
        assert a >= -1e-6 and b >= 0 and c <= made.width + 1e-6 and d <= made.height  # noqa: PT018


def test_a_line_that_passes_a_rank_passes_beside_its_boxes():
    sizes = {"a": (100, 20), "b": (100, 20), "c": (100, 20)}
    made = layered(sizes, [("a", "b"), ("b", "c"), ("a", "c")])
    inside = [x for x, y in made.routes["a", "c"] if made.corners["b"][1] <= y <= made.corners["b"][1] + 20]
    left = made.corners["b"][0]
    assert inside
    assert all(x < left or x > left + 100 for x in inside)


def test_a_chain_is_straight():
    made = layered({n: (50, 20) for n in "abcd"}, [("a", "b"), ("b", "c"), ("c", "d")])
    assert len({corner[0] for corner in made.corners.values()}) == 1


def test_a_graph_that_is_no_order_is_refused():
    with pytest.raises(KeyError):
        layered({"a": (1, 1), "b": (1, 1)}, [("b", "a")])
