"""Fusions' references as tidy graphs for tests: traced at chosen sizes, run, and searched."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn

from glmc.passes.declare import Fusion
from glmc.passes.match import Found, Matcher
from glmc.passes.tidy import tidy
from glmc.trace import trace_function

# Sizes that samples do not have: one of everything, odd lengths with a partial rotary width whose half is odd, a width
# that is all of the head, and many rows.
SIZES: tuple[dict[str, Any], ...] = (
    {"B": 1, "S": 1, "H": 1, "D": 4, "R": 2, "I": 1, "...": (1,)},
    {"B": 3, "S": 7, "H": 5, "D": 14, "R": 6, "I": 17, "...": (3, 5)},
    {"B": 2, "S": 33, "H": 3, "D": 32, "R": 32, "I": 129, "...": (67,)},
    {"B": 2, "S": 3, "H": 24, "D": 130, "R": 66, "I": 64, "...": (2, 1, 3)},
)
EPS = 1.5625e-07
"""GLM-4's; a fusion that knows only the usual ones misses it."""


def shapes(fusion: Fusion, sizes: dict[str, Any]) -> list[list[int]]:
    """The shape of each tensor of the reference at `sizes`: letters to numbers, "..." to leading sizes."""
    return [[n for d in dims for n in (sizes["..."] if d == "..." else (int(d) if d.isdigit() else sizes[d],))]
            for dims in fusion.tensors.values()]


def scalars(fusion: Fusion) -> dict[str, Any]:
    """A value for every scalar of the reference. All are epsilons so far."""
    return dict.fromkeys(fusion.scalars, EPS)


def normal(fusion: Fusion, sizes: dict[str, Any], dtype: torch.dtype, seed: int = 0,
           spread: float = 1.0) -> list[torch.Tensor]:
    """Independent normal tensors on the CPU; the two halves of cos and sin differ."""
    generator = torch.Generator().manual_seed(seed)
    return [(torch.randn(shape, generator=generator, dtype=torch.float64) * spread).to(dtype)
            for shape in shapes(fusion, sizes)]


def graph_of(function: Callable, tensors: list[torch.Tensor], values: dict[str, Any]) -> fx.Graph:
    """`function` traced and tidied."""
    graph = trace_function(function, tensors, values).graph
    tidy(graph)
    return graph


def find(fusion: Fusion, graph: fx.Graph) -> Found:
    """The sites of `fusion` in `graph`, by a matcher of its own."""
    return Matcher().find(fusion, graph)


@torch.no_grad()
def run(graph: fx.Graph, tensors: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """What `graph` computes from its placeholders in order."""
    result = fx.Interpreter(fx.GraphModule(nn.Module(), graph)).run(*tensors)
    return tuple(result) if isinstance(result, (list, tuple)) else (result,)


def worst(results: Any, exact: Any) -> float:
    """The largest absolute difference, relative to the largest exact value."""
    results, exact = (r if isinstance(r, (list, tuple)) else (r,) for r in (results, exact))
    scale = max(float(e.double().abs().max()) for e in exact) or 1.0
    return max(float((r.double() - e.double()).abs().max()) for r, e in zip(results, exact, strict=True)) / scale
