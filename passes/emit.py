"""Write one graph node as one line of a region's text."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator
from typing import Any

import torch
from torch import fx

from glmc.errors import InternalError
from glmc.kernels import Op
from glmc.region import ATEN


class Names:
    """Names inside one region: the first use of a base gets it bare, later ones a number."""

    def __init__(self) -> None:
        self._given: dict[fx.Node, str] = {}
        self._used: dict[str, int] = {}

    def give(self, node: fx.Node, base: str) -> str:
        count = self._used.get(base, 0)
        self._used[base] = count + 1
        name = base if count == 0 else f"{base}_{count}"
        self._given[node] = name
        return name

    def items(self) -> Iterator[tuple[fx.Node, str]]:
        return iter(self._given.items())

    def __contains__(self, node: object) -> bool:
        return node in self._given

    def __getitem__(self, node: fx.Node) -> str:
        return self._given[node]


def target_name(node: fx.Node) -> str:
    """aten.linear.default, operator.mul, or glmc.rms_norm."""
    target = node.target
    if isinstance(target, Op):
        return f"glmc.{target.name}"
    if isinstance(target, torch._ops.OpOverload) and target.namespace == "aten" and target._opname in ATEN:
        return str(target)
    if getattr(operator, getattr(target, "__name__", ""), None) is target:
        return f"operator.{target.__name__}"
    raise InternalError("no region can hold this step", field=node.name, found=str(target))


def line(node: fx.Node, names: Names) -> str:
    """`name = op(arguments)`; gives the node its name."""
    parts = [literal(a, names) for a in node.args] + [f"{k}={literal(v, names)}" for k, v in node.kwargs.items()]
    target = target_name(node)
    base = target.split(".")[1]
    return f"{names.give(node, base)} = {target}({', '.join(parts)})"


def literal(value: Any, names: Names) -> str:
    """An argument as Python source: nodes by name, dtypes as torch.NAME, infinities as inf."""
    if isinstance(value, fx.Node):
        return names[value]
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(literal(v, names) for v in value) + "]"
    if isinstance(value, float) and not math.isfinite(value):
        return {math.inf: "inf", -math.inf: "-inf"}.get(value, "nan")
    if value is None or isinstance(value, (bool, int, float, str)):
        return repr(value)
    if isinstance(value, (torch.dtype, torch.memory_format)):
        return str(value)
    raise InternalError("no region can hold this literal", found=f"{type(value).__name__} {value}")
