"""Write assignments to the head or tail of a fresh tensor as concatenations, so that no value changes after it is made.

    x = layer_norm(...); ...; copy_(slice(x, 1, T), new); use(x)   ->   ...; use(cat([slice(x, 1, 0, T), new], 1))

A tensor whose head and tail are both assigned becomes the two. Left as they are: other assignments, tensors that another view
of may be read later, weights and inputs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

_A = torch.ops.aten
_END = 9223372036854775807
_MAYBE_VIEWS = ("reshape", "flatten", "contiguous", "to")


def run(graph: fx.Graph) -> int:
    """Returns the number of assignments changed."""
    place = {node: i for i, node in enumerate(graph.nodes)}
    changed = 0
    for node in graph.find_nodes(op="call_function", target=_A.copy_.default):
        changed += _assignment(graph, node, place)
    return changed


def _assignment(graph: fx.Graph, node: fx.Node, place: dict[fx.Node, int]) -> int:
    arguments: Any = node.args
    written, new = arguments[:2]
    if node.users or not isinstance(new, fx.Node) or written.op != "call_function" or written.target != _A.slice.Tensor:
        return 0
    sliced: Any = [*written.args, None, None, None, None]
    whole, dim, start, end, step = sliced[:5]
    tail = end in (None, _END) and start is not None and not (isinstance(start, int) and start <= 0)
    head = start in (None, 0) and isinstance(end, int) and 0 < end < _size(whole, dim)
    if dim is None or step not in (None, 1) or not (tail or head):
        return 0
    ours, theirs = written.meta["val"], new.meta["val"]
    if ours.shape != theirs.shape or ours.dtype != theirs.dtype or len(written.users) > 1 or not _fresh(whole):
        return 0
    if any(place[v] < place[node] and _read_after(v, node, place) for v in whole.users if v is not written and _views(v)):
        return 0
    later = [u for u in whole.users if u not in place or place[u] > place[node]]
    value = whole.meta["val"]
    with graph.inserting_before(node):
        kept = None if head else _head_of(whole, dim, start)
        if head:
            kept = graph.call_function(_A.slice.Tensor, (whole, dim, end, _END, 1))
            kept.meta = {**node.meta, "val": value.narrow(dim, end, value.shape[dim] - end)}
        elif kept is None:
            kept = graph.call_function(_A.slice.Tensor, (whole, dim, 0, start, 1))
            kept.meta = {**node.meta, "val": _head(value, dim, start)}
        joined = graph.call_function(_A.cat.default, ([new, kept] if head else [kept, new], dim))
    joined.meta = {**node.meta, "val": value}
    for user in later:
        user.replace_input_with(whole, joined)
    graph.erase_node(node)
    graph.erase_node(written)
    return 1


def _size(whole: fx.Node, dim: int | None) -> int:
    """The size along `dim` where it is known, else 0."""
    size = 0 if dim is None or "val" not in whole.meta else whole.meta["val"].shape[dim]
    return size if isinstance(size, int) else 0


def _head_of(whole: fx.Node, dim: int, width: Any) -> fx.Node | None:
    """The piece that a concatenation begins with, where that is just what precedes the assignment."""
    arguments: Any = whole.args
    if whole.target != _A.cat.default or arguments[1:] != (dim,):
        return None
    first = arguments[0][0]
    return first if isinstance(width, int) and first.meta["val"].shape[dim] == width else None


def _head(value: torch.Tensor, dim: int, start: fx.Node | int) -> torch.Tensor:
    return value.narrow(dim, 0, start.meta["val"] if isinstance(start, fx.Node) else start)


def _fresh(node: fx.Node) -> bool:
    """Whether the step makes a tensor of its own."""
    return node.op == "call_function" and isinstance(node.target, torch._ops.OpOverload) and not _views(node)


def _views(node: fx.Node) -> bool:
    """Whether the step's result may share memory with its argument."""
    if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
        return True
    return node.target._opname in _MAYBE_VIEWS or any(r.alias_info is not None for r in node.target._schema.returns)


def _read_after(view: fx.Node, write: fx.Node, place: dict[fx.Node, int]) -> bool:
    """Whether a view made before the write, or a view of it, is used behind it."""
    return any(place.get(u, place[write]) >= place[write] or (_views(u) and _read_after(u, write, place)) for u in view.users)
