"""Write a step of a graph before any fusion as a line: for people to read, so every step can be written and none is run."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from glmc.errors import InternalError
from glmc.passes.emit import Names, literal, target_name


def plain_line(node: fx.Node, names: Names) -> str:
    """`name = op(arguments)`, as Python's grammar has it; gives the node its name."""
    parts = [_argument(a, names) for a in node.args] + [f"{k}={_argument(v, names)}" for k, v in node.kwargs.items()]
    target = _target(node)
    return f"{names.give(node, target.split('.')[1])} = {target}({', '.join(parts)})"


def _target(node: fx.Node) -> str:
    target: Any = node.target
    if isinstance(target, torch._ops.OpOverload):
        return str(target)
    try:
        return target_name(node)
    except InternalError:
        return f"{getattr(target, '__module__', 'python').replace('.', '_')}.{getattr(target, '__name__', 'step')}"


def _argument(value: Any, names: Names) -> str:
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_argument(v, names) for v in value) + "]"
    try:
        return literal(value, names)
    except InternalError:
        return repr(str(value))
