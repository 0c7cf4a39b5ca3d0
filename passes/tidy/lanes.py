"""One op for lanes taken from the rows of one tensor: the published three-axis RoPE splits, selects and joins.

`cat([x[r0][..., 0:a], x[r1][..., a:b], ...], -1)` that covers all lanes in order is `pick_lanes(x, [r0, ..., r1, ...])`,
in whichever order rows are selected and lanes are cut.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import Any

import torch
from torch import fx

from glmc.kernels.pick_lanes import cpu as _registers_the_op  # noqa: F401

_ATEN = torch.ops.aten
_PICK = torch.ops.glmc.pick_lanes.default
_END = 9223372036854775807

Cut = tuple[fx.Node, int, int, int]
"""A tensor, the row taken from it, and the first and the end of the lanes taken."""


def _sizes(node: fx.Node) -> tuple[int, ...]:
    return tuple(node.meta["val"].shape)


def _lanes(node: fx.Node) -> tuple[fx.Node, int, int] | None:
    """The source and the lanes of a node that cuts the last dim: a slice, or one piece of a split."""
    args: tuple[Any, ...] = node.args
    if node.op != "call_function":
        return None
    if node.target == _ATEN.slice.Tensor:
        missing: tuple[Any, ...] = (0, None, None, 1)[len(args) - 1:]
        source, dim, start, end, step = (*args, *missing)
        low, high, last = start or 0, _END if end is None else end, len(_sizes(source)) - 1
        width = _sizes(source)[last]
        if dim not in (-1, last) or step != 1 or not all(isinstance(v, int) for v in (low, high, width)):
            return None
        low, high = (min(max(v + width if v < 0 else v, 0), width) for v in (low, high))
        return source, low, high
    if node.target is operator.getitem and args[0].target == _ATEN.split_with_sizes.default:
        split, index = args
        source, sizes, dim = [*split.args, 0][:3]
        if dim in (-1, len(_sizes(source)) - 1) and all(isinstance(s, int) for s in sizes):
            return source, sum(sizes[:index]), sum(sizes[:index + 1])
    return None


def _row(node: fx.Node) -> tuple[fx.Node, int] | None:
    """The source and the row of a node that takes one row of the first dim."""
    if node.op != "call_function" or node.target != _ATEN.select.int:
        return None
    args: tuple[Any, ...] = node.args
    source, dim, row = args
    count = _sizes(source)[0]
    if dim not in (0, -len(_sizes(source))) or not isinstance(count, int) or not isinstance(row, int):
        return None
    return source, row + count if row < 0 else row


def _cuts(node: fx.Node) -> Iterator[Cut]:
    """What a piece is of its source, of its source's source, and so on; each has taken its row."""
    width = _sizes(node)[-1] if _sizes(node) else None
    if not isinstance(width, int):
        return
    row: int | None = None
    low, high = 0, width
    while True:
        if row is not None:
            yield node, row, low, high
        found = _lanes(node)
        taken = _row(node) if row is None else None
        if found is not None:
            node, start, _ = found
            low, high = low + start, high + start
        elif taken is not None and len(_sizes(taken[0])) > 1:
            node, row = taken
        else:
            return


def _picked(node: fx.Node) -> tuple[fx.Node, list[int]] | None:
    """The source and the axis map of a `cat` that takes every lane once and in order."""
    args: tuple[Any, ...] = node.args
    pieces, dim = [*args, 0][:2]
    if dim not in (-1, len(_sizes(node)) - 1) or len(pieces) < 2:
        return None
    ways = [{cut[0]: cut[1:] for cut in _cuts(piece)} for piece in pieces]
    for source in ways[0]:
        if not all(source in way for way in ways):
            continue
        axis_map: list[int] = []
        for way in ways:
            row, low, high = way[source]
            if low != len(axis_map):
                break
            axis_map += [row] * (high - low)
        else:
            if len(axis_map) == _sizes(source)[-1]:
                return source, axis_map
    return None


def run(graph: fx.Graph) -> int:
    """Returns the number of joins that became one op."""
    made = 0
    for node in graph.find_nodes(op="call_function", target=_ATEN.cat.default, sort=False):
        found = _picked(node)
        if found is None:
            continue
        with graph.inserting_before(node):
            pick = graph.call_function(_PICK, found)
        pick.meta = dict(node.meta)
        pieces = list(node.all_input_nodes)
        node.replace_all_uses_with(pick)
        graph.erase_node(node)
        _erase(graph, pieces)
        made += 1
    return made


def _erase(graph: fx.Graph, nodes: list[fx.Node]) -> None:
    """Drop these views and what they were made of, as far as nobody else uses them."""
    for node in nodes:
        if not node.users and (_lanes(node) or _row(node) or node.target == _ATEN.split_with_sizes.default):
            sources = list(node.all_input_nodes)
            graph.erase_node(node)
            _erase(graph, sources)
