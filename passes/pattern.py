"""Patterns and proofs: maths traced at its samples, literals that differ turned into holes; and traced again at a site."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from glmc.passes.declare import Maths
from glmc.passes.tidy import tidy
from glmc.passes.unify import Hole, outputs_of
from glmc.trace import Trace, trace_function


@dataclass(frozen=True)
class Pattern:
    """One form of `maths` in one dtype. `fixed` are the scalars that the form gives; the others are recovered."""

    maths: Maths
    graph: fx.Graph
    present: tuple[str, ...]
    fixed: dict[str, Any]
    steps: int

    @property
    def outputs(self) -> tuple[fx.Node, ...]:
        return outputs_of(self.graph)

    def text(self) -> str:
        """One line a step: a recovered scalar as its name, a literal that only the proof closes as `_`."""
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
    """Every form of `maths` in a graph of `dtype`, narrow and, where some tensors may be wider, wide. Traced once a process."""
    key = maths.function, dtype
    if key not in _TRACED:
        _TRACED[key] = _forms(maths, dtype)
    return _TRACED[key]


def _forms(maths: Maths, dtype: torch.dtype) -> list[Pattern]:
    either = (False, True) if maths.may_be_wide else (False,)
    return [_pattern(maths, pair, dtype, wide) for pair in range(0, len(maths.samples), 2)
            for wide in maths.samples[pair].get("wide", either) if not (wide and dtype is torch.float32)]


def _pattern(maths: Maths, pair: int, dtype: torch.dtype, wide: bool) -> Pattern:
    traced, settings = [], []
    for which in (pair, pair + 1):
        settings.append(maths.settings(which, dtype))
        traced.append(tidied(trace_function(maths.bound(maths.present(which)), maths.empty(which, dtype, wide),
                                            settings[-1])).graph)
    first, second = traced
    recovered = {k: v for k, v in settings[0].items() if v != settings[1][k]}
    for a, b in zip(list(first.nodes), list(second.nodes), strict=True):
        a.args, a.kwargs = (Hole.merge(x, y, recovered, settings[1]) for x, y in ((a.args, b.args), (a.kwargs, b.kwargs)))
    fixed = {k: v for k, v in settings[0].items() if k not in recovered}
    return Pattern(maths, first, maths.present(pair), fixed, sum(n.op == "call_function" for n in first.nodes))


def tidied(traced: Trace) -> Trace:
    """The trace, tidied in place: patterns and models speak one dialect."""
    tidy(traced.graph)
    return traced


class Retracer:
    """Functions traced at the real shapes, dtypes and scalars of sites; the values keep the graph's own symbols."""

    def __init__(self) -> None:
        self._known: dict[tuple, fx.Graph] = {}

    def trace(self, function: Any, present: tuple[str, ...], call: Any, values: list[torch.Tensor],
              scalars: dict[str, Any]) -> fx.Graph:
        """The graph of `call(*values, **scalars)`, traced once; `function` and `present` say what `call` is."""
        key = (function, present, tuple(scalars.items()),
               tuple((v.dtype, tuple(str(s) for s in v.shape)) for v in values))
        if key not in self._known:
            self._known[key] = tidied(trace_function(call, values, scalars)).graph
        return self._known[key]
