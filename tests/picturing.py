"""GLM-Image for tests: parts as programs that run."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from glmc.parts import Part
from glmc.passes.outline import outline
from glmc.passes.tidy import tidy
from glmc.program import Program
from glmc.region import Bound
from glmc.runtime.steps import Steps
from glmc.trace import trace

ALONE = {"all_gather": lambda step, given: given, "past": lambda step, given: given}
"""The steps between regions on one rank that has seen no image."""


def outlined(part: Part) -> Program:
    """The part's program without any fusion."""
    traced = trace(part.module, part.args, part.dynamic)
    tidy(traced.graph)
    return outline(traced, part.symbols(traced), part.names, part.name, part.mode)


def bound(program: Program, weights: dict[str, torch.Tensor]) -> Steps:
    """A program that runs on the CPU, in the form "any"."""
    regions = {name: Bound(region, "cpu") for name, region in program.regions.items()}
    return Steps(program, weights, {"any": {name: partial(_call, region) for name, region in regions.items()}})


def _call(region: Bound, inputs: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    return region(*inputs)


def running(part: Part, weights: dict[str, torch.Tensor]) -> Callable[..., torch.Tensor]:
    """A part as a function of its inputs by name."""
    steps = bound(outlined(part), weights)

    def run(moves: dict = ALONE, **given: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return steps.run("any", {f"input:{name}": tensor for name, tensor in given.items()}, True, moves)

    return run
