"""Write splits of the last dim as slices, drop steps that give what they take, and what concatenations need not hold."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

_A = torch.ops.aten
_END = 9223372036854775807
_SPLITS = (_A.split_with_sizes.default, _A.split.Tensor, _A.chunk.default)


def run(graph: fx.Graph) -> int:
    """Returns the number of steps changed."""
    changed = 0
    for node in list(graph.nodes):
        if node.op != "call_function":
            continue
        if node.target in _SPLITS:
            changed += _split(graph, node)
        elif _same(node):
            node.replace_all_uses_with(node.args[0])
            changed += 1
        elif node.target == _A.cat.default:
            changed += _join(node)
    return changed


def _same(node: fx.Node) -> bool:
    """Whether the step gives what it takes: a slice of everything, an alias, a dropout outside training."""
    if node.target == _A.dropout.default:
        return bool(not node.args[2] or node.args[1] == 0)
    return node.target == _A.alias.default or (node.target == _A.slice.Tensor and tuple(node.args[2:]) == (0, _END, 1))


def _split(graph: fx.Graph, node: fx.Node) -> int:
    """Each part that is used becomes a slice. Only known sizes of the last dim."""
    arguments: Any = node.args
    source, dim = arguments[0], arguments[2]
    size = source.meta["val"].shape[-1]
    parts = [v.shape[-1] for v in node.meta["val"]]
    if dim != -1 or not isinstance(size, int) or any(u.target != operator.getitem for u in node.users):
        return 0
    for user in list(node.users):
        which: Any = user.args[1]
        start, end = sum(parts[:which]), sum(parts[: which + 1])
        with graph.inserting_before(user):
            piece = graph.call_function(_A.slice.Tensor, (source, -1, start, _END if end == size else end, 1))
        piece.meta = dict(user.meta)
        user.replace_all_uses_with(piece)
    return 1


def _join(node: fx.Node) -> int:
    """Empty pieces add nothing to a concatenation; one of a single piece is that piece."""
    arguments: Any = node.args
    dim = arguments[1] if len(arguments) > 1 else 0
    kept = [p for p in arguments[0] if not _empty(p.meta["val"], dim)]
    if any(p.meta["val"].dtype != node.meta["val"].dtype for p in kept):
        return 0
    if len(kept) == 1:
        node.replace_all_uses_with(kept[0])
    elif len(kept) < len(arguments[0]) and kept:
        node.args = (kept, *arguments[1:])
    else:
        return 0
    return 1


def _empty(value: torch.Tensor, dim: int) -> bool:
    """Whether `cat` takes nothing from it. A list of no elements may stand beside tensors of any rank."""
    return bool(value.shape[0 if value.dim() == 1 else dim] == 0)
