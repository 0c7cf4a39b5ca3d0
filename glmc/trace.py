"""The one tracer: a module and sample arguments become an ATen graph with every parameter and input explicit.

Models and the references of fusions go through this file and through the same tidying, so that both speak one dialect.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn

from glmc.errors import InternalError


@dataclass
class Trace:
    """An ATen graph whose placeholders are parameters (`parameters`: placeholder -> qualified name) or user inputs.

    `graph` is in PyTorch's pre-dispatch ATen form: composite operators such as `linear` and `silu` are kept whole.
    `inputs` lists the placeholders of the user's inputs in order.
    """

    graph: fx.Graph
    parameters: dict[str, str] = field(default_factory=dict)
    inputs: list[str] = field(default_factory=list)


class _Function(nn.Module):
    """A plain function as a module, with its keyword scalars bound."""

    def __init__(self, function: Callable, scalars: dict[str, Any]) -> None:
        super().__init__()
        self.function, self.scalars = function, scalars

    def forward(self, *args: torch.Tensor) -> Any:
        return self.function(*args, **self.scalars)


@contextmanager
def _uncollected() -> Iterator[None]:
    """No cyclic garbage collection meanwhile: walking the growing graph again and again is a quarter of a large trace."""
    running = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if running:
            gc.enable()


def trace(module: nn.Module, args: tuple, dynamic: Any = None) -> Trace:
    """Trace `module(*args)` without gradients by non-strict `torch.export`.

    args: sample tensors, or nested lists of them, on any device (meta costs no memory).
    dynamic: for each argument, {dimension: torch.export.Dim} or None, nested as the arguments are.
    """
    with torch.no_grad(), _uncollected():
        exported = torch.export.export(module, args, dynamic_shapes=dynamic, strict=False)
    result = Trace(exported.graph)
    for spec in exported.graph_signature.input_specs:
        name = spec.arg.name
        if spec.kind.name in ("PARAMETER", "BUFFER", "CONSTANT_TENSOR"):
            result.parameters[name] = spec.target
        elif spec.kind.name == "USER_INPUT":
            result.inputs.append(name)
        else:
            raise InternalError("the tracer met an input it does not know", field=spec.kind.name)
    return result


def trace_function(function: Callable, tensors: list[torch.Tensor], scalars: dict[str, Any],
                   dynamic: list[dict[int, Any] | None] | None = None) -> Trace:
    """Trace a plain function of tensors, with keyword scalars fixed; see `trace`."""
    shapes = None if dynamic is None else (tuple(d or None for d in dynamic),)
    return trace(_Function(function, scalars).eval(), tuple(tensors), shapes)
