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
from torch._subclasses import FakeTensor, FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

from glmc.errors import InternalError
from glmc.quick import Quick, rename


@dataclass
class Trace:
    """An ATen graph whose placeholders are parameters (`parameters`: placeholder -> qualified name) or user inputs.

    `graph` is in PyTorch's pre-dispatch ATen form: composite operators such as `linear` and `silu` are kept whole.
    `inputs` lists the placeholders of the user's inputs in order.
    """

    graph: fx.Graph
    parameters: dict[str, str] = field(default_factory=dict)
    inputs: list[str] = field(default_factory=list)


@contextmanager
def uncollected() -> Iterator[None]:
    """No cyclic garbage collection meanwhile: walking the growing graph again and again is a quarter of a large trace."""
    running, traces = gc.isenabled(), getattr(fx.config, "do_not_emit_stack_traces", None)  # torch 2.11 has no such switch
    gc.disable()
    if traces is not None:
        fx.config.do_not_emit_stack_traces = True  # text that nobody reads, a twelfth of the trace
    try:
        yield
    finally:
        if traces is not None:
            fx.config.do_not_emit_stack_traces = traces
        if running:
            gc.enable()


def trace(module: nn.Module, args: tuple, dynamic: Any = None) -> Trace:
    """Trace `module(*args)` without gradients by non-strict `torch.export`.

    args: sample tensors, or nested lists of them, on any device (meta costs no memory).
    dynamic: for each argument, {dimension: torch.export.Dim} or None, nested as the arguments are.
    """
    with torch.no_grad(), uncollected(), Quick():
        exported = torch.export.export(module, args, dynamic_shapes=dynamic, strict=False)
    rename(exported.graph)
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
    """Trace a plain function of tensors, with keyword scalars fixed, by the tracer that `torch.export` runs inside.

    tensors: on the meta device, or fake tensors of one mode, whose symbols the graph's values then have.
    dynamic: for each tensor of the meta device, the dims (keys) that are symbols; equal sizes are one symbol.
    """
    known = next((t.fake_mode for t in tensors if isinstance(t, FakeTensor)), None)
    mode = known or FakeTensorMode(shape_env=ShapeEnv())
    given = [_fake(mode, t, (dynamic or [None] * len(tensors))[i]) for i, t in enumerate(tensors)]
    with mode, torch.no_grad(), uncollected():
        graph = make_fx(lambda *args: function(*args, **scalars), pre_dispatch=True)(*given).graph
    return Trace(graph, {}, [n.name for n in graph.find_nodes(op="placeholder")])


def _fake(mode: FakeTensorMode, tensor: torch.Tensor, dynamic: dict[int, Any] | None) -> torch.Tensor:
    """A fake tensor of its own with the shape and dtype of `tensor`: one that stands for two inputs would be taken for one."""
    if isinstance(tensor, FakeTensor):
        with mode:
            return torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
    sizes = [DimDynamic.DUCK if i in (dynamic or {}) else DimDynamic.STATIC for i in range(tensor.dim())]
    return mode.from_tensor(torch.empty_like(tensor), symbolic_context=StatelessSymbolicContext(dynamic_sizes=sizes))
