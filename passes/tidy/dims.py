"""Count dims from the last, and write a slice's ends one way: tensors of any rank then have the same steps."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

_A = torch.ops.aten
_END = 9223372036854775807
# Target -> which of its arguments count dims of its first argument, and whether the result has one dim more.
_DIMS: dict = {
    _A.slice.Tensor: ((1,), 0), _A.select.int: ((1,), 0), _A.unbind.int: ((1,), 0), _A.transpose.int: ((1, 2), 0),
    _A.cat.default: ((1,), 0), _A.stack.default: ((1,), 1), _A.unsqueeze.default: ((1,), 1), _A.unflatten.int: ((1,), 0),
    _A.flatten.using_ints: ((1, 2), 0), _A.squeeze.dim: ((1,), 0), _A.split_with_sizes.default: ((2,), 0),
    _A.split.Tensor: ((2,), 0), _A.chunk.default: ((2,), 0),
}


def run(graph: fx.Graph) -> int:
    """Returns the number of steps changed."""
    changed = 0
    for node in graph.nodes:
        if node.op != "call_function" or node.target not in _DIMS:
            continue
        before = node.args
        places, more = _DIMS[node.target]
        source = node.args[0][0] if isinstance(node.args[0], (list, tuple)) else node.args[0]
        rank = source.meta["val"].dim() + more
        args = [*node.args, *_defaults(node)]
        for place in places:
            if isinstance(args[place], int) and args[place] >= 0:
                args[place] -= rank
        if node.target == _A.slice.Tensor:
            args = _slice(args, source.meta["val"].shape[args[1]])
        node.args = tuple(args)
        changed += node.args != before
    return changed


def _defaults(node: fx.Node) -> list:
    """The arguments after those that are written."""
    target: Any = node.target
    schema = target._schema.arguments[len(node.args):]
    wanted = {_A.slice.Tensor: 5, _A.flatten.using_ints: 3}.get(target) or max(_DIMS[target][0]) + 1
    return [a.default_value for a in schema][: wanted - len(node.args)]


def _slice(args: list, size) -> list:
    """start, end and step written out; an end at or past a known size is no end."""
    source, dim, start, end, step = args
    known = isinstance(size, int)
    start = 0 if start is None else max(start + size, 0) if known and isinstance(start, int) and start < 0 else start
    end = _END if end is None else max(end + size, 0) if known and isinstance(end, int) and end < 0 else end
    return [source, dim, start, _END if known and isinstance(end, int) and end >= size else end, step]
