"""Let a table that holds each angle twice hold it once, for as long as that changes nothing.

A duplication, `cat([a, a], -1)` or `repeat_interleave(a, 2, -1)`, moves behind steps that treat every entry alike (cos,
sin, a factor, a cast, a new dim, a view of the dims before); a slice that takes back one copy is the original.
"""

from __future__ import annotations

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
        source = node.args[0] if node.args else None
        if node.target in _ALIKE and _twice(source) and _entrywise(node):
            _behind(graph, node, source)
        elif node.target == _A.slice.Tensor and node.args[1] == -1 and _is_cat(source) and _first_copy(node, source):
            node.replace_all_uses_with(source.args[0][0])
        else:
            continue
        changed += 1
    return changed


def _is_cat(node: object) -> bool:
    return (isinstance(node, fx.Node) and node.target == _A.cat.default and len(node.args) == 2 and node.args[1] == -1
            and len(node.args[0]) == 2 and node.args[0][0] is node.args[0][1])


def _twice(node: object) -> bool:
    return _is_cat(node) or (isinstance(node, fx.Node) and node.target == _A.repeat_interleave.self_int
                             and tuple(node.args[1:]) == (2, -1) and not node.kwargs)


def _entrywise(node: fx.Node) -> bool:
    """Whether the step does the same to every entry of the last dim, and leaves it last."""
    if node.target == _A.mul.Tensor:
        return isinstance(node.args[1], (int, float))
    if node.target in _VIEWS:
        return node.meta["val"].shape[-1] == node.args[0].meta["val"].shape[-1]
    return node.target != _A.unsqueeze.default or node.args[1] < -1


def _behind(graph: fx.Graph, node: fx.Node, source: fx.Node) -> None:
    """node(twice(a)) becomes twice(node(a))."""
    single = source.args[0][0] if _is_cat(source) else source.args[0]
    width = single.meta["val"].shape[-1]
    with graph.inserting_before(node):
        rest = ([*node.args[1][:-1], width],) if node.target in _VIEWS else node.args[1:]
        inner = graph.call_function(node.target, (single, *rest), dict(node.kwargs))
    inner.meta = {**node.meta, "val": node.meta["val"][..., :width]}
    node.target = source.target
    node.args = ([inner, inner], -1) if _is_cat(source) else (inner, 2, -1)
    node.kwargs = {}


def _first_copy(node: fx.Node, source: fx.Node) -> bool:
    width = source.args[0][0].meta["val"].shape[-1]
    return isinstance(width, int) and tuple(node.args[2:]) in ((0, width, 1), (width, _END, 1))
