"""One spelling for rows taken apart and laid side by side.

    cat([x[..., 0, :], ..., x[..., A - 1, :]], -1)  ->  flatten(x, -2, -1)
    unbind(permute(unflatten(x, -1, [A, H, D]), A first), 0)[i]  ->  unflatten(x[..., i H D : (i + 1) H D], -1, [H, D])
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

_A = torch.ops.aten
_END = 9223372036854775807


def run(graph: fx.Graph) -> int:
    """Returns the number of steps changed."""
    changed = 0
    for node in list(graph.nodes):
        if node.op != "call_function":
            continue
        if node.target == _A.cat.default and len(node.args) > 1 and node.args[1] == -1:
            changed += _side_by_side(node)
        elif node.target == operator.getitem:
            changed += _part(graph, node)
    return changed


def _side_by_side(node: fx.Node) -> int:
    pieces: Any = node.args[0]
    if any(p.target != _A.select.int or p.args[1] != -2 for p in pieces) or len({p.args[0] for p in pieces}) != 1:
        return 0
    source = pieces[0].args[0]
    if [p.args[2] for p in pieces] != list(range(len(pieces))) or source.meta["val"].shape[-2] != len(pieces):
        return 0
    node.target, node.args = _A.flatten.using_ints, (source, -2, -1)
    return 1


def _part(graph: fx.Graph, node: fx.Node) -> int:
    """A part of a packed projection that was viewed as [..., A, H, D], A brought to the front and unbound."""
    arguments: Any = node.args
    unbound, which = arguments
    if not isinstance(unbound, fx.Node) or unbound.target != _A.unbind.int:
        return 0
    turned: Any = unbound.args[0]
    if turned.target != _A.permute.default or turned.args[0].target != _A.unflatten.int:
        return 0
    view = turned.args[0]
    rank, sizes = view.meta["val"].dim(), list(view.args[2])
    front = [rank - 3, *range(rank - 3), rank - 2, rank - 1]
    if view.args[1] != -1 or len(sizes) != 3 or unbound.args[1] not in (0, -rank) \
            or [d % rank for d in turned.args[1]] != front:
        return 0
    sizes = list(view.meta["val"].shape[-3:])
    width = sizes[1] * sizes[2]
    source, start = view.args[0], which * width
    with graph.inserting_before(node):
        end = _END if which == sizes[0] - 1 else start + width
        piece = graph.call_function(_A.slice.Tensor, (source, -1, start, end, 1))
        piece.meta = {**node.meta, "val": source.meta["val"][..., start:start + width]}
        heads = graph.call_function(_A.unflatten.int, (piece, -1, sizes[1:]))
        heads.meta = dict(node.meta)
    node.replace_all_uses_with(heads)
    return 1
