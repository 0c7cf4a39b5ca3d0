"""Patterns and proofs: maths traced at its samples, literals that differ turned into holes."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import fx
from torch._subclasses import FakeTensorMode
from torch.overrides import TorchFunctionMode

from glmc.passes.declare import Maths
from glmc.passes.tidy import tidy
from glmc.passes.unify import Hole, outputs_of
from glmc.trace import Trace, trace_function

KEPT = frozenset(("cos", "cumsum", "gather", "histc", "layer_norm", "masked_fill", "mean", "neg", "repeat_interleave",
                  "rsqrt", "scaled_dot_product_attention", "scatter_", "sigmoid", "silu", "sin", "sort", "stack", "sub",
                  "topk", "unbind"))
"""Functions of torch that are a step of the same name in every tidy graph."""


@dataclass
class Pattern:
    """One form of `maths` in one dtype. `fixed` are the scalars that the form gives; the others are recovered.

    `graph` is first the trace at one sample, good for an outline; `opened` traces the other and opens the holes.
    """

    maths: Maths
    pair: int
    dtype: torch.dtype
    wide: bool
    holes: bool = field(init=False, default=False)

    @cached_property
    def marks(self) -> frozenset[str]:
        """Steps without which a graph cannot hold this form; found in a fraction of a trace's time."""
        with FakeTensorMode(), _Called() as called, torch.no_grad():
            self._call(*self.maths.empty(self.pair, self.dtype, self.wide), **self.maths.settings(self.pair, self.dtype))
        return KEPT & called.names

    @cached_property
    def graph(self) -> fx.Graph:
        return self._trace(self.pair)

    @cached_property
    def fixed(self) -> dict[str, Any]:
        one, other = (self.maths.settings(self.pair + i, self.dtype) for i in (0, 1))
        return {k: v for k, v in one.items() if v == other[k]}

    def _call(self, *tensors: torch.Tensor, **scalars: Any) -> Any:
        return self.maths.bound(self.present)(*tensors, **scalars)

    def _trace(self, which: int) -> fx.Graph:
        return tidied(trace_function(self._call, self.maths.empty(which, self.dtype, self.wide),
                                     self.maths.settings(which, self.dtype))).graph

    def opened(self) -> Pattern:
        """This pattern, with a hole wherever its two samples give different literals."""
        if not self.holes:
            one, other = (self.maths.settings(self.pair + i, self.dtype) for i in (0, 1))
            recovered = {k: v for k, v in one.items() if k not in self.fixed}
            for a, b in zip(list(self.graph.nodes), list(self._trace(self.pair + 1).nodes), strict=True):
                a.args, a.kwargs = (Hole.merge(x, y, recovered, other) for x, y in ((a.args, b.args), (a.kwargs, b.kwargs)))
            self.holes = True
        return self

    @property
    def present(self) -> tuple[str, ...]:
        return self.maths.present(self.pair)

    @property
    def steps(self) -> int:
        return sum(n.op == "call_function" for n in self.graph.nodes)

    @property
    def outputs(self) -> tuple[fx.Node, ...]:
        return outputs_of(self.graph)

    def text(self) -> str:
        """One line a step: a recovered scalar as its name, a literal that only the proof closes as `_`."""
        self.opened()
        names = dict(zip((n for n in self.graph.nodes if n.op == "placeholder"), self.present, strict=True))
        lines = []
        for node in self.graph.nodes:
            if node.op == "call_function":
                names[node] = node.name
                target = getattr(node.target, "__name__", "") if node.target.__class__.__name__.startswith("builtin") \
                    else str(node.target)
                given = [_written(a, names) for a in node.args] + [f"{k}={_written(v, names)}" for k, v in node.kwargs.items()]
                lines.append(f"{node.name} = {target}({', '.join(given)})")
        return "\n".join([*lines, f"return {', '.join(names[o] for o in self.outputs)}"])

    def form(self) -> str:
        """What this form has and fixes: "with x, weight; eps recovered"."""
        recovered = [k for k in self.maths.scalars if k not in self.fixed]
        fixed = [f"{k} = {v}" for k, v in self.fixed.items() if k != "dtype" and v is not None]
        told = [f"with {', '.join(self.present)}", *fixed, *([f"{', '.join(recovered)} recovered"] if recovered else [])]
        return "; ".join(told) + f"; {self.steps} steps"


class _Called(TorchFunctionMode):
    """Notes the names of the functions called while it is active."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        self.names.add(func.__name__)
        return func(*args, **(kwargs or {}))


def _written(value: Any, names: dict[fx.Node, str]) -> str:
    if isinstance(value, fx.Node):
        return names[value]
    if isinstance(value, Hole):
        return value.scalar or "_"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_written(v, names) for v in value) + "]"
    return "end" if value == 9223372036854775807 else str(value)


_TRACED: dict[tuple[Any, torch.dtype], list[Pattern]] = {}


def patterns(maths: Maths, dtype: torch.dtype) -> list[Pattern]:
    """Every form of `maths` in a graph of `dtype`, narrow and, where some tensors may be wider, wide. Made once a process."""
    key = maths.function, dtype
    if key not in _TRACED:
        _TRACED[key] = _forms(maths, dtype)
    return _TRACED[key]


def _forms(maths: Maths, dtype: torch.dtype) -> list[Pattern]:
    either = (False, True) if maths.may_be_wide else (False,)
    return [Pattern(maths, pair, dtype, wide) for pair in range(0, len(maths.samples), 2)
            for wide in maths.samples[pair].get("wide", either) if not (wide and dtype is torch.float32)]


def tidied(traced: Trace) -> Trace:
    """The trace, tidied in place: patterns and models speak one dialect."""
    tidy(traced.graph)
    return traced
