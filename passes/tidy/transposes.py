"""Move a transposition of the dims before the last behind slices of the last; two that undo each other are dropped."""

from __future__ import annotations

import torch
from torch import fx

_A = torch.ops.aten


def run(graph: fx.Graph) -> int:
    """Returns the number of steps changed."""
    changed, values = 0, _Values()
    for node in graph.nodes:
        if node.op != "call_function":
            continue
        if node.target == _A.slice.Tensor and node.args[1] == -1 and _moves_rows(node.args[0]):
            turned = node.args[0]
            with graph.inserting_before(node):
                piece = graph.call_function(_A.slice.Tensor, (turned.args[0], *node.args[1:]))
            piece.meta = {**node.meta, "val": values.transposed(node.meta["val"], *turned.args[1:])}
            node.target, node.args = _A.transpose.int, (piece, *turned.args[1:])
            changed += 1
        elif _moves_rows(node) and _moves_rows(node.args[0]) and set(node.args[1:]) == set(node.args[0].args[1:]):
            node.replace_all_uses_with(node.args[0].args[0])
            changed += 1
    return changed


class _Values:
    """Transposed values, each made once: in layers that are alike they are alike, and symbolic strides make them slow."""

    def __init__(self) -> None:
        self._known: dict[tuple, torch.Tensor] = {}

    def transposed(self, value: torch.Tensor, one: int, other: int) -> torch.Tensor:
        key = (value.dtype, str(value.shape), str(value.stride()), one, other)
        if key not in self._known:
            self._known[key] = value.transpose(one, other)
        return self._known[key]


def _moves_rows(node: object) -> bool:
    """Whether this is a transposition that leaves the last dim in its place."""
    return isinstance(node, fx.Node) and node.target == _A.transpose.int and -1 not in node.args[1:]
