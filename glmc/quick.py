"""Calls that are slow to trace with symbolic sizes, recorded in a quick form that gets its own name back afterwards.

A product is decomposed into a dozen views while tracing, only to learn a shape that is known: a fifth of a large trace.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx
from torch.nn import functional
from torch.overrides import TorchFunctionMode

torch.library.define("glmc::traced_linear", "(Tensor x, Tensor weight, Tensor? bias=None) -> Tensor")
torch.library.define("glmc::traced_matmul", "(Tensor x, Tensor other) -> Tensor")
torch.library.define("glmc::traced_relu", "(Tensor x) -> Tensor")


@torch.library.impl("glmc::traced_linear", "Meta")
def _(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


@torch.library.impl("glmc::traced_matmul", "Meta")
def _(x: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    rows = (b if isinstance(a, int) and a == 1 else a for a, b in zip(x.shape[:-2], other.shape[:-2], strict=True))
    return x.new_empty((*rows, x.shape[-2], other.shape[-1]))


@torch.library.impl("glmc::traced_relu", "Meta")
def _(x: torch.Tensor) -> torch.Tensor:
    return x.new_empty(x.shape)


NAMES = {torch.ops.glmc.traced_linear.default: torch.ops.aten.linear.default,
         torch.ops.glmc.traced_matmul.default: torch.ops.aten.matmul.default,
         torch.ops.glmc.traced_relu.default: torch.ops.aten.relu.default}


class Quick(TorchFunctionMode):
    """While active, products and ReLU are recorded in their quick form where that form's shape is certain."""

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        if func is functional.linear and not kwargs and args[1].dim() == 2 and args[0].dim() > 1:
            return torch.ops.glmc.traced_linear(*args)
        if func is torch.matmul and not kwargs and args[0].dim() == args[1].dim() > 2:
            return torch.ops.glmc.traced_matmul(*args)
        if func is functional.relu and not (kwargs or {}).get("inplace") and args[0].is_contiguous():
            return torch.ops.glmc.traced_relu(args[0])
        return func(*args, **(kwargs or {}))


def rename(graph: fx.Graph) -> None:
    """Give every call that was recorded in its quick form the name of the op that it is."""
    for node in graph.nodes:
        if node.op == "call_function":
            node.target = NAMES.get(node.target, node.target)
