"""The loop over a program: gather a step's inputs, call its region, keep what later steps read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from glmc.errors import DamagedArtifact
from glmc.native.keep import Keep
from glmc.program import FORMS, Program, Step

Call = Callable[[list[torch.Tensor]], Sequence[torch.Tensor]]
Move = Callable[[Step, list[torch.Tensor]], Sequence[torch.Tensor]]
"""What a step between regions does: (step, its inputs) -> its outputs."""


def check_weights(program: Program, weights: dict[str, torch.Tensor], kept: dict[str, Keep]) -> None:
    """Every weight that a program reads is there and is what its region takes, or what `kept` says. Raises DamagedArtifact."""
    for step in program.steps:
        if step.moves:
            continue
        for name, (_, role, spec) in zip(step.inputs, program.regions[step.region].inputs, strict=True):
            if role != "weight":
                continue
            tensor, one = weights.get(name.removeprefix("weight:")), kept.get(name.removeprefix("weight:"))
            fits = tensor is not None and (one.fits(tensor) and (one.sizes, one.dtype) == (spec.shape, spec.dtype) if one else
                                           (str(tensor.dtype), tuple(tensor.shape)) == (f"torch.{spec.dtype}", spec.shape))
            if not fits:
                raise DamagedArtifact("a weight is missing or is not what its region takes", field=name.removeprefix("weight:"),
                                      expected=one.stored() if one else spec.text(),
                                      found=None if tensor is None else list(tensor.shape))


@dataclass(frozen=True)
class _Bound:
    """A step with its weights in place. `holes`: (position, name) of what changes from call to call."""

    step: Step
    inputs: tuple[Any, ...]
    holes: tuple[tuple[int, str], ...]
    rows: tuple[tuple[int, int], ...]
    release: tuple[str, ...]


class Steps:
    """A program bound to its weights and to the regions' calls by form: calls[form][region]."""

    def __init__(self, program: Program, weights: dict[str, torch.Tensor], calls: dict[str, dict[str, Call]],
                 kept: dict[str, Keep] | None = None) -> None:
        """kept: how weights are kept where that is not as the regions' text has them."""
        self.calls = calls
        check_weights(program, weights, kept or {})
        self.logits = program.logits
        needed = {program.logits}
        bound: list[_Bound] = []
        for step in reversed(program.steps):
            taken = () if step.moves else program.regions[step.region].inputs
            release = tuple(n for n in dict.fromkeys(step.inputs) if n.startswith("value:") and n not in needed)
            needed.update(release)
            inputs: list[Any] = []
            holes: list[tuple[int, str]] = []
            rows: list[tuple[int, int]] = []
            for position, (name, (_, role, spec)) in enumerate(zip(step.inputs, taken, strict=not step.moves)):
                if role == "weight":
                    weight = name.removeprefix("weight:")
                    inputs.append(kept[weight].bound(weights[weight]) if kept and weight in kept else weights[weight])
                    continue
                inputs.append(None)
                holes.append((position, name))
                if "S" in spec.shape:
                    rows.append((position, spec.shape.index("S")))
            bound.append(_Bound(step, tuple(inputs), tuple(holes), tuple(rows), release))
        self._steps = bound[::-1]

    def ready(self, number: int, form: str, values: dict[str, torch.Tensor], every_row: bool) -> tuple[Call, list[Any]]:
        """Step `number`'s call in `form` and what it is called with; `values` holds what the steps before it made."""
        bound = self._steps[number]
        inputs: list[Any] = list(bound.inputs)
        for position, name in bound.holes:
            inputs[position] = values[name]
        if bound.step.rows == "last" and not every_row and "S" not in FORMS[form]:
            for position, dim in bound.rows:
                inputs[position] = inputs[position].narrow(dim, inputs[position].shape[dim] - 1, 1).contiguous()
            form = "decode"
        return self.calls[form][bound.step.region], inputs

    def run(self, form: str, named: dict[str, torch.Tensor], every_row: bool, moves: Mapping[str, Move] | None = None,
            ) -> torch.Tensor:
        """Run all steps. named: input:NAME and cache:NAME. moves: by name, for a program that has steps between regions.

        Returns logits [B, S or 1, vocabulary].
        """
        values = dict(named)
        for number, bound in enumerate(self._steps):
            if bound.step.moves:
                made = (moves or {})[bound.step.region](bound.step, [values[name] for name in bound.step.inputs])
            else:
                call, inputs = self.ready(number, form, values, every_row)
                made = call(inputs)
                del inputs
            for name in bound.release:
                del values[name]
            values.update(zip(bound.step.outputs, made, strict=True))
        return values[self.logits]
