"""One spelling for views: those that split or join the last dims by name of what they do, without the sizes before them.

    view(x, [B, S, -1, D])  ->  unflatten(x, -1, [H, D])        view(x, [B, S, H * D])  ->  flatten(x, -2, -1)
    view(x, [T, K, H]) of [T * K, H]  ->  unflatten(x, -2, [T, K])
    view(x, [B, 1, S, D]) of [B, S, D]  ->  unsqueeze(x, -3)    a size that only a symbol knows, alone  ->  -1

Views and expansions that keep every size are dropped.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

_A = torch.ops.aten
_VIEWS = (_A.view.default, _A.reshape.default)


def run(graph: fx.Graph) -> int:
    """Returns the number of steps changed."""
    changed = 0
    for node in graph.nodes:
        if node.op == "call_function" and node.target == _A.unflatten.int and -1 in node.args[2]:
            changed += _written_out(node)
        if node.op != "call_function" or node.target not in (*_VIEWS, _A.expand.default):
            continue
        source = node.args[0]
        before, after = _sizes(source), _sizes(node)
        if before == after:
            node.replace_all_uses_with(source)
        elif node.target in _VIEWS:
            written = _split(before, after) or _joined(before, after) or _rows(before, after) \
                or _single(before, after)
            if written is not None:
                node.target, arguments = written
                node.args = (source, *arguments)
            elif not _infer(node):
                continue
        else:
            continue
        changed += 1
    return changed


def _written_out(node: fx.Node) -> int:
    """An unflatten with its inferred size as a number, where that is known."""
    arguments: Any = node.args
    start, count = arguments[1] % arguments[0].meta["val"].dim(), len(arguments[2])
    sizes = list(node.meta["val"].shape[start:start + count])
    if not all(isinstance(s, int) for s in sizes):
        return 0
    node.args = (node.args[0], node.args[1], sizes)
    return 1


def _sizes(node: fx.Node) -> list[Any]:
    """Sizes as they compare: numbers, or the text of an expression."""
    return [s if isinstance(s, int) else str(s) for s in node.meta["val"].shape]


def _split(before: list, after: list) -> tuple | None:
    """Sizes before the last stay, the last becomes two or more known ones."""
    keep = len(before) - 1
    tail = after[keep:]
    if len(tail) < 2 or after[:keep] != before[:keep] or not all(isinstance(s, int) for s in tail):
        return None
    return _A.unflatten.int, (-1, tail)


def _joined(before: list, after: list) -> tuple | None:
    """Sizes before stay, the last two or more known ones become one."""
    keep = len(after) - 1
    tail = before[keep:]
    if keep < 1 or len(tail) < 2 or after[:keep] != before[:keep] or not all(isinstance(s, int) for s in tail):
        return None
    return _A.flatten.using_ints, (-len(tail), -1)


def _rows(before: list, after: list) -> tuple | None:
    """Rows become groups of a known size."""
    if len(before) != 2 or len(after) != 3 or after[2] != before[1] or not isinstance(after[1], int):
        return None
    return _A.unflatten.int, (-2, [after[0] if isinstance(after[0], int) else -1, after[1]])


def _single(before: list, after: list) -> tuple | None:
    """One dim of size 1 more."""
    if len(after) != len(before) + 1:
        return None
    place = next((i for i in range(len(after)) if after[i] == 1 and after[:i] + after[i + 1:] == before), None)
    return None if place is None else (_A.unsqueeze.default, (place - len(after),))


def _infer(node: fx.Node) -> bool:
    """Let the view infer its one symbolic size."""
    written: Any = node.args[1]
    sizes = list(written)
    unknown = [i for i, s in enumerate(sizes) if isinstance(s, fx.Node)]
    if len(unknown) != 1 or -1 in sizes:
        return False
    sizes[unknown[0]] = -1
    node.args = (node.args[0], sizes)
    return True
