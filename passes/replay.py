"""Run a kernel, the steps that it replaces and the reference in float64 on one set of inputs, and measure how far they part.

An error is relative to the largest exact value of its row. Angles are taken in float32 as published, their cosines and sines
in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from glmc.passes import hostile
from glmc.passes.declare import Maths
from glmc.passes.hostile import Case, Shapes

HOLDS = 0.05
"""The error up to which the replaced steps count as holding."""

Results = tuple[torch.Tensor, ...]
Tensors = dict[str, torch.Tensor]


class _Widen(torch.overrides.TorchFunctionMode):
    """Turns casts of floats to a float dtype inside a reference into casts to float64; cosines and sines are float64."""

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        source = args[0] if args and isinstance(args[0], torch.Tensor) else None
        if source is None or not source.dtype.is_floating_point:
            return func(*args, **(kwargs or {}))
        if func in (torch.Tensor.cos, torch.Tensor.sin, torch.cos, torch.sin):
            return func(source.double())
        return func(*map(_wide, args), **{k: _wide(v) for k, v in (kwargs or {}).items()})


def _wide(value: Any) -> Any:
    return torch.float64 if isinstance(value, torch.dtype) and value.is_floating_point else value


def in_float64(maths: Maths, tensors: Tensors, scalars: dict[str, Any]) -> Results:
    """The results of the reference with every float step taken in float64; `tensors` are the present ones, not changed.

    The float32 product of position and frequency stays: an angle is what is published.
    """
    return _exact(maths, tensors, scalars)[0]


def _exact(maths: Maths, tensors: Tensors, scalars: dict[str, Any]) -> tuple[Results, Tensors]:
    """The results in float64, and what is left in each input."""
    wide = {k: t.double() if t.is_floating_point() and k != "inv_freq" else t.clone() for k, t in tensors.items()}
    with _Widen():
        results = maths.function(*(wide.get(n) for n in maths.tensors), **{k: _wide(v) for k, v in scalars.items()})
    return all_of(results), wide


def all_of(results: Any) -> Results:
    """What a function returned, as a tuple."""
    return tuple(results) if isinstance(results, (tuple, list)) else (results,)


def _aligned(results: Results) -> Results:
    """Results in the order of the integers among them, since a choice of experts or of slots comes in no set order."""
    if [r.dtype for r in results] == [torch.int32]:
        return (results[0].sort(-1).values,)
    chosen = next((r for r in results[:2] if r.dtype is torch.int64), None)
    if chosen is None or len(results) < 2:
        return results
    order = chosen.argsort(-1)
    return *(r.gather(-1, order) if r.shape == chosen.shape else r for r in results[:2]), *results[2:]


def error_of(results: Results, exact: Results) -> float:
    """The worst error of any result, relative to the largest exact value of its row; infinite for one that is not finite.

    Values that the result's dtype cannot hold are left out. Integers must be equal.
    """
    worst = 0.0
    for result, true in zip(_aligned(results), _aligned(exact), strict=True):
        if not result.is_floating_point():
            worst = max(worst, 0.0 if torch.equal(result, true) else math.inf)
        elif result.numel():
            limits = torch.finfo(result.dtype)
            true = true.to(torch.promote_types(true.dtype, torch.float32))
            fits = true.abs() <= limits.max
            scale = true.abs().masked_fill(~fits, 0.0).amax(-1, keepdim=True).clamp_min(limits.smallest_normal)
            off = ((result.to(true.dtype) - true).abs() / scale).masked_fill(~fits, 0.0)
            here = float(off.max())
            worst = max(worst, math.inf if math.isnan(here) else here)
    return worst


@dataclass(frozen=True)
class Replay:
    """Kernel, replaced steps and exact reference of one distinct site, each a function of the tensors by name.

    moved: rounding steps of the inputs by which the exact result may be moved before the kernel's is further off; of a
    vendor's op whose order of sums is its own, 0 for others.
    """

    maths: Maths
    shapes: Shapes
    scalars: dict[str, Any]
    outputs: list[tuple]
    twins: dict[str, str]
    kernel: Callable
    steps: Callable[[Tensors, dict], Results]
    moved: int = 0

    def case(self, case: Case) -> tuple[float, float, float, int] | None:
        """(kernel error, error of the steps, what it may be off besides twice those, rows); None where the case does not apply
        to the site."""
        values = hostile.assign(self.shapes, self.outputs, case.sizes, self.scalars.get("top", 0))
        given = None if values is None else hostile.inputs(self.maths, self.shapes, values, case, self.scalars)
        if values is None or given is None:
            return None
        given |= {k: given[v] for k, v in self.twins.items()}
        some = case.sizes == "many rows" and "slots" not in given
        plain, plainly_left = _run(lambda t: self.steps(t, values), given)
        exact, left = _exact(self.maths, self._ends(given, values) if some else given, self.scalars)
        true = *exact, *(left[k] for k in plainly_left)
        compared = tuple(hostile.ends(plain, self.outputs, values)) if some else plain
        steps_error = error_of((*compared, *plainly_left.values()), true)
        if case.special == "edge" and not steps_error <= HOLDS:
            return None
        ours, ours_left = _run(lambda t: all_of(self.kernel(*(t.get(n) for n in self.maths.tensors), **self.scalars)), given)
        if list(ours_left) != list(plainly_left) or [(r.dtype, r.shape) for r in ours] != [(r.dtype, r.shape) for r in plain]:
            return math.inf, steps_error, 0.0, 0
        step = max((torch.finfo(r.dtype).eps for r in plain if r.is_floating_point()), default=0.0)
        if self.moved:
            step = max(step, self._moved(self._ends(given, values) if some else given, exact))
        compared = tuple(hostile.ends(ours, self.outputs, values)) if some else ours
        kernel_error = error_of((*compared, *ours_left.values()), true)
        if some and not error_of(ours, plain) <= 4 * steps_error + 2 * step:
            kernel_error = math.inf  # a row between the first and the last
        return kernel_error, steps_error, step, max(r.numel() // r.shape[-1] for r in plain)

    def _moved(self, given: Tensors, exact: Results) -> float:
        """How far the exact result goes where inputs go up or down by `moved` rounding steps, the worst of three draws."""
        draw, worst = torch.Generator().manual_seed(5), 0.0
        for _ in range(3):
            other = {k: t.double() + t * self.moved * torch.finfo(t.dtype).eps * _signs(t, draw) if t.is_floating_point() else t
                     for k, t in given.items()}
            worst = max(worst, error_of(_exact(self.maths, other, self.scalars)[0], exact))
        return worst

    def _ends(self, given: Tensors, values: dict) -> Tensors:
        """The first and last rows of the inputs; the dims L, that every row sees all of, stay whole."""
        sizes = []
        for name, (_, shape) in self.shapes.items():
            tail = self.maths.tensors[name].dims[-len(shape):]
            fixed = {len(shape) - len(tail) + i for i, letter in enumerate(tail) if letter == "L"}
            sizes.append(tuple(given[name].shape[i] if i in fixed else s for i, s in enumerate(shape)))
        return dict(zip(given, hostile.ends(given.values(), sizes, values), strict=True))


def _signs(like: torch.Tensor, draw: torch.Generator) -> torch.Tensor:
    return torch.randint(0, 2, like.shape, generator=draw).double() * 2 - 1


def _run(call: Callable[[Tensors], Results], given: Tensors) -> tuple[Results, Tensors]:
    """The results, and the inputs that were changed; `given` itself is not touched."""
    own = {k: t.clone() for k, t in given.items()}
    results = call(own)
    return results, {k: t for k, t in own.items() if not torch.equal(t, given[k])}
