"""References traced again at sites, at the sites' own shapes, dtypes and scalars."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from glmc.passes.pattern import tidied
from glmc.trace import trace_function

_COMPARED: dict[tuple, fx.Graph] = {}
_MOST = 512
"""The most graphs of `_COMPARED`, which outlives a compilation; the oldest goes first."""


class Retracer:
    """Functions traced at the real shapes, dtypes and scalars of sites; the values keep the graph's own symbols."""

    def __init__(self) -> None:
        self._known: dict[tuple, fx.Graph] = {}

    def trace(self, function: Any, present: tuple[str, ...], call: Any, values: list[torch.Tensor],
              scalars: dict[str, Any]) -> fx.Graph:
        """The graph of `call(*values, **scalars)`, traced once; `function` and `present` say what `call` is."""
        key = _told(function, present, values, scalars)
        if key not in self._known:
            self._known[key] = tidied(trace_function(call, values, scalars)).graph
        return self._known[key]

    def compared(self, function: Any, present: tuple[str, ...], call: Any, values: list[torch.Tensor],
                 scalars: dict[str, Any]) -> fx.Graph:
        """As `trace`, once a process and for comparing only: the values' symbols may be another graph's of the same names.

        What is known of the symbols is the same; a trace that learns more of them is not kept.
        """
        known = _facts(values)
        key = *_told(function, present, values, scalars), known
        if key in _COMPARED:
            return _COMPARED[key]
        graph = self.trace(function, present, call, values, scalars)
        if _facts(values) == known:
            if len(_COMPARED) == _MOST:
                del _COMPARED[next(iter(_COMPARED))]
            _COMPARED[key] = graph
        return graph


def _told(function: Any, present: tuple[str, ...], values: list[torch.Tensor], scalars: dict[str, Any]) -> tuple:
    return (function, present, tuple((name, type(value), repr(value)) for name, value in scalars.items()),
            tuple((v.dtype, tuple(str(s) for s in v.shape)) for v in values))


def _facts(values: list[torch.Tensor]) -> tuple:
    """What a trace may rest on beside the values' sizes: range and sample of each symbol in them, and the guards on these."""
    shapes: list[Any] = [size for v in values for size in v.shape]
    sizes = [size.node for size in shapes if isinstance(size, torch.SymInt)]
    symbols = {s for size in sizes for s in size.expr.free_symbols}
    if not symbols:
        return ()
    env = sizes[0].shape_env
    guards = (guard.expr.xreplace(env.replacements) for guard in env.guards)
    return (tuple((str(s), str(env.var_to_range.get(s)), str(env.backed_var_to_val.get(s))) for s in sorted(symbols, key=str)),
            tuple(str(guard) for guard in guards if symbols & guard.free_symbols))
