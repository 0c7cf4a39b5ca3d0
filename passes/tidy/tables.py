"""Let a table that holds each angle twice hold it once, for as long as that changes nothing.

A duplication, `cat([a, a], -1)` or `repeat_interleave(a, 2, -1)`, moves behind steps that treat every entry alike (cos,
sin, a factor, a cast, a new dim, a view of the dims before); a slice that takes back one copy is the original.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

_A = torch.ops.aten
_END = 9223372036854775807
_VIEWS = (_A.view.default, _A.reshape.default)
_ALIKE = (_A.cos.default, _A.sin.default, _A.to.dtype, _A.unsqueeze.default, _A.mul.Tensor, *_VIEWS)


def run(graph: fx.Graph) -> int:
    """Returns the number of steps changed."""
    changed = 0
    for node in graph.nodes:
        if node.op != "call_function":
            continue
        source: Any = node.args[0] if node.args else None
        if node.target in _ALIKE and _twice(source) and _entrywise(node):
            _behind(graph, node, source)
        elif node.target == _A.slice.Tensor and node.args[1] == -1 and _is_cat(source) and _first_copy(node, source):
            node.replace_all_uses_with(source.args[0][0])
        else:
            continue
        changed += 1
    return changed


def _is_cat(node: object) -> bool:
    if not isinstance(node, fx.Node) or node.target != _A.cat.default or len(node.args) != 2 or node.args[1] != -1:
        return False
    pieces: Any = node.args[0]
    return len(pieces) == 2 and pieces[0] is pieces[1]


def _twice(node: object) -> bool:
    return _is_cat(node) or (isinstance(node, fx.Node) and node.target == _A.repeat_interleave.self_int
                             and tuple(node.args[1:]) == (2, -1) and not node.kwargs)


def _entrywise(node: fx.Node) -> bool:
    """Whether the step does the same to every entry of the last dim, and leaves it last."""
    if node.target == _A.mul.Tensor:
        return isinstance(node.args[1], (int, float))
    if node.target in _VIEWS:
        source: Any = node.args[0]
        return node.meta["val"].shape[-1] == source.meta["val"].shape[-1]
    return node.target != _A.unsqueeze.default or bool(node.args[1] < -1)  # type: ignore[operator]  # an integer


def _behind(graph: fx.Graph, node: fx.Node, source: fx.Node) -> None:
    """node(twice(a)) becomes twice(node(a))."""
    arguments: Any = node.args
    target: Any = node.target
    first: Any = source.args[0]
    single = first[0] if _is_cat(source) else first
    width = single.meta["val"].shape[-1]
    with graph.inserting_before(node):
        rest = ([*arguments[1][:-1], width],) if node.target in _VIEWS else arguments[1:]
        inner = graph.call_function(target, (single, *rest), dict(node.kwargs))
    inner.meta = {**node.meta, "val": node.meta["val"][..., :width]}
    node.target = source.target
    node.args = ([inner, inner], -1) if _is_cat(source) else (inner, 2, -1)
    node.kwargs = {}


def _first_copy(node: fx.Node, source: fx.Node) -> bool:
    pieces: Any = source.args[0]
    width = pieces[0].meta["val"].shape[-1]
    return isinstance(width, int) and tuple(node.args[2:]) in ((0, width, 1), (width, _END, 1))
